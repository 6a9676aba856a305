"""One worker process of a local run, at the other end of its supervisor's pipe."""

from __future__ import annotations

import os
import threading
import time
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Final

from pipeline.errors import BulkscoreError
from pipeline.session import session
from pipeline.stopping import Stopped
from pipeline.supervisor import Report

if TYPE_CHECKING:
    from pipeline.session import Session
    from pipeline.supervisor import Task

REPORT_SECONDS: Final = 0.25


class _Line:
    """The pipe to the supervisor. Thread-safe."""

    def __init__(self, pipe: Connection, shared: Session) -> None:
        self._pipe = pipe
        self._shared = shared
        self._lock = threading.Lock()

    def report(self, *, ended: bool = False, failure: Exception | None = None) -> None:
        """Say what is done, and why the run has to stop, if it has to."""
        with self._lock, suppress(OSError):  # nobody hears it: `obey` ends this process
            counts, reason = self._shared.progress.read(), self._shared.stopping.reason
            self._pipe.send(Report(counts, reason, ended, failure))

    def keep_reporting(self) -> None:
        """Report now and then, and at once when the run has to stop."""
        with suppress(Stopped):
            while True:
                self._shared.stopping.wait(REPORT_SECONDS)
                self.report()
        while True:
            self.report()
            time.sleep(REPORT_SECONDS)

    def obey(self) -> None:
        """Stop when told to; end at once when there is nobody any more who could tell: the output is free then."""
        with suppress(EOFError, OSError):
            while True:
                self._shared.stopping.stop(self._pipe.recv())
        os._exit(1)


def main(descriptor: int) -> None:
    """Do the task that comes down the pipe."""
    pipe = Connection(descriptor)
    try:
        task: Task = pipe.recv()
    except (EOFError, OSError):  # the run is over before it began
        return
    line = _Line(pipe, session(task.order.run))
    for target in (line.obey, line.keep_reporting):
        threading.Thread(target=target, name=target.__name__, daemon=True).start()
    line.report(ended=True, failure=_done(task))


def _done(task: Task) -> Exception | None:
    """Run the pipeline; return what ended it, if that was an error."""
    try:
        from pipeline.beam import run_pipeline  # takes a second or two, in which the supervisor may die

        run_pipeline(*task)
    except BulkscoreError as error:
        return error
    except Exception:  # noqa: BLE001 - the supervisor raises it
        return RuntimeError(f"a worker failed:\n{traceback.format_exc()}")
    return None
