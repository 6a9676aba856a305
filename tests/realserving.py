"""The real MindSpore Serving, under a Python of its own: installed once for all runs, and started on loopback.

It has a servable of Python stages, which need neither a device nor MindSpore.
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

from jobs import until

PACKAGES = ["mindspore-serving==2.0.2", "packaging"]
SERVER = """
    import os, sys
    from mindspore_serving import server

    folder = os.path.dirname(os.path.abspath(__file__))
    server.start_servables(server.ServableStartConfig(folder, "demo", num_parallel_workers=1))
    server.start_restful_server("127.0.0.1:" + sys.argv[1], max_msg_mb_size=int(sys.argv[2]))
    print("READY", flush=True)
"""
SERVABLE = """
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
def running(*, port=None, megabytes=100, kill=False):
    """Start a server with the servable `demo`, and stop or kill it. Skips where it cannot be had."""
    venv, port = installed(), port or free_port()
    folder = Path(tempfile.mkdtemp(prefix="ms"))  # short: it puts sockets below it
    try:
        (folder / "demo").mkdir()
        (folder / "demo" / "servable_config.py").write_text(textwrap.dedent(SERVABLE))
        (folder / "serve.py").write_text(textwrap.dedent(SERVER))
        line = [venv / "bin" / "python", folder / "serve.py", str(port), str(megabytes)]
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
        pytest.skip("needs Python 3.9 for MindSpore Serving")
    pip = [venv / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *PACKAGES]
    for line in ([python, "-m", "venv", "--clear", venv], pip):
        done = subprocess.run(line, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            pytest.skip(
                f"needs MindSpore Serving: pip install {' '.join(PACKAGES)} fails: {done.stderr.strip()[-300:]}"
            )
    (venv / "complete").touch()


def python39():
    """Return a Python 3.9 of this machine: on the path, or one of pyenv's."""
    homes = sorted(Path.home().glob(".pyenv/versions/3.9.*/bin/python3.9"))
    for one in (*map(str, homes), shutil.which("python3.9")):
        if one and subprocess.run([one, "-c", ""], capture_output=True, check=False).returncode == 0:
            return one
    return None
