#!/usr/bin/env python3
"""Draw a hundred handwritten digits and train the sandbox's model on the others: `python jobs/train_digits.py`.

Needs scikit-learn, which carries 1797 digits of 8 x 8 points, and Pillow. Running it again gives the same files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

ROOT: Final = Path(__file__).resolve().parent.parent
IMAGES: Final = ROOT / "jobs" / "data" / "digits"
MANIFEST: Final = ROOT / "jobs" / "data" / "digits.manifest"
MODEL: Final = ROOT / "pipeline" / "sandbox" / "digits_model.json"
DRAWN: Final = 10  # of each digit
SIDE: Final = 32  # points, so that a person sees something
DARKEST: Final = 16


def drawn(labels: np.ndarray[Any, Any]) -> list[int]:
    """Choose the last digits of each kind: they were written by other people than most."""
    return sorted(int(index) for label in range(10) for index in np.flatnonzero(labels == label)[-DRAWN:])


def draw(points: np.ndarray[Any, Any], path: Path) -> None:
    """Write a digit as a PNG, light on dark."""
    grey = (points * 255 / DARKEST).round().astype(np.uint8)
    Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.NEAREST).save(path, optimize=True)


def train(points: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Return labels, coefficients (label x point, rows from the top) and intercepts; a point is from 0 to 1."""
    # As for the flowers: a unique optimum, reached far below the digits kept.
    model = LogisticRegression(C=1.0, solver="newton-cholesky", tol=1e-10, max_iter=1000).fit(points / DARKEST, labels)
    return {
        "labels": [str(label) for label in model.classes_],
        "coefficients": model.coef_.round(4).tolist(),
        "intercepts": model.intercept_.round(4).tolist(),
    }


def main() -> None:
    """Write all files."""
    digits = load_digits()
    chosen = drawn(digits.target)
    IMAGES.mkdir(parents=True, exist_ok=True)
    names = sorted(f"{digits.target[index]}-{index:04d}.png" for index in chosen)
    for index in chosen:
        draw(digits.images[index], IMAGES / f"{digits.target[index]}-{index:04d}.png")
    MANIFEST.write_text("".join(f"digits/{name}\n" for name in names), encoding="utf-8")
    others = np.delete(np.arange(len(digits.target)), chosen)
    MODEL.write_text(json.dumps(train(digits.data[others], digits.target[others])) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
