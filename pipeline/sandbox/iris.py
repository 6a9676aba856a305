"""The iris model as a service: what it reads, what it predicts, what it answers. No I/O.

The contract is the platform's own: `req_data` in, `resp_data` out, in the same order, both inside `data` unless the
model is of the XGBoost kind. Fields that the model does not know are ignored.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import msgspec
import numpy as np

from pipeline.sandbox.replies import NOT_JSON, Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

MODEL: Final[dict[str, Any]] = json.loads(files("pipeline.sandbox").joinpath("iris_model.json").read_text("utf-8"))
LABELS: Final[list[str]] = MODEL["labels"]
FEATURES: Final[list[str]] = MODEL["features"]
COEFFICIENTS: Final = np.array(MODEL["coefficients"])
INTERCEPTS: Final = np.array(MODEL["intercepts"])
LARGEST: Final = 1e6  # centimetres: beyond any flower, and keeps the sums finite


class Row(msgspec.Struct, gc=False):
    """One flower, in centimetres; integers are numbers too, texts and booleans are not."""

    sepal_length: float
    sepal_width: float
    petal_length: float
    petal_width: float


class Bare(msgspec.Struct, gc=False):
    """The request of an XGBoost-type model, and the inside of `data`."""

    req_data: list[Row]
    meta: Any = None


class Wrapped(msgspec.Struct, gc=False):
    """The request of all other models."""

    data: Bare
    meta: Any = None


class Prediction(msgspec.Struct, gc=False, frozen=True):
    """The most probable species and its probability."""

    predictresult: str
    score: float


One = TypeVar("One")


@dataclass(frozen=True)
class Answer(Generic[One]):
    """What a service says: the request's uuid (blank if it had none) and one prediction per row."""

    uuid: object
    predictions: list[One]


_measurements = attrgetter(*FEATURES)


def predict(rows: Sequence[Row]) -> list[Prediction]:
    """Classify each row; a row's answer does not depend on the rows beside it, to the last bit."""
    flat = chain.from_iterable(map(_measurements, rows))
    table = np.fromiter(flat, np.float64, len(rows) * len(FEATURES)).reshape(-1, len(FEATURES))
    probabilities = _probabilities(np.clip(table, -LARGEST, LARGEST))
    best = probabilities.argmax(axis=1)
    scores = probabilities.max(axis=1, initial=0.0).round(9)
    return [Prediction(LABELS[label], score) for label, score in zip(best.tolist(), scores.tolist(), strict=True)]


def _probabilities(table: NDArray[np.float64]) -> NDArray[np.float64]:
    # Not a matrix product: BLAS adds up in an order that depends on the number of rows.
    logits = INTERCEPTS + sum(table[:, [index]] * COEFFICIENTS[:, index] for index in range(len(FEATURES)))
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


class Iris:
    """The service; `wrapped` is whether rows and answers are inside `data`."""

    several = True

    def __init__(self, *, wrapped: bool) -> None:
        self._wrapped = wrapped
        self._decoder: msgspec.json.Decoder[Wrapped | Bare] = msgspec.json.Decoder(Wrapped if wrapped else Bare)

    def read(self, body: bytes, content_type: str = "") -> tuple[object, list[Row]]:  # noqa: ARG002 - it is JSON
        """Return uuid and rows of a request.

        Raises:
            Refusal: the body is not JSON, or some row is not one the model can take.

        """
        try:
            request = self._decoder.decode(body)
        except NOT_JSON as error:
            raise _refusal(body, wrapped=self._wrapped) from error
        rows = request.data.req_data if isinstance(request, Wrapped) else request.req_data
        return uuid_of(request.meta), rows

    def predict(self, rows: Sequence[Row]) -> list[Prediction]:
        """Classify each row."""
        return predict(rows)

    def peek(self, body: bytes, content_type: str = "") -> tuple[object, list[dict[str, Any]]]:  # noqa: ARG002
        """Return uuid and rows, with all their fields, of any body; blank and none if it has no such thing."""
        return peek(body)

    def write(self, answer: Answer[Prediction]) -> bytes:
        """Return the reply's body."""
        content: dict[str, object] = {"resp_data": answer.predictions}
        meta = {"meta": {"uuid": answer.uuid}}
        return msgspec.json.encode(meta | ({"data": content} if self._wrapped else content))


def uuid_of(meta: object) -> object:
    """Return the uuid to give back: blank if the request has none."""
    return meta.get("uuid", "") if isinstance(meta, dict) else ""


def peek(body: bytes) -> tuple[object, list[dict[str, Any]]]:
    """Return uuid and rows, with all their fields, of any body; blank and none if it has no such thing."""
    try:
        document = msgspec.json.decode(body)
    except NOT_JSON:
        return "", []
    if not isinstance(document, dict):
        return "", []
    content = document.get("data", document)
    rows = content.get("req_data") if isinstance(content, dict) else None
    found = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return uuid_of(document.get("meta")), found


def _refusal(body: bytes, *, wrapped: bool) -> Refusal:
    """Say what the platform would: the dispatcher about JSON, the model server about what its code trips over."""
    try:
        document = msgspec.json.decode(body)
    except NOT_JSON:
        return Refusal("400 ModelArts.4105")
    if not document:
        return Refusal("400 MR.0101")
    try:
        rows = (document["data"] if wrapped else document)["req_data"]
        values = [row[feature] for row in rows for feature in FEATURES]
    except (KeyError, TypeError):
        return Refusal("400 MR.0105")
    return Refusal("400 MR.0105" if None in values else "500 MR.0105")
