"""Runs a client as a process of its own and measures it from outside; runs the server and reads its counters.

Only the standard library is imported: a child is charged with its parent's peak memory until it calls exec, so the
process that measures must stay smaller than what it measures.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.request import urlopen

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent


class ClientError(Exception):
    """A client that did not do its work; the text says which, how, and its last words."""


class Measured(NamedTuple):
    cpu: float  # seconds, user + system, of the process and the children it waited for
    wall: float  # seconds
    peak_mb: float  # of the largest of these processes
    said: str  # stdout and stderr


def measure(name: str, command: list[str], folder: Path, timeout: float = 300.0) -> Measured:
    """Run `command` in `folder` to its end. Raises ClientError: it did not start, exited with other than 0, or hung."""
    started = time.perf_counter()
    with (folder / "log").open("w+") as log:
        try:
            process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
        except OSError as error:
            raise ClientError(f"{name} did not start: {error}") from None
        timer = threading.Timer(timeout, os.killpg, (process.pid, signal.SIGKILL))
        timer.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            timer.cancel()
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        said = log.read()
    if process.returncode:
        how = f"exit {process.returncode}" if wall < timeout else f"still running after {timeout:.0f} s"
        last = "\n    ".join(said.strip().splitlines()[-12:]) or "(it printed nothing)"
        raise ClientError(f"{name} failed: {how}: {' '.join(command)}\n    {last}")
    return Measured(usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss * 1024 / 1e6, said)


@contextlib.contextmanager
def running(command: list[str], folder: Path) -> Iterator[subprocess.Popen]:
    """Start a client of which nothing is left behind."""
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if process.returncode is None:
            process.wait()


def peak_mb(process: subprocess.Popen) -> float:
    """Return the peak memory so far; 0 if the process has ended."""
    told = Path(f"/proc/{process.pid}/status").read_text()
    return next((int(line.split()[1]) * 1024 / 1e6 for line in told.splitlines() if line.startswith("VmHWM")), 0.0)


@contextlib.contextmanager
def server(*arguments: str, script: str = "server.py") -> Iterator[str]:
    """Run a server of this folder beside us; yield the URL to call."""
    command = [sys.executable, str(HERE / script), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            if not (url := process.stdout.readline().strip()):
                raise SystemExit("bench: the server did not start: its last words are above")
            yield url
        finally:
            process.terminate()


def stats(url: str) -> dict[str, float]:
    with urlopen(url.partition("/v1/")[0] + "/stats", timeout=10) as reply:
        return json.load(reply)
