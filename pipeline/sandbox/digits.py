"""The digits model as a service: it reads a picture of a handwritten digit, and answers as the platform's samples do.

The picture is the file `images` of a form, or base64 in `{"image": ...}`: one a request, light on dark, of any size.
"""

from __future__ import annotations

import json
import warnings
from base64 import b64decode
from importlib.resources import files
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from pipeline.sandbox.forms import KIND, NotAFormError, form_of
from pipeline.sandbox.replies import NOT_JSON, Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.sandbox.iris import Answer

    Points = NDArray[np.float64]

MODEL: Final[dict[str, Any]] = json.loads(files("pipeline.sandbox").joinpath("digits_model.json").read_text("utf-8"))
LABELS: Final[list[str]] = MODEL["labels"]
COEFFICIENTS: Final = np.array(MODEL["coefficients"])
INTERCEPTS: Final = np.array(MODEL["intercepts"])
FIELD: Final = "images"
JSON: Final = "application/json"
FORM: Final = KIND.decode()
SIDE: Final = 8
WHITE: Final = 255
FORMATS: Final = ("PNG", "JPEG", "GIF", "BMP")


class Asked(msgspec.Struct):
    """The JSON form of a request."""

    image: str


_asked: Final = msgspec.json.Decoder(Asked)


class Prediction(msgspec.Struct, frozen=True):
    """The most probable digit, and all digits with their probabilities, the most probable first."""

    predicted_label: str
    scores: list[tuple[str, float]]


class Digits:
    """The service."""

    several = False

    def read(self, body: bytes, content_type: str = JSON) -> tuple[object, list[Points]]:
        """Return the points of the picture, 64 from 0 to 1, and no uuid: there is no place for one.

        Raises:
            Refusal: there is no picture where one must be, or it is none.

        """
        return "", [points_of(_content(body, content_type))]

    def predict(self, rows: Sequence[Points]) -> list[Prediction]:
        """Classify each picture."""
        return [predict(points) for points in rows]

    def write(self, answer: Answer[Prediction]) -> bytes:
        """Return the reply's body."""
        return msgspec.json.encode(answer.predictions[0])

    def peek(self, body: bytes, content_type: str = JSON) -> tuple[object, list[dict[str, Any]]]:
        """Return what a schedule can tell a request by: the fields of its form, and as `name` that of its file."""
        try:
            form = form_of(body, content_type)
        except NotAFormError:
            return "", []
        return "", [{**form.fields, "name": file.name} for file in form.files.values()]


def predict(points: Points) -> Prediction:
    """Classify a picture."""
    logits = INTERCEPTS + COEFFICIENTS @ points
    powers = np.exp(logits - logits.max())
    scores = (powers / powers.sum()).round(9).tolist()
    ranked = sorted(zip(LABELS, scores, strict=True), key=lambda one: -one[1])
    return Prediction(ranked[0][0], ranked)


def points_of(content: bytes) -> Points:
    """Return a picture's points, scaled to 8 x 8.

    Raises:
        Refusal: it is no picture, or one that would fill the memory.

    """
    from PIL import Image, UnidentifiedImageError

    bomb = (Image.DecompressionBombError, Image.DecompressionBombWarning)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(BytesIO(content), formats=FORMATS) as image:
                grey = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    except bomb as error:
        raise Refusal("400 MR.0105", "the picture is too large") from error
    except UnidentifiedImageError as error:
        raise Refusal("400 MR.0105", "the file is not a picture") from error
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's ways to say that it is broken
        raise Refusal("400 MR.0105", "the picture is broken") from error
    return np.asarray(grey, np.float64).reshape(-1) / WHITE


def _content(body: bytes, content_type: str) -> bytes:
    """Return the picture's bytes, or refuse as the platform does: the dispatcher JSON, the model server all else."""
    if not content_type.startswith(FORM):
        try:
            return b64decode(_asked.decode(body).image, validate=True)
        except msgspec.ValidationError as error:
            raise Refusal("400 MR.0101", "image is missing, or no text") from error
        except NOT_JSON as error:
            raise Refusal("400 ModelArts.4105") from error
        except ValueError as error:
            raise Refusal("400 MR.0105", "image is not base64") from error
    try:
        file = form_of(body, content_type).files.get(FIELD)
    except NotAFormError as error:
        raise Refusal("400 MR.0101", str(error)) from error
    if file is None:
        raise Refusal("400 MR.0101", f"there is no file {FIELD}")
    return file.content
