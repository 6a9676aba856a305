#!/usr/bin/env python3
"""Make the iris table and train the sandbox's model on it: `python jobs/train_iris.py`.

Needs scikit-learn, which carries the 150 measurements. Running it again gives the same two files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "jobs" / "data" / "iris.parquet"
MODEL = ROOT / "pipeline" / "sandbox" / "iris_model.json"
FEATURES = ("sepal_length", "sepal_width", "petal_length", "petal_width")


def iris_table() -> pa.Table:
    """Return the 150 flowers: `id`, the four measurements in centimetres, `species`."""
    iris = load_iris()
    columns: dict[str, list[Any]] = {"id": [f"iris-{number:03d}" for number in range(1, len(iris.target) + 1)]}
    columns |= {name: iris.data[:, index].tolist() for index, name in enumerate(FEATURES)}
    columns["species"] = [str(iris.target_names[label]) for label in iris.target]
    return pa.table(columns)


def train() -> dict[str, Any]:
    """Return labels, features, coefficients (label x feature) and intercepts of the fitted model."""
    iris = load_iris()
    # The penalty makes the optimum unique, and Newton's method reaches it far below the six digits kept:
    # any machine finds the same numbers.
    model = LogisticRegression(C=10.0, solver="newton-cholesky", tol=1e-10).fit(iris.data, iris.target)
    return {
        "labels": [str(name) for name in iris.target_names],
        "features": list(FEATURES),
        "coefficients": model.coef_.round(6).tolist(),
        "intercepts": model.intercept_.round(6).tolist(),
    }


def main() -> None:
    """Write both files."""
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(iris_table(), TABLE)
    MODEL.write_text(json.dumps(train(), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
