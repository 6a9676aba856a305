"""The real MLflow: installed once for all runs, models that are saved by it, and `mlflow models serve` on loopback.

`iris` is scikit-learn's, with a signature. `picky` is a function of our own, without one for its inputs: it fails on
what is negative, and returns a table, columns or an array, by what it is given.
"""

from __future__ import annotations

import os
import subprocess
import textwrap
from contextlib import contextmanager

import keystone
from realserving import free_port
from serving import started

PACKAGES = ["mlflow-skinny==3.17.2", "scikit-learn==1.9.1", "pandas==3.1.1", "fastapi==0.165.0", "uvicorn==0.54.0"]
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONWARNINGS": "ignore"}
MODELS = """
    import numpy as np
    import pandas as pd
    from mlflow import pyfunc, sklearn
    from mlflow.models import ModelSignature, infer_signature
    from mlflow.types.schema import ParamSchema, ParamSpec
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    NAMES = ["sepal_length", "sepal_width", "petal_length", "petal_width"]


    class Picky(pyfunc.PythonModel):
        def predict(self, context, model_input, params=None):
            factor = (params or {}).get("factor", 1.0)
            if isinstance(model_input, pd.DataFrame):
                return self.table(model_input, factor)
            if isinstance(model_input, dict):
                return {"sum": sum(model_input.values()) * factor, "first": next(iter(model_input.values()))}
            if (model_input < 0).any():
                raise ValueError("negative not allowed")
            return model_input.sum(axis=tuple(range(1, model_input.ndim))) * factor

        def table(self, given, factor):
            if (given["x"] < 0).any():
                raise ValueError("negative not allowed")
            seen = [str([type(one).__name__ for one in row]) for row in given.itertuples(index=False)]
            half = np.float32(given["x"] / 2) * np.float32(factor)
            return pd.DataFrame({"half": half, "seen": seen, "nothing": np.nan, "whole": given["x"].astype("int64")})


    features, kinds = load_iris(return_X_y=True)
    features = pd.DataFrame(features, columns=NAMES)
    model = LogisticRegression(max_iter=1000).fit(features, np.array(["setosa", "versicolor", "virginica"])[kinds])
    signature = infer_signature(features, model.predict(features))
    sklearn.save_model(model, "iris", serialization_format="cloudpickle", signature=signature, pip_requirements=[])
    params = ModelSignature(params=ParamSchema([ParamSpec("factor", "double", 1.0)]))
    pyfunc.save_model("picky", python_model=Picky(), signature=params, pip_requirements=[])
"""


def saved(folder):
    """Save the models in a folder."""
    venv = keystone.installed(PACKAGES)
    (folder / "models.py").write_text(textwrap.dedent(MODELS))
    done = subprocess.run(
        [venv / "bin" / "python", "models.py"],
        cwd=folder,
        env={**os.environ, **QUIET},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@contextmanager
def running(folder, model, *, port=None, kill=False):
    """Serve one of the models that a folder has; yields the server's URL."""
    venv, port = keystone.installed(PACKAGES), port or free_port()
    (folder / f"{model}-{port}").mkdir(exist_ok=True)
    url = f"http://127.0.0.1:{port}"
    line = [venv / "bin" / "mlflow", "models", "serve", "--model-uri", folder / model, "--env-manager", "local"]
    path = f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}"  # it starts uvicorn by its name
    with started(
        [*line, "--host", "127.0.0.1", "--port", port],
        folder / f"{model}-{port}",
        f"{url}/ping",
        kill=kill,
        **QUIET,
        PATH=path,
    ):
        yield url
