"""Local workers: each a process with a pipeline over its share of the work; their death is survived.

A worker is a fresh interpreter at the other end of a pipe. Its task goes down, and later why it has to stop; what it
has done comes up. By the pipe alone each end learns at once that the other is gone, whatever took it: the supervisor
gives what was not committed to another worker, and a worker ends. Signals are the supervisor's business: workers never
see those that a terminal sends to everybody.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from multiprocessing.connection import Pipe, wait
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec import structs

from pipeline.errors import BulkscoreError, StorageFailed
from pipeline.ledger import Receipts
from pipeline.plan import merged, shares
from pipeline.progress import NAMES
from pipeline.session import session
from pipeline.storage import Store
from pipeline.trial import forget

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from multiprocessing.connection import Connection

    from schemas.job import Job
    from schemas.plan import Order, Work

FRUITLESS_DEATHS: Final = 3
"""So many workers in a row may die before they have committed anything of the same share."""

_TURN_SECONDS: Final = 0.1
"""How long a signal may go unseen: its handler may not touch the pipes."""

_AGAIN: Final = "the same command resumes"
_MAIN: Final = "import sys; sys.path[:] = sys.argv[2:]; from pipeline.worker import main; main(int(sys.argv[1]))"
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Task(NamedTuple):
    """What a worker is to do; secrets are in it by reference alone."""

    job: Job
    order: Order
    work: Sequence[Work]
    arguments: Sequence[str]


class Report(NamedTuple):
    """What a worker has done so far: its counters, and the reason for which the whole run has to stop, if it met one.

    The last one says that the pipeline has `ended`, and of what if it failed: a defect as its traceback.
    """

    counts: dict[str, int]
    reason: BulkscoreError | None = None
    ended: bool = False
    failure: Exception | None = None


def supervise(job: Job, order: Order, work: Sequence[Work], arguments: Sequence[str]) -> None:
    """Score work in `runner.workers` processes; returns when all of them have ended.

    Why the run has to stop, if so, is in the session's `stopping` then. Raises the error that a pipeline could not even
    start for, and RuntimeError with the traceback of a worker's defect.
    """
    parts = [merged(share) for share in shares(work, job.runner.workers)]
    runner = job.runner.model_copy(update={"workers": len(parts)})  # the rate is divided among those that there are
    job = job.model_copy(update={"runner": runner})
    _Supervisor(job, order).run([Task(job, order, part, arguments) for part in parts])


class _Worker:
    """One process with its task, and our end of the pipe to it. `fruitless` counts the deaths before it."""

    def __init__(self, task: Task, fruitless: int = 0) -> None:
        self.task = task
        self.fruitless = fruitless
        self.counts = dict.fromkeys(NAMES, 0)
        self.ended = False
        self.pipe, theirs = Pipe()
        with theirs:
            self.process = _start(theirs.fileno())

    def send(self, message: Task | BulkscoreError | None) -> None:
        """Send down the pipe; that a worker is gone already is seen when it is heard."""
        with suppress(OSError):
            self.pipe.send(message)

    def hear(self) -> Report | None:
        """Return what comes up the pipe; None when the worker is gone."""
        try:
            report: Report = self.pipe.recv()
        except (EOFError, OSError, UnpicklingError):  # it may die in the middle of a word
            return None
        return report


class _Supervisor:
    """The workers of one run, by the pipes to them."""

    def __init__(self, job: Job, order: Order) -> None:
        self._store = Store(job.output.path)
        self._stopping = session(order.run).stopping
        self._progress = session(order.run).progress
        self._crew: dict[Connection, _Worker] = {}
        self._failure: Exception | None = None

    def run(self, tasks: Sequence[Task]) -> None:
        """Let workers do these tasks."""
        try:
            for worker in [self._hire(task) for task in tasks]:  # all of them, before any is waited for
                if worker:
                    worker.send(worker.task)
            self._listen()
        finally:
            for worker in self._crew.values():  # none is left but for a failure of our own
                worker.process.kill()
                worker.process.wait()
        if self._failure:
            raise self._failure

    def _listen(self) -> None:
        told = False
        while self._crew:
            for pipe in wait(list(self._crew), _TURN_SECONDS):
                self._hear(self._crew[pipe])  # type: ignore[index] # it gives back what it was given
            if self._stopping and not told:
                told = True
                for worker in self._crew.values():
                    worker.send(self._stopping.reason)

    def _hire(self, task: Task, fruitless: int = 0) -> _Worker | None:
        try:
            worker = _Worker(task, fruitless)
        except OSError as error:
            self._stopping.stop(StorageFailed(f"cannot start a worker process: {error.strerror}; {_AGAIN}"))
            return None
        self._crew[worker.pipe] = worker
        return worker

    def _hear(self, worker: _Worker) -> None:
        report = worker.hear()
        if report is None:
            self._bury(worker)
            return
        self._count(worker, report.counts)
        worker.ended = worker.ended or report.ended
        self._failure = self._failure or report.failure
        if report.reason or report.failure:
            self._stopping.stop(report.reason)

    def _count(self, worker: _Worker, counts: dict[str, int]) -> None:
        self._progress.add(**{name: count - worker.counts[name] for name, count in counts.items()})
        worker.counts = counts

    def _bury(self, worker: _Worker) -> None:
        """Take leave of a worker; unless it had ended, or the run does, another one takes over what it leaves."""
        del self._crew[worker.pipe]
        worker.pipe.close()
        code = worker.process.wait()
        self._count(worker, {**worker.counts, "in_flight": 0})
        if worker.ended or self._stopping:
            return
        try:
            forget(self._store, worker.task.order.run)
            left = _left(worker.task, Receipts(self._store))
        except BulkscoreError as error:
            self._stopping.stop(error)
            return
        if left:
            self._replace(worker, left, how(code))

    def _replace(self, worker: _Worker, left: list[Work], cause: str) -> None:
        fruitless = worker.fruitless + 1 if left == worker.task.work else 0
        if fruitless == FRUITLESS_DEATHS:
            told = f"{fruitless} workers in a row were lost before they committed anything; the last one {cause}"
            self._stopping.stop(StorageFailed(f"{told}; {_AGAIN}"))
            return
        print(f"* a worker {cause}; another one takes over", file=sys.stderr, flush=True)
        heir = self._hire(worker.task._replace(work=left, order=_rest(worker)), fruitless)
        if heir:
            heir.send(heir.task)


def _left(task: Task, receipts: Receipts) -> list[Work]:
    return [structs.replace(one, start=start, stop=stop) for one in task.work for start, stop in receipts.left(one)]


def _rest(worker: _Worker) -> Order:
    """Return what is asked of the one that takes a worker's place: its requests are sent. Each has a part of them."""
    order, workers = worker.task.order, worker.task.job.runner.workers
    if order.max_requests is None:
        return order
    return structs.replace(order, max_requests=max(workers, order.max_requests - worker.counts["requests"] * workers))


def how(code: int) -> str:
    """Say how a process died, by its exit code as Python has it."""
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
    return f"died of {name}" + (" (as when memory runs out)" if -code == signal.SIGKILL else "")


def _start(pipe: int) -> subprocess.Popen[bytes]:
    """Start an interpreter that shares with this one where modules are, one end of a pipe, and stderr."""
    with _held_back():
        return subprocess.Popen(  # noqa: S603 - ours
            [sys.executable, "-c", _MAIN, str(pipe), *sys.path],
            pass_fds=[pipe],
            stdin=subprocess.DEVNULL,
            stdout=2,  # ours is for the answer
        )


@contextmanager
def _held_back() -> Iterator[None]:
    """Block our signals: what is started meanwhile never gets them, from its first instruction to its last."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
