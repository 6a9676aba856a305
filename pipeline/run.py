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
from msgspec import structs

from pipeline import __version__
from pipeline.causes import cause_of
from pipeline.changes import changed, own, readable, with_letters
from pipeline.columns import fixed
from pipeline.errors import OK, BulkscoreError, Held, Incomplete, JobError, StorageFailed
from pipeline.gather import draft
from pipeline.jobprint import fingerprint, resolved
from pipeline.ledger import (
    STOP,
    SUCCESS,
    Planned,
    Receipts,
    read_plans,
    read_stop,
    take_back,
    write_plan,
    write_stop,
)
from pipeline.plan import Changed, asked, merged
from pipeline.progress import Progress
from pipeline.session import session
from pipeline.storage import Store, is_draft, storing
from pipeline.supervisor import supervise
from pipeline.trial import FOLDER
from schemas.plan import Order

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from pipeline.ledger import NewPlan
    from pipeline.plan import How, Tally
    from schemas.job import Job
    from schemas.plan import Work
    from schemas.receipt import Receipt

LOCK_SECONDS: Final = 10.0
_CLEARED: Final = ("receipts", "results", "errors", "plan")
"""Receipts first: a crash in between must leave none whose objects are gone."""

_INTERRUPTED: Final = "interrupted; the same command resumes"

Watch = Callable[[Progress, int], AbstractContextManager[None]]


class Summary(NamedTuple):
    """What a run did, and what the whole output is now. Counts are rows; `unread` are files not read to their end.

    Of those files only the rows that are done are among the planned ones. `cause` is what most dead letters died of.
    """

    run: str
    job: str
    output: str
    planned: int
    scored: int
    dead: int
    cause: str
    left: int
    unread: int
    scored_by_this_run: int
    requests: int
    retries: int
    seconds: float
    exit_code: int
    message: str


def new_run() -> str:
    """Return a name for a run: when it began, and which of those that began then."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


def run(
    job: Job,
    name: str,
    *,
    watch: Watch,
    restart: bool = False,
    how: How | None = None,
    probe: bool = True,
    max_requests: int | None = None,
    arguments: Sequence[str] = (),
) -> Summary:
    """Do what is not yet done of a job and judge its output.

    `watch(progress, rows)` is entered while rows are scored; `how` says what to do about planned files and keys that
    changed; `arguments` go to the Beam runner. Raises BulkscoreError for what keeps a run from starting; what ends it
    later is in the summary.
    """
    store = Store(job.output.path)
    own(store)
    with lock(store):
        receipts = Receipts(store)
        if not restart:
            take_back(store, receipts)  # the run that was refused may not have come to it
        planned = Planned(()) if restart else read_plans(store)
        change = Changed() if restart else changed(store, job, planned, receipts, how)
        plan = draft(job, store, planned, name, change)
        if restart:  # only now: a job that cannot be planned must not cost what is there
            _clear(store)
        order = Order(name, probe, max_requests)
        return _Run(job, order, store, planned, receipts, watch, arguments, planned.remaining).converge(plan)


def retry(job: Job, name: str, *, watch: Watch, kinds: Collection[str] = (), arguments: Sequence[str] = ()) -> Summary:
    """Ask the dead letters of an output again, once, and put what comes of it in their place; the rest as for `run`.

    `kinds` says which letters; without any, all. Rows that are not done yet stay so. Raises BulkscoreError for what
    keeps it from starting, such as rows that could not be read again as they were.
    """
    store = Store(job.output.path)
    own(store)
    unplanned = JobError(f"output.path: nothing is planned in {store.uri}, so there are no dead letters; run the job")
    if not store.exists("job.json"):
        raise unplanned
    with lock(store):
        receipts = Receipts(store)
        take_back(store, receipts)
        planned = read_plans(store)
        if not planned.count:
            raise unplanned
        try:
            changed(store, job, planned, receipts, None)
        except JobError as error:
            raise JobError(f"{error}; retry asks by the new value after `bulkscore run --changed keep`") from None
        wanted = with_letters(store, planned.counting(receipts.valid()), kinds)
        readable(store, job, planned.healing(wanted, kinds))
        names = {one.name for one in wanted}

        def todo(counted: Iterable[Receipt]) -> list[Work]:
            return planned.healing((one for one in counted if one.name in names), kinds)

        # What died once may well die again: that is no sign of a wrong contract.
        order = Order(name, probe=False)
        resumes = "bulkscore run does that"
        return _Run(job, order, store, planned, receipts, watch, arguments, todo, resumes).converge(None)


class _Run(NamedTuple):
    """A run that holds its output; `todo` says what it has to do, by the receipts that count."""

    job: Job
    order: Order
    store: Store
    planned: Planned
    receipts: Receipts
    watch: Watch
    arguments: Sequence[str]
    todo: Callable[[list[Receipt]], list[Work]]
    resumes: str = "the same command resumes"

    def converge(self, plan: NewPlan | None) -> Summary:
        """Write down what is new, score what is left, and judge the whole output."""
        started = time.monotonic()
        if not self.store.exists("job.json"):
            self._sign()  # first, so that the folder is ours; else last, so that a new job has its plan
        if plan:
            self.store.delete(SUCCESS)
            write_plan(self.store, plan, self.planned.count)
            self.planned.add(plan.plan)
        self._sign()
        before = self._counting()
        problem = self._score()
        take_back(self.store, self.receipts)
        after = self._counting()
        _remove_strays(self.store, after, self.planned)
        summary = self._summary(before, after, problem, time.monotonic() - started)
        if summary.exit_code == 0:
            self.store.delete(STOP)
            self.store.write(SUCCESS, b"")
        else:
            self.store.delete(SUCCESS)
        self.store.write(f"runs/{self.order.run}.json", _json(summary._asdict()))
        return summary

    def _sign(self) -> None:
        signed = {**resolved(self.job), "fingerprint": fingerprint(self.job), "bulkscore": __version__}
        self.store.write("job.json", _json(signed))

    def _counting(self) -> list[Receipt]:
        return self.planned.counting(self.receipts.valid())

    def _allowed(self) -> int | None:
        """Return how many more dead letters there may be; None where that hangs on rows that nobody has counted."""
        tally = self.planned.tally(self._counting())
        allow = self.job.errors.allow
        return None if allow.percent and tally.unread else max(0, allow.of(tally.planned) - tally.dead)

    def _score(self) -> BulkscoreError | None:
        """Run pipelines until nothing is left; return what ended it before that."""
        stopping = session(self.order.run).stopping
        job = fixed(self.job, self.planned.columns)
        left: list[Work] | None = None
        while not stopping:
            todo = self.todo(self._counting())
            if not todo:
                return None
            if todo == left:
                return StorageFailed("a worker was lost before it committed anything; the same command resumes")
            left = todo
            healing = todo[0].heal is not None  # what dies again was a dead letter before
            order = structs.replace(self.order, allowed=None if healing else self._allowed())
            self.store.delete(SUCCESS)
            self.store.delete(STOP)
            if stopping:  # its word to workers elsewhere may just have been deleted
                break
            try:
                with self.watch(session(self.order.run).progress, sum(map(asked, todo))):
                    _pipelines(job, order, todo, self.arguments)
            except StorageFailed as error:
                return error
            stopped = read_stop(self.store, self.order.run)
            if stopped:
                stopping.stop(stopped)
        return stopping.reason

    def _summary(
        self, before: list[Receipt], after: list[Receipt], problem: BulkscoreError | None, seconds: float
    ) -> Summary:
        old = {receipt.name for receipt in before}
        fresh = [receipt for receipt in after if receipt.name not in old]
        tally = self.planned.tally(after)
        problem = problem or _unhealed(self.todo(after)) or _verdict(self.job, tally, self.resumes)
        cause = cause_of(self.store, after)
        exit_code, message = (problem.exit_code, str(problem)) if problem else (OK, "")
        if isinstance(problem, Incomplete):
            message = "; ".join(filter(None, (message, cause, f"see why in {self.store.uri}/errors")))
        shared = session(self.order.run)
        if shared.interrupted and exit_code not in {OK, Incomplete.exit_code}:
            exit_code, message = shared.interrupted, _INTERRUPTED
        counts = shared.progress.read()
        return Summary(
            run=self.order.run,
            job=self.job.name,
            output=self.store.uri,
            planned=tally.planned,
            scored=tally.scored,
            dead=tally.dead,
            cause=cause,
            left=tally.left,
            unread=tally.unread,
            scored_by_this_run=tally.scored - self.planned.tally(before).scored,  # what is healed was copied in part
            requests=max(counts["requests"], sum(one.requests for one in fresh)),  # workers elsewhere tell by receipts
            retries=counts["retries"],
            seconds=round(seconds, 3),
            exit_code=exit_code,
            message=message,
        )


def _pipelines(job: Job, order: Order, todo: Sequence[Work], arguments: Sequence[str]) -> None:
    """Run one pipeline, or one for each local worker."""
    local = job.runner.name == "local"
    if local and job.runner.workers > 1:
        supervise(job, order, todo, arguments)
        return
    from pipeline.beam import run_pipeline  # Beam takes a second to import, and a run with nothing to do needs none

    run_pipeline(job, order, merged(todo) if local else todo, arguments)


def _unhealed(left: Iterable[Work]) -> BulkscoreError | None:
    letters = sum(one.heal.receipt.dead for one in left if one.heal)
    return StorageFailed(f"{letters} dead letters were not tried again; the same command does it") if letters else None


def _verdict(job: Job, tally: Tally, resumes: str) -> BulkscoreError | None:
    if tally.unread:
        return StorageFailed(f"{tally.unread} files are not read to their end yet; {resumes}")
    if tally.left:
        return StorageFailed(f"{tally.left} of {tally.planned} rows are not scored yet; {resumes}")
    if not job.errors.allow.permits(tally.dead, tally.planned):
        return Incomplete(
            f"{tally.dead} of {tally.planned} rows are dead letters, more than errors.allow ({job.errors.allow})"
        )
    return None


def _clear(store: Store) -> None:
    """Remove all but `runs/`, and `job.json`, without which the folder would not be ours."""
    for name in (SUCCESS, STOP):
        store.delete(name)
    for folder in _CLEARED:
        store.delete_folder(folder)


def _remove_strays(store: Store, receipts: Iterable[Receipt], planned: Planned) -> None:
    """Remove objects that no counting receipt names, receipts that do not count, old listings, and a crash's drafts."""
    named = {f"receipts/{receipt.name}.json" for receipt in receipts}
    named |= {one.name for receipt in receipts for one in (receipt.results, receipt.errors) if one}
    for folder in ("receipts", "results", "errors"):  # so that a crash leaves no receipt whose objects are gone
        for name in store.names(folder):
            if f"{folder}/{name}" not in named:
                store.delete(f"{folder}/{name}")
    store.delete_empty("errors")  # as if nothing had ever died
    listings = {source.uri for source in planned.sources.values() if source.listing}
    for name in store.names("plan"):  # a later plan may be in the making: it is another run's
        number = name.partition("-")[0]
        ours = name.endswith(".parquet") and number.isdecimal() and int(number) < planned.count
        if ours and f"plan/{name}" not in listings:
            store.delete(f"plan/{name}")
    store.delete_folder(FOLDER)
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


def interrupt(job: Job, name: str, exit_code: int) -> None:
    """Ask all workers of a run to stop sending and to commit: local ones at once, others by `stop.json`.

    `exit_code` is that of the run, if it leaves anything to do.
    """
    shared = session(name)
    shared.interrupted = exit_code
    shared.stopping.stop()
    if job.runner.name != "local":
        write_stop(Store(job.output.path), name, StorageFailed(_INTERRUPTED))


def _json(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=1)
