"""The real MindSpore Serving, under a Python of its own: installed once for all runs, and started on loopback.

It has servables of Python stages, which need neither a device nor MindSpore: `demo`, and the sandbox's models.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import textwrap
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from filelock import FileLock
from keystone import cache

from jobs import ROOT, until

PACKAGES = ["mindspore-serving==2.0.2", "packaging", "pillow"]
SERVER = """
    import os, sys
    from mindspore_serving import server

    folder = os.path.dirname(os.path.abspath(__file__))
    names = sys.argv[3:]
    server.start_servables([server.ServableStartConfig(folder, name, num_parallel_workers=1) for name in names])
    server.start_restful_server("127.0.0.1:" + sys.argv[1], max_msg_mb_size=int(sys.argv[2]))
    print("READY", flush=True)
"""
DEMO = """
    import os
    from mindspore_serving.server import register

    CALLS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "calls")

    def f_echo(x):
        return x

    def f_bits(x):
        if isinstance(x, str):
            return "str", "[]", x.encode()
        return str(x.dtype), str(list(x.shape)), x.tobytes()

    def f_negative(x):
        with open(CALLS, "a") as calls:
            calls.write(".")
        if x < 0:
            raise ValueError("negative not allowed")
        return x * 2

    def f_own(x):
        if x < 0:
            raise ValueError("%d is negative" % x)
        return x

    def f_document(tag, box, image):
        return tag, box, str(box.dtype), image.tobytes()

    def f_strict(x):
        if isinstance(x, str) or x.dtype != "float32":
            raise TypeError("Given model input 0 data type does not match required float32")
        return x

    @register.register_method(output_names=["out"])
    def echo(x):
        return register.add_stage(f_echo, x, outputs_count=1)

    @register.register_method(output_names=["dtype", "shape", "bits"])
    def bits(x):
        return register.add_stage(f_bits, x, outputs_count=3)

    @register.register_method(output_names=["out"])
    def fail_neg(x):
        return register.add_stage(f_negative, x, outputs_count=1)

    @register.register_method(output_names=["out"])
    def fail_own(x):
        return register.add_stage(f_own, x, outputs_count=1)

    @register.register_method(output_names=["tag", "box", "kind", "image"])
    def document(tag, box, image):
        return register.add_stage(f_document, tag, box, image, outputs_count=4)

    @register.register_method(output_names=["out"])
    def strict(x):
        return register.add_stage(f_strict, x, outputs_count=1)
"""


MODEL = """
    import json
    import numpy as np
    from mindspore_serving.server import register

    with open({path!r}) as file:
        MODEL = json.load(file)
    COEFFICIENTS, INTERCEPTS = np.array(MODEL["coefficients"]), np.array(MODEL["intercepts"])

    def scores_of(points):
        logits = INTERCEPTS + COEFFICIENTS @ points
        powers = np.exp(logits - logits.max())
        return powers / powers.sum()
"""
"""What a servable of one of the sandbox's models begins with."""

IRIS = """
    def f_iris(sepal_length, sepal_width, petal_length, petal_width):
        measures = sepal_length, sepal_width, petal_length, petal_width
        scores = scores_of(np.array([float(measure) for measure in measures]))
        return MODEL["labels"][scores.argmax()], scores.max()

    @register.register_method(output_names=["label", "score"])
    def predict(sepal_length, sepal_width, petal_length, petal_width):
        return register.add_stage(f_iris, sepal_length, sepal_width, petal_length, petal_width, outputs_count=2)
"""
DIGITS = """
    from io import BytesIO
    from PIL import Image

    def f_digits(image):
        with Image.open(BytesIO(image.tobytes())) as picture:
            grey = picture.convert("L").resize((8, 8), Image.BOX)
        scores = scores_of(np.asarray(grey, np.float64).reshape(-1) / 255)
        return MODEL["labels"][scores.argmax()], scores.astype(np.float32)

    @register.register_method(output_names=["label", "scores"])
    def predict(image):
        return register.add_stage(f_digits, image, outputs_count=2)
"""
SERVABLES = {
    "demo": textwrap.dedent(DEMO),
    **{
        name: textwrap.dedent(MODEL).format(path=str(ROOT / "pipeline" / "sandbox" / f"{name}_model.json"))
        + textwrap.dedent(stages)
        for name, stages in (("iris", IRIS), ("digits", DIGITS))
    },
}


def free_port():
    """Return a port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Server(NamedTuple):
    """A running one: its base URL, and the file to which `fail_neg` adds a byte for each call."""

    url: str
    calls: Path


@contextmanager
def running(*servables, port=None, megabytes=100, kill=False):
    """Start a server with some servables, or with `demo`, and stop or kill it. Skips where it cannot be had."""
    servables = servables or ("demo",)
    venv, port = installed(), port or free_port()
    folder = Path(tempfile.mkdtemp(prefix="ms"))  # short: it puts sockets below it
    try:
        for name in servables:
            (folder / name).mkdir()
            (folder / name / "servable_config.py").write_text(SERVABLES[name])
        (folder / "serve.py").write_text(textwrap.dedent(SERVER))
        line = [venv / "bin" / "python", folder / "serve.py", str(port), str(megabytes), *servables]
        with (
            (folder / "server.log").open("w+") as log,
            subprocess.Popen(line, cwd=folder, stdout=log, stderr=log, start_new_session=True) as server,
        ):
            try:
                until(lambda: server.poll() is not None or "READY" in (folder / "server.log").read_text())
                assert server.poll() is None, (folder / "server.log").read_text()
                yield Server(f"http://127.0.0.1:{port}", folder / "demo" / "calls")
            finally:
                stop(server, kill=kill)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def stop(server, *, kill):
    """End the server, and its worker with it."""
    if not kill:
        server.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            server.wait(20)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def installed():
    """Return its own environment, made by whoever comes first: 133 MB and a quarter of a minute."""
    venv = cache() / "-".join([*PACKAGES, "python3.9"])
    with FileLock(f"{venv}.lock"):
        if not (venv / "complete").exists():
            make(venv)
    return venv


def make(venv):
    """Install it; skips the test where there is no Python 3.9, or nothing to install it from."""
    python = python39()
    if python is None:
        pytest.skip("needs Python 3.9 for MindSpore Serving: on the path, or by `uv python install 3.9`, or by pyenv")
    pip = [venv / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *PACKAGES]
    for line in ([python, "-m", "venv", "--clear", venv], pip):
        done = subprocess.run(line, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            pytest.skip(
                f"needs MindSpore Serving: pip install {' '.join(PACKAGES)} fails: {done.stderr.strip()[-300:]}"
            )
    (venv / "complete").touch()


def python39():
    """Return a Python 3.9 of this machine: on the path, or one that pyenv or uv has installed."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    uv = Path(os.environ.get("UV_PYTHON_INSTALL_DIR") or Path.home() / ".local" / "share" / "uv" / "python")
    homes = [*sorted(pyenv.glob("versions/3.9.*/bin/python3.9")), *sorted(uv.glob("cpython-3.9.*/bin/python3.9"))]
    for one in (*map(str, homes), shutil.which("python3.9")):
        if one and subprocess.run([one, "-c", ""], capture_output=True, check=False).returncode == 0:
            return one
    return None
