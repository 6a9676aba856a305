"""What all workers of one run share within a process: how to stop, what is done, and one scorer for all of them."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from pipeline.errors import StorageFailed
from pipeline.ledger import write_stop
from pipeline.memory import return_large_blocks
from pipeline.progress import Progress
from pipeline.read import FILES
from pipeline.score import Scorer
from pipeline.stopping import Stopping
from pipeline.storage import Store

if TYPE_CHECKING:
    from pipeline.errors import BulkscoreError
    from schemas.job import Job
    from schemas.plan import Order


@dataclass
class Session:
    """One run in this process. The window must be one for each service and process, so the scorer is one too."""

    stopping: Stopping = field(default_factory=Stopping)
    progress: Progress = field(default_factory=Progress)
    interrupted: int | None = None
    """The exit code for the signal that asked for the end, if one did."""
    scorer: Scorer | None = None
    users: int = 0


_LOCK: Final = threading.RLock()  # a signal's handler may come while its thread has it
_SESSIONS: Final[dict[str, Session]] = {}


def session(run: str) -> Session:
    """Return the session of a run, new where there is none."""
    with _LOCK:
        return _SESSIONS.setdefault(run, Session())


def acquire(job: Job, order: Order) -> Scorer:
    """Return the run's scorer in this process; each `acquire` needs its `release`."""
    shared = session(order.run)
    with _LOCK:
        if shared.scorer is None:
            return_large_blocks(of_arrow=job.input.format in FILES)
            shared.scorer = Scorer(job, order, stopping=shared.stopping, progress=shared.progress)
        shared.users += 1
        return shared.scorer


def refuse(job: Job, run: str, error: BulkscoreError) -> None:
    """Stop the run everywhere because this worker cannot take part in it."""
    session(run).stopping.stop(error)
    with suppress(StorageFailed):
        write_stop(Store(job.output.path), run, error)


def release(run: str) -> None:
    """Let the scorer go; the last one closes it."""
    shared = session(run)
    with _LOCK:
        shared.users -= 1
        scorer, shared.scorer = (shared.scorer, None) if shared.users == 0 else (None, shared.scorer)
    if scorer:
        scorer.close()
