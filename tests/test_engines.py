"""The same job on another engine: Beam's own portable job service with a worker pool, both from PyPI."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from jobs import LASTING, PASSWORD, command, files, flowers, job_file, letters, put, receipts, results, stats, until

SAME_IN_LETTERS = ("source", "source_row", "row_uuid", "kind", "status", "code", "message", "row", "keep")
FAULTS = {"row:sepal_length=3.3": "MR.0105 always", 3: ["503"], 5: ["drop"]}


def free_port():
    """Find a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def listens(port):
    """Whether somebody accepts connections there."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@contextmanager
def listening(module, flag, environment):
    """Run a module of Beam's that listens on a port; yields the port. It ends with all that it started."""
    port = free_port()
    line = [sys.executable, "-m", module, flag, str(port)]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(line, **quiet, env=environment, start_new_session=True) as running:
        try:
            until(lambda: running.poll() is not None or listens(port))
            assert running.poll() is None, f"{module} ended"
            yield port
        finally:
            with suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)


@pytest.fixture
def engine():
    """Start an engine whose workers have these variables; called, it returns the arguments for the runner."""
    with ExitStack() as stack:

        def start(secrets):
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # workers start `python`
            environment = {**os.environ, **secrets, "PATH": path}
            portability, worker = "apache_beam.runners.portability", "apache_beam.runners.worker"
            jobs = stack.enter_context(listening(f"{portability}.local_job_service_main", "--port", environment))
            pool = stack.enter_context(listening(f"{worker}.worker_pool_main", "--service_port", environment))
            where = [f"--job_endpoint=localhost:{jobs}", f"--environment_config=localhost:{pool}"]
            return ["--", *where, "--environment_type=EXTERNAL"]

        yield start


def outcome(out):
    """Return what must be the same on every engine, in the order of the output."""
    died = [{key: letter[key] for key in SAME_IN_LETTERS} for letter in letters(out)]
    return results(out).select([*LASTING, "id"]).to_pylist(), died


def test_a_portable_engine_gives_the_same_answers(sandbox, engine, tmp_path):
    """Rows, order, ids, predictions and dead letters are those of the local runner; nothing is asked twice."""
    for part in range(3):
        put(tmp_path / "in" / f"{part}.parquet", flowers(200, start=200 * part))
    outcomes = {}
    for runner, arguments in {"local": [], "PortableRunner": engine(PASSWORD)}.items():
        url = sandbox(faults=FAULTS)
        keys = {"output__path": runner, "runner__name": runner, "errors__allow": 10}
        done = command("run", job_file(tmp_path, url, **keys), "--json", *arguments)
        assert done.code == 0, done.err
        assert command("verify", tmp_path / runner).code == 0
        seen = stats(url)
        assert seen["by_status"]["503"] == seen["dropped"] == 1
        assert seen["rows_answered"] == 590
        assert len(receipts(tmp_path / runner)) == 3
        assert (tmp_path / runner / "_SUCCESS").exists()
        outcomes[runner] = outcome(tmp_path / runner)
    scored, died = outcomes["local"]
    assert (len(scored), len(died)) == (590, 10)
    assert outcomes["PortableRunner"] == outcomes["local"]


def test_a_worker_without_the_secret_ends_the_run_with_its_name(sandbox, engine, tmp_path):
    """The machine that submits needs no secret; a worker that lacks it says so, once, and nobody hangs."""
    url = sandbox()
    put(tmp_path / "in" / "iris.parquet", flowers(100))
    job = job_file(tmp_path, url, runner__name="PortableRunner")
    done = command("run", job, *engine({}), env={})
    assert done.code == 2, done.err
    [line] = [line for line in done.err.splitlines() if line.startswith("ERROR")]
    assert "service.auth.password" in line
    assert "DEMO_PASSWORD" in line
    assert "Traceback" not in done.err
    assert (stats(url)["requests"], stats(url)["tokens_issued"]) == (0, 0)
    assert files(tmp_path / "out" / "results") == []


def test_an_engine_that_does_not_exist_is_one_line(sandbox, tmp_path):
    """It is no runner of Beam: the run ends before anything is asked, with what it looked for."""
    put(tmp_path / "in" / "iris.parquet", flowers(10))
    job = job_file(tmp_path, sandbox(), runner__name="NoSuchRunner")
    done = command("run", job)
    assert done.code == 2
    assert "runner.name" in done.err
    assert "NoSuchRunner" in done.err
    assert "Traceback" not in done.err
