"""MLServer, a model server of others that speaks the Open Inference Protocol: installed once for all runs, on loopback.

It has a scikit-learn classifier, trained when the server starts, and a runtime that gives back what it has decoded.
"""

from __future__ import annotations

import json
import subprocess
import textwrap
from contextlib import contextmanager

import keystone
from kserving import BROKEN, NEGATIVE, POISON, started
from realserving import free_port

PACKAGES = ["mlserver==1.7.1", "mlserver-sklearn==1.7.1"]
TRAINING = """
    import joblib
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    flowers, species = load_iris(return_X_y=True)
    joblib.dump(LogisticRegression(max_iter=1000).fit(flowers, load_iris().target_names[species]), "iris.joblib")
"""
MODELS = """
    import asyncio, json, pathlib

    from mlserver import MLModel
    from mlserver.codecs import NumpyCodec, StringCodec
    from mlserver.types import InferenceResponse
    from mlserver_sklearn import SKLearnModel

    HERE = pathlib.Path(__file__).parent
    POISON, BROKEN, NEGATIVE = json.loads((HERE / "given.json").read_text())


    class Iris(SKLearnModel):
        async def predict(self, payload):
            with open(HERE / "calls", "a") as calls:
                print(payload.parameters.headers["content-length"], file=calls)
            first = payload.inputs[0]
            measures = list(first.data)[:: first.shape[-1]]
            if POISON in measures:
                raise ValueError(NEGATIVE)
            if BROKEN in measures:
                raise OSError("the model has failed")
            return await super().predict(payload)


    class Waking(Iris):
        async def load(self):
            while not (HERE / "awake").exists():
                await asyncio.sleep(0.05)
            return await super().load()


    class Echo(MLModel):
        async def load(self):
            return True

        async def predict(self, payload):
            outputs = []
            for one in payload.inputs:
                codec = StringCodec if one.datatype == "BYTES" else NumpyCodec
                outputs.append(codec.encode_output(one.name, codec.decode_input(one)))
                outputs[-1].shape = one.shape  # StringCodec flattens
            return InferenceResponse(model_name=self.name, outputs=outputs)
"""
RUNTIMES = {"iris": "models.Iris", "waking": "models.Waking", "echo": "models.Echo"}


@contextmanager
def running(folder, *, port=None, debug=True):
    """Start the server in one process; with `debug`, as it comes, it answers with tracebacks. Skips without it."""
    venv, port = keystone.installed(PACKAGES), port or free_port()
    folder.mkdir(exist_ok=True)
    prepare(venv, folder, port, debug=debug)
    line = [venv / "bin" / "mlserver", "start", folder]
    with started(line, folder, port, "/v2/models/iris/ready") as server:
        yield server


def prepare(venv, folder, port, *, debug):
    """Write its settings and its models, and train the classifier."""
    ports = {"http_port": port, "grpc_port": free_port(), "metrics_endpoint": None}
    put(folder / "settings.json", {"host": "127.0.0.1", "parallel_workers": 0, "debug": debug, **ports})
    put(folder / "given.json", [POISON, BROKEN, NEGATIVE])
    (folder / "models.py").write_text(textwrap.dedent(MODELS))
    for name, runtime in RUNTIMES.items():
        (folder / name).mkdir(exist_ok=True)
        uri = {"uri": str(folder / "iris.joblib"), "version": "v1"}
        put(folder / name / "model-settings.json", {"name": name, "implementation": runtime, "parameters": uri})
    line = [venv / "bin" / "python", "-c", textwrap.dedent(TRAINING)]
    subprocess.run(line, cwd=folder, check=True, timeout=100)


def put(path, value):
    """Write a file of settings."""
    path.write_text(json.dumps(value))
