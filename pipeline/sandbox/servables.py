"""The servables of the sandbox's MindSpore Serving: its models, and one that gives back what it gets."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from pipeline.sandbox import digits, iris
from pipeline.sandbox.mindspore import Method, Servables
from pipeline.sandbox.replies import MESSAGES, Refusal


def _iris(*measures: Any) -> tuple[str, float]:
    flower = iris.Row(*(float(measure) for measure in measures))
    [found] = iris.predict([flower])
    return found.predictresult, found.score


def _digits(image: Any) -> tuple[str, Any]:
    try:
        found = digits.predict(digits.points_of(np.asarray(image, np.uint8).tobytes()))
    except Refusal as refusal:
        raise ValueError(refusal.detail or MESSAGES[refusal.key]) from None
    scores = dict(found.scores)
    return found.predicted_label, np.array([scores[label] for label in digits.LABELS], np.float32)


SERVABLES: Final[Servables] = {
    "iris": {"predict": Method(tuple(iris.FEATURES), ("label", "score"), _iris, "Preprocess")},
    "digits": {"predict": Method(("image",), ("label", "scores"), _digits, "Preprocess")},
    "echo": {"echo": Method(("x",), ("out",), lambda x: x, "Function 'echo.echo'")},
}
