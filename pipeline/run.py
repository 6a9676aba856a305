"""One run: lock, plan, score until nothing is left, judge the whole output, report."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from filelock import FileLock, Timeout

from pipeline import __version__
from pipeline.errors import BulkscoreError, Held, Incomplete, JobError, StorageFailed
from pipeline.gather import draft
from pipeline.jobprint import changed_answers, fingerprint, resolved
from pipeline.ledger import STOP, SUCCESS, Planned, counted, decoded, read_plans, read_stop, write_plan, write_stop
from pipeline.plan import merged, remaining
from pipeline.progress import Progress
from pipeline.session import session
from pipeline.storage import Store, is_draft, storing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from schemas.job import Job
    from schemas.plan import Plan, Work
    from schemas.receipt import Receipt

LOCK_SECONDS: Final = 10.0
_resolved: Final = msgspec.json.Decoder(dict[str, Any])
_CLEARED: Final = ("receipts", "results", "errors", "plan")
"""Receipts first: a crash in between must leave none whose objects are gone."""

Watch = Callable[[Progress, int], AbstractContextManager[None]]


class Summary(NamedTuple):
    """What a run did, and what the whole output is now. Counts are rows unless they say otherwise."""

    run: str
    job: str
    output: str
    planned: int
    scored: int
    dead: int
    left: int
    scored_by_this_run: int
    requests: int
    retries: int
    seconds: float
    exit_code: int
    message: str


def new_run() -> str:
    """Return a name for a run: when it began, and which of those that began then."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


def run(job: Job, name: str, *, watch: Watch, restart: bool = False, arguments: Sequence[str] = ()) -> Summary:
    """Do what is not yet done of a job and judge its output.

    `watch(progress, rows)` is entered while rows are scored; `arguments` go to the Beam runner. Raises BulkscoreError
    for what keeps a run from starting; what ends it later is in the summary.
    """
    store = Store(job.output.path)
    _own(store)
    with lock(store):
        planned = Planned(()) if restart else read_plans(store)
        if not restart:
            _unchanged(store, job)
        plan = draft(job, planned, name)
        if restart:  # only now: a job that cannot be planned must not cost what is there
            _clear(store)
        return _converge(job, store, name, planned, plan, watch, arguments)


def _converge(
    job: Job, store: Store, name: str, planned: Planned, plan: Plan | None, watch: Watch, arguments: Sequence[str]
) -> Summary:
    started = time.monotonic()
    store.write("job.json", _json({**resolved(job), "fingerprint": fingerprint(job), "bulkscore": __version__}))
    if plan:
        store.delete(SUCCESS)
        write_plan(store, plan, planned.count)
        planned.add(plan)
    before = counted(store, planned.versions)
    problem = _score(job, store, name, planned, watch, arguments)
    after = counted(store, planned.versions)
    _remove_strays(store, after)
    summary = _summary(job, store, name, planned, before, after, problem, time.monotonic() - started)
    if summary.exit_code == 0:
        store.delete(STOP)
        store.write(SUCCESS, b"")
    else:
        store.delete(SUCCESS)
    store.write(f"runs/{name}.json", _json(summary._asdict()))
    return summary


def _score(
    job: Job, store: Store, name: str, planned: Planned, watch: Watch, arguments: Sequence[str]
) -> BulkscoreError | None:
    """Run pipelines until nothing is left; return what ended it before that."""
    stopping = session(name).stopping
    left: list[Work] | None = None
    while not stopping:
        todo = remaining(planned.sources, planned.splits, counted(store, planned.versions))
        if not todo:
            return None
        if todo == left:
            return StorageFailed("a worker was lost before it committed anything; the same command resumes")
        left = todo
        store.delete(SUCCESS)
        store.delete(STOP)
        try:
            with watch(session(name).progress, sum(work.stop - work.start for work in todo)):
                _pipeline(job, name, merged(todo) if job.runner.name == "local" else todo, arguments)
        except StorageFailed as error:
            return error
        stopped = read_stop(store, name)
        if stopped:
            stopping.stop(stopped)
    return stopping.reason


def _pipeline(job: Job, name: str, todo: Iterable[Work], arguments: Sequence[str]) -> None:
    from pipeline.beam import run_pipeline  # Beam takes a second to import, and a run with nothing to do needs none

    run_pipeline(job, name, todo, arguments)


def _summary(
    job: Job,
    store: Store,
    name: str,
    planned: Planned,
    before: Sequence[Receipt],
    after: Sequence[Receipt],
    problem: BulkscoreError | None,
    seconds: float,
) -> Summary:
    known = {receipt.name for receipt in before}
    fresh = [receipt for receipt in after if receipt.name not in known]
    scored, dead = sum(one.scored for one in after), sum(one.dead for one in after)
    left = planned.rows - scored - dead
    problem = problem or _verdict(job, store, planned.rows, dead, left)
    return Summary(
        run=name,
        job=job.name,
        output=store.uri,
        planned=planned.rows,
        scored=scored,
        dead=dead,
        left=left,
        scored_by_this_run=sum(one.scored for one in fresh),
        requests=sum(one.requests for one in fresh),
        retries=session(name).progress.read()["retries"],
        seconds=round(seconds, 3),
        exit_code=problem.exit_code if problem else 0,
        message=str(problem) if problem else "",
    )


def _verdict(job: Job, store: Store, planned: int, dead: int, left: int) -> BulkscoreError | None:
    if left:
        return StorageFailed(f"{left} of {planned} rows are not scored yet; the same command resumes")
    if not job.errors.allow.permits(dead, planned):
        return Incomplete(
            f"{dead} of {planned} rows are dead letters, more than errors.allow ({job.errors.allow}); "
            f"see why in {store.uri}/errors"
        )
    return None


def _own(store: Store) -> None:
    """Refuse a folder that somebody else fills."""
    if not store.exists("job.json") and not store.is_empty():
        raise JobError(f"output.path: {store.uri} is not empty and has no job.json, so it is not ours; give a new path")


def _unchanged(store: Store, job: Job) -> None:
    """Refuse a job whose answers would differ from those that are there."""
    if store.exists("job.json"):
        changes = changed_answers(decoded(store, "job.json", _resolved), job)
        if changes:
            raise JobError(
                f"{store.uri} was made by a job that answers differently: {'; '.join(changes)}; "
                "take a new output.path, or --restart to score everything again"
            )


def _clear(store: Store) -> None:
    """Remove all but `runs/`, and `job.json`, without which the folder would not be ours."""
    for name in (SUCCESS, STOP):
        store.delete(name)
    for folder in _CLEARED:
        store.delete_folder(folder)


def _remove_strays(store: Store, receipts: Iterable[Receipt]) -> None:
    """Remove objects that no counting receipt names, receipts that do not count, and the drafts of a crash."""
    named = {f"receipts/{receipt.name}.json" for receipt in receipts}
    named |= {one.name for receipt in receipts for one in (receipt.results, receipt.errors) if one}
    for folder in ("results", "errors", "receipts"):
        for name in store.names(folder):
            if f"{folder}/{name}" not in named:
                store.delete(f"{folder}/{name}")
    for folder in (".", "plan", "runs"):
        for name in filter(is_draft, store.names(folder)):
            store.delete(f"{folder}/{name}")


@contextmanager
def lock(store: Store, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold an output against other runs on this machine; the lock of a process that died is free.

    Raises Held after `seconds`. Outputs on object stores have none: correctness rests on receipts alone.
    """
    if store.local is None:
        yield
        return
    with storing("write", store.uri):
        store.local.mkdir(parents=True, exist_ok=True)
        held = FileLock(store.local / ".lock")
        try:
            held.acquire(timeout=seconds)
        except Timeout:
            raise Held(f"another run holds {store.uri}; wait for it, or give this one another output.path") from None
    try:
        yield
    finally:
        held.release()


def interrupt(job: Job, name: str) -> None:
    """Ask all workers of a run to stop sending and to commit: those of this process at once, others by `stop.json`."""
    session(name).stopping.stop()
    if job.runner.name != "local":
        write_stop(Store(job.output.path), name, StorageFailed("interrupted; the same command resumes"))


def _json(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=1)
