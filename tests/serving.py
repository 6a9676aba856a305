"""Model servers of others as processes on loopback: started with a group of their own, and ended with it."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import contextmanager, suppress

import requests

from jobs import until


@contextmanager
def started(line, folder, health, *, kill=False, **environment):
    """Start a server in a folder, and wait until the URL `health` answers; at the end stop its group, or kill it."""
    log = folder / "server.log"
    with (
        log.open("w") as said,
        subprocess.Popen(
            [*map(str, line)],
            cwd=folder,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        ) as server,
    ):
        try:
            until(lambda: server.poll() is not None or answers(health), seconds=100)
            assert server.poll() is None, log.read_text()
            yield
        finally:
            end(server, signal.SIGKILL if kill else signal.SIGTERM)


def answers(url):
    """Whether a server is there, and its models are; one that asks for a token is, too."""
    with suppress(requests.RequestException):
        return requests.get(url, timeout=30).status_code < 500
    return False


def end(server, how):
    """End a process and all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(server.pid, how)
    with suppress(subprocess.TimeoutExpired):
        server.wait(20)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()
