"""Jobs for tests: an input, a job file, ways to run it (in this process or as a command), and what came out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import requests
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.globs import plain, shared_folder
from pipeline.jobfile import load
from pipeline.listing import Listed, listing_table
from pipeline.run import new_run
from pipeline.run import run as start_run
from pipeline.storage import Store
from pipeline.verify import verify

BULKSCORE = Path(sys.executable).with_name("bulkscore")
ROOT = Path(__file__).parent.parent
SEND = ["sepal_length", "sepal_width", "petal_length", "petal_width"]
PASSWORD = {"DEMO_PASSWORD": "demo"}
LASTING = ("source", "source_row", "row_uuid", "prediction")
"""Columns of a result that no run may change."""


class Ran(NamedTuple):
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


def flowers(rows, start=0):
    """Return that many rows, all different: an id and four measures."""
    numbers = range(start, start + rows)
    columns = {"id": [f"iris-{number:05d}" for number in numbers]}
    for column, name in enumerate(SEND):
        columns[name] = [1.0 + ((number * 7 + column * 3) % 60) / 10 for number in numbers]
    return pa.table(columns)


def listed(pattern):
    """List files as planning does, each as a tuple; nothing found is an empty list."""
    patterns = [plain(str(pattern))]
    rows = listing_table(patterns, shared_folder(patterns), may_be_gone=True).to_pylist()
    return [Listed(**row) for row in rows]


def put(path, table, **options):
    """Write an input file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return path


def job_file(folder, url, *, file="job.yaml", **keys):
    """Write a job over `folder/in/*.parquet` into `folder/out`; `keys` are dotted, with `__` for the dot."""
    values = {
        "version": 1,
        "name": "iris",
        "input": {"path": "in/*.parquet", "send": SEND, "keep": ["id"]},
        "service": {"url": f"{url}/v1/infers/iris", "auth": token(url), "limits": {"rows": 10}},
        "output": {"path": "out"},
    }
    for dotted, value in keys.items():
        *above, last = dotted.split("__")
        place = values
        for key in above:
            place = place.setdefault(key, {})
        place[last] = value
    path = folder / file
    path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")  # JSON is YAML
    return path


def token(url, **keys):
    """Return the demo user's way in; the password is in the environment of every command of these tests."""
    account = dict.fromkeys(("user", "domain", "project"), "demo")
    return {"type": "token", "auth_url": f"{url}/v3", **account, "password": "${env:DEMO_PASSWORD}", **keys}


def call(*arguments, env=PASSWORD):
    """Run a command of `bulkscore` in this process."""
    done = CliRunner().invoke(app, [str(one) for one in arguments], env=env, prog_name="bulkscore")
    return Ran(done.exit_code, done.stdout, done.stderr)


def command(*arguments, env=PASSWORD, cwd=None):
    """Run `bulkscore` as a process, to its end."""
    with process(*arguments, env=env, cwd=cwd) as running:
        out, err = running.communicate(timeout=60)
    return Ran(running.returncode, out, err)


@contextmanager
def process(*arguments, env=PASSWORD, cwd=None, **options):
    """Start `bulkscore` as a process, and see it end."""
    line = [BULKSCORE, *map(str, arguments)]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(line, **pipes, text=True, env={**os.environ, **env}, cwd=cwd, **options) as running:
        try:
            yield running
        finally:
            running.kill()


def workers(pid):
    """Return the living worker processes of a run, oldest first; none where it is over."""
    try:
        started = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except OSError:
        return []
    return [one for one in map(int, started) if alive(one)]


def alive(pid):
    """Whether a process is there and not just waiting to be buried."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in b"ZX"
    except OSError:
        return False


def loaded(path, **sets):
    """Load a job file; `sets` are dotted keys with `__` for the dot."""
    return load(path, sets={key.replace("__", "."): text for key, text in sets.items()}, today=datetime.now(UTC).date())


def score(path, *, watch=lambda *_: nullcontext(), restart=False, probe=False, max_requests=None, **sets):
    """Run a job's engine in this process, without a command line and without a trial; returns its summary."""
    asked = {"watch": watch, "restart": restart, "probe": probe, "max_requests": max_requests}
    with mock.patch.dict(os.environ, PASSWORD):
        return start_run(loaded(path, **sets), new_run(), **asked)


def proved(out):
    """Return the breaches that `verify` names."""
    return verify(Store(str(out))).breaches


def results(out):
    """Read all results, in input order."""
    parts = [pq.read_table(path) for path in sorted((out / "results").glob("*.parquet"))]
    return pa.concat_tables(parts) if parts else None


def lasting(out):
    """Return what no run may change of every result, sorted by place."""
    return sorted(results(out).select(LASTING).to_pylist(), key=lambda row: (row["source"], row["source_row"]))


def letters(out):
    """Read all dead letters, in input order."""
    lines = (line for path in sorted((out / "errors").glob("*.jsonl")) for line in path.read_bytes().splitlines())
    return [json.loads(line) for line in lines]


def receipts(out):
    """Read all receipts, by name."""
    return {path.stem: json.loads(path.read_bytes()) for path in sorted((out / "receipts").glob("*.json"))}


def runs(out):
    """Read the summaries of all runs, oldest first."""
    paths = sorted((out / "runs").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    return [json.loads(path.read_bytes()) for path in paths]


def stats(url):
    """Ask the sandbox what it saw."""
    return requests.get(f"{url}/stats", timeout=10).json()


def until(condition, seconds=60.0):
    """Wait for a condition; fails when it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not come"
        time.sleep(0.002)


def files(folder):
    """List all files below a folder, relative to it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
