"""The real TorchServe, and multi-model-server, which it comes from: installed once for all runs, and run on loopback.

Their handlers are Python functions. TorchServe's workers import torch, of which they need one name: it is given here,
so that nobody has to install it.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
import textwrap
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import keystone
import pytest
from serving import started


class Software(NamedTuple):
    """What is installed, and how it is started; `free` lets everybody in."""

    packages: list[str]
    command: str
    config: str
    free: list[str]


class Server(NamedTuple):
    """A running one: its base URL, and the file with its tokens, where it asks for them."""

    url: str
    tokens: Path


SOFTWARE = {
    "torchserve": Software(
        ["torchserve==0.12.0", "pyyaml==6.0.3"], "torchserve", "--ts-config", ["--disable-token-auth"]
    ),
    "multi-model-server": Software(["multi-model-server==1.1.11"], "multi-model-server", "--mms-config", []),
}
HANDLER = """
    import json


    def handle(data, context):
        return data and [answers(read(one["body"]), context) for one in data]


    def read(body):
        return json.loads(body) if isinstance(body, (bytes, bytearray)) else body


    def answers(body, context):
        rows = [list(row.values()) if isinstance(row, dict) else row for row in body["instances"]]
        if any(row[0] < 0 for row in rows):
            raise ValueError("a flower cannot be negative")
        sums = [round(sum(row), 6) for row in rows]
        return sums if context.manifest["model"]["modelName"] == "bare" else {"predictions": sums}
"""
MODELS = ("iris", "bare")
PORTS = ("inference", "management", "metrics", "grpc_inference", "grpc_management")
SETTINGS = """
    inference_address=http://127.0.0.1:{inference}
    management_address=http://127.0.0.1:{management}
    metrics_address=http://127.0.0.1:{metrics}
    grpc_inference_port={grpc_inference}
    grpc_management_port={grpc_management}
    default_workers_per_model=1
    vmargs=-Djava.io.tmpdir={folder}
"""


def archive(folder, model):
    """Pack the handler as a model."""
    about = {"modelName": model, "modelVersion": "1.0", "handler": "service:handle"}
    with zipfile.ZipFile(folder / f"{model}.mar", "w") as packed:
        packed.writestr("service.py", textwrap.dedent(HANDLER))
        packed.writestr("MAR-INF/MANIFEST.json", json.dumps({"runtime": "python", "model": about}))


def low_ports():
    """Yield ports that nobody listens on; multi-model-server knows none above 32767."""
    for port in range(20_000 + os.getpid() % 10_000, 32_768):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            yield port


@contextmanager
def running(name, *, free=True):
    """Start a server with the models `iris` and `bare`. Skips where it cannot be had."""
    if shutil.which("java") is None:
        pytest.skip("needs Java")
    software = SOFTWARE[name]
    venv = keystone.installed(software.packages)
    folder = Path(tempfile.mkdtemp(prefix="ts"))  # short: it puts sockets there
    try:
        for model in MODELS:
            archive(folder, model)
        (folder / "torch.py").write_text("class Tensor:\n    pass\n")
        ports = dict(zip(PORTS, low_ports(), strict=False))
        (folder / "config.properties").write_text(textwrap.dedent(SETTINGS).format(folder=folder, **ports))
        line = [venv / "bin" / software.command, "--start", "--foreground", "--model-store", folder]
        line += [software.config, "config.properties", *(software.free if free else [])]
        url = f"http://127.0.0.1:{ports['inference']}"
        path = {
            "PATH": f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(folder),
            "TMPDIR": str(folder),
        }
        with started([*line, "--models", *(f"{one}={one}.mar" for one in MODELS)], folder, f"{url}/ping", **path):
            yield Server(url, folder / "key_file.json")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
