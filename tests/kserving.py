"""KServe's model server, of others, with both its protocols: installed once for all runs, on loopback."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import textwrap
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

import keystone
import requests
from realserving import free_port

from jobs import ROOT, until

if TYPE_CHECKING:
    from pathlib import Path

PACKAGES = ["kserve==0.21.0"]
IRIS = ROOT / "pipeline" / "sandbox" / "iris_model.json"
NEGATIVE = "a flower is negative"
POISON = -1.0  # as a flower's first measure: the models refuse it
BROKEN = -2.0  # and this one makes them fail as by themselves
SERVER = """
    import json, pathlib, sys

    import numpy as np
    from kserve import InferOutput, InferResponse, Model, ModelServer
    from kserve.protocol.rest.server import RESTServer
    from kserve.utils.utils import generate_uuid, get_predict_input, get_predict_response

    HERE = pathlib.Path(__file__).parent
    PORT, IRIS, POISON, BROKEN, NEGATIVE = json.loads(sys.argv.pop())


    class Iris(Model):
        def load(self):
            learned = json.loads(pathlib.Path(IRIS).read_text())
            self.labels = np.array(learned["labels"])
            self.weights, self.bias = np.array(learned["coefficients"]).T, np.array(learned["intercepts"])
            self.ready = True

        def predict(self, payload, headers=None, response_headers=None):
            with open(HERE / "calls", "a") as calls:
                print(headers["content-length"], file=calls)
            flowers = get_predict_input(payload)
            if (flowers[:, 0] == POISON).any():
                raise ValueError(NEGATIVE)
            if (flowers[:, 0] == BROKEN).any():
                raise OSError("the model has failed")
            scores = flowers @ self.weights + self.bias
            return get_predict_response(payload, self.labels[scores.argmax(axis=1)].tolist(), self.name)


    class Waking(Iris):
        ready = property(lambda self: (HERE / "awake").exists(), lambda self, _: None)


    class Echo(Model):
        def load(self):
            self.ready = True

        def predict(self, payload, headers=None, response_headers=None):
            if isinstance(payload, dict):
                return {"predictions": payload["instances"]}
            asked = {
                "use_binary_outputs": payload.use_binary_outputs, "requested_outputs": payload.request_outputs or None
            }
            outputs = [
                InferOutput(name=one.name, shape=one.shape, datatype=one.datatype, data=one.as_numpy())
                for one in payload.inputs
            ]
            return InferResponse(generate_uuid(), self.name, outputs, **asked)


    def on_loopback(self, *words, made=RESTServer.__init__, **keys):
        made(self, *words, **keys)
        self.config.host = "127.0.0.1"  # it has no other way to say so


    RESTServer.__init__ = on_loopback
    iris, waking, echo = models = Iris("iris"), Waking("waking"), Echo("echo")
    for model in models:
        model.load()
    server = ModelServer(http_port=PORT, enable_grpc=False)
    server.register_model(waking)  # what it starts with must be ready
    server.start([iris, echo])
"""


class Server(NamedTuple):
    """A running one: its base URL, its folder, and its process, which is alone in its group."""

    url: str
    folder: Path
    process: subprocess.Popen

    @property
    def calls(self):
        """The size of each request for flowers, in bytes."""
        notes = self.folder / "calls"
        return [int(line) for line in notes.read_text().splitlines()] if notes.exists() else []

    @property
    def port(self):
        """Where it listens."""
        return int(self.url.rpartition(":")[2])

    def refused(self, model):
        """How often it has refused to ask a model, by its log."""
        log = (self.folder / "server.log").read_text()
        return len(re.findall(rf'/models/{model}\S* HTTP/1.1" (?:400|503)', log))

    def wake(self):
        """Let the model `waking` be ready."""
        (self.folder / "awake").touch()

    def kill(self):
        """End it as a crash does."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def running(folder, *, port=None):
    """Start the server; skips where it cannot be had."""
    venv, port = keystone.installed(PACKAGES), port or free_port()
    folder.mkdir(exist_ok=True)
    (folder / "server.py").write_text(textwrap.dedent(SERVER))
    given = json.dumps([port, str(IRIS), POISON, BROKEN, NEGATIVE])
    with started([venv / "bin" / "python", folder / "server.py", given], folder, port, "/v1/models/iris") as server:
        yield server


@contextmanager
def started(line, folder, port, ready, **environment):
    """Start a process that serves on a port, and wait until it answers at the path `ready`; it ends with the block."""
    environment = {**os.environ, "PYTHONPATH": str(folder), **environment}
    with (
        (folder / "server.log").open("w") as log,
        subprocess.Popen(line, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True) as process,
    ):
        server = Server(f"http://127.0.0.1:{port}", folder, process)
        try:
            until(lambda: process.poll() is not None or answers(server.url + ready), seconds=200)
            assert process.poll() is None, (folder / "server.log").read_text()
            yield server
        finally:
            server.wake()  # MLServer does not end while a model is loading
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            server.kill()


def answers(url):
    """Whether it is there."""
    with suppress(requests.RequestException):
        return requests.get(url, timeout=30).status_code == 200
    return False
