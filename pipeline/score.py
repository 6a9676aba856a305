"""One split from its rows to its receipts: read -> encode, pack -> converse -> write. Knows nothing of Beam."""

from __future__ import annotations

import random
import threading
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from heapq import heappop, heappush
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from pipeline.arrowtypes import types_of
from pipeline.auth import open_auth
from pipeline.caller import Caller
from pipeline.columns import columns_of, encoder_of, wanted_of
from pipeline.contract import RowCheck, promised, rows_of
from pipeline.converse import Setting
from pipeline.course import Course, Told
from pipeline.errors import BulkscoreError, Incomplete, JobError, Refused, StorageFailed
from pipeline.heal import Healer, opened, sound
from pipeline.ids import file_names, row_namer
from pipeline.ledger import Receipts, read_stop, write_stop
from pipeline.outcomes import Declared
from pipeline.pack import Block, Limits, pack
from pipeline.places import shared_clock
from pipeline.plan import Range
from pipeline.protocols import MENDS, adapter_of, most_rows
from pipeline.read import FILES, Reader, schema_of
from pipeline.stopping import Stopped, Stopping
from pipeline.storage import Store
from pipeline.trial import Trial
from pipeline.ways import way_of
from pipeline.write import RangeWriter, fields_of
from schemas.plan import NO_END
from schemas.secret import Unresolved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pyarrow as pa

    from pipeline.adapter import Adapter
    from pipeline.columns import Columns
    from pipeline.gate import Unfit
    from pipeline.heal import Old
    from pipeline.progress import Progress
    from schemas.job import Job
    from schemas.plan import Order, Source, Work
    from schemas.receipt import Receipt


TRIAL_SECONDS: Final = 20.0
"""How much longer than a request's time one worker waits for another that tries the service first."""

ENOUGH_ROWS: Final = 1000
"""Rows that tell whether a run is going wrong."""

LOOK_SECONDS: Final = 5.0
"""How old a worker's view of `stop.json` may be while it sends."""


class Scorer:
    """What a worker process needs to score splits: one service, one window, one output. Thread-safe."""

    def __init__(self, job: Job, order: Order, *, stopping: Stopping, progress: Progress) -> None:
        self.job = job
        self.run = order.run
        self.stopping = stopping
        self.progress = progress
        self.store = Store(job.output.path)
        self._receipts = Receipts(self.store)
        self._prediction = types_of(job.output.prediction, "output.prediction")
        self._promised = promised(job)
        self._adapter = adapter_of(job.service, token_hex(16), self._promised)
        self._allowed = order.allowed
        rows = rows_of(job.service.contract) if job.service.contract and job.service.protocol == "modelarts" else None
        self._check = RowCheck(rows.schema) if rows else None
        several = job.runner.workers > 1 or job.runner.name != "local"
        self._trial = Trial(self.store, order.run) if several and order.probe else None
        self._caller = _caller(
            job,
            order,
            self._adapter,
            stopping=stopping,
            progress=progress,
            opened=self._trial.end if self._trial else lambda: None,
            stop=self._stop,
            unfit=self._unfit(),
        )
        self._lock = threading.Lock()
        self._looked = time.monotonic()
        self._patience = self._looked + job.service.limits.timeout + TRIAL_SECONDS
        """Until when another worker that tries the service first is waited for."""
        self._turns = _Turns()
        """One split reads and sends at a time, in order; the others wait for what they have under way."""
        self._columns: Columns | None = None
        self._reader: Reader | None = None

    def _unfit(self) -> Callable[[pa.Array[Any]], Unfit | None]:
        """Return what says whether answers are what the job declares."""
        if not self._prediction:
            return lambda _: None
        return Declared(self._prediction, fields_of(self._prediction, self._promised)).unfit

    def score(self, work: Work) -> list[Receipt]:
        """Score what no receipt covers of a range of rows; return the new receipts.

        Raises nothing that the service, a row or the storage did: what concerns the whole job goes into `stopping`
        and `stop.json`.
        """
        receipts: list[Receipt] = []
        try:
            for hole in self._receipts.left(work):
                if work.heal is None or hole == (work.start, work.stop):  # a range is healed as a whole
                    receipts += self._score_range(work, hole)
        except BulkscoreError as error:
            self._stop(error)
        return receipts

    def close(self) -> None:
        """Let the threads and the open file go."""
        self._caller.close()
        if self._reader:
            self._reader.close()

    def _look(self) -> None:
        """See whether another worker met a refusal."""
        self._looked = time.monotonic()
        reason = read_stop(self.store, self.run)
        if reason:
            self.stopping.stop(reason)

    def _look_again(self) -> None:
        """Look again, where the last look is LOOK_SECONDS old."""
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self._look()

    def _await_trial(self) -> None:
        """Wait until the service has answered the worker that tries it, if that is another one."""
        while self._trial and not (self.stopping or self._caller.answered or self._trial.mine):
            if self._trial.is_over:
                self._caller.open()
            elif time.monotonic() > self._patience:  # that worker is gone, or in trouble: each tries for itself
                return
            else:
                with suppress(Stopped):
                    self.stopping.wait(LOOK_SECONDS / 20)
                self._look()

    def _writer(self, work: Work, rows: Range, columns: Columns, old: Old | None = None) -> RangeWriter:
        make = partial(Healer, old) if old else RangeWriter
        return make(
            self.store,
            work,
            rows,
            columns.kept,
            run=self.run,
            clock=time.monotonic,
            now=lambda: datetime.now(UTC),
            form=self.job.output.format,
            prediction=self._prediction,
            promised=self._promised,
            shown=self._adapter.shown,
        )

    def _wrote(self, receipt: Receipt) -> None:
        self._receipts.add(receipt)
        self.progress.add(receipts=1)

    def _answered(self, rows: int) -> None:
        self.progress.add(answered=rows)

    def _settled(self, rows: int, dead: int) -> None:
        """Count, and end a run that is clearly past what `errors.allow` allows."""
        self.progress.add(rows=rows, dead=dead)
        counts = self.progress.read()
        rows, dead = counts["rows"], counts["dead"]
        if self._allowed is not None and dead > self._allowed and rows >= ENOUGH_ROWS and 2 * dead > rows:
            self._stop(
                Incomplete(
                    f"stopped early: {dead} of {rows} rows are dead letters, and errors.allow is "
                    f"{self.job.errors.allow}"
                )
            )

    def _stop(self, error: BulkscoreError) -> None:
        with self._lock:
            if self.stopping.reason:
                return
            self.stopping.stop(error)
            unanswered = isinstance(error, Refused) and not self._caller.answered
            with suppress(StorageFailed):  # where storage is what failed, the driver sees that nothing moves on
                write_stop(self.store, self.run, error, unanswered=unanswered)

    def _score_range(self, work: Work, hole: Range) -> list[Receipt]:
        columns = self._columns_of(work.source)
        old = self._opened(work)
        course = Course(
            self._caller,
            self._writer(work, hole, columns, old),
            None if old else lambda chunk: self._writer(work, Range(chunk.first, chunk.stop), columns),
            Told(self._answered, self._settled, self._wrote, self._stop, self._look_again),
            time.monotonic,
            work.source.uri,
        )
        failed: list[BulkscoreError] = []
        try:
            with self._turns.take((work.source.number, hole.start)):
                self._look()
                self._await_trial()
                blocks = _readable(self._blocks(work, old.span if old else hole, columns, old), failed)
                for chunk in pack(blocks, self._limits(), self._adapter.frame, self._caller.bounds):
                    self._look_again()
                    if self.stopping:
                        break
                    course.start(chunk)
                if failed:  # nobody reads on, but what was read is scored
                    course.finish(end=False)
                    self._stop(failed[0])
            course.finish(end=hole.stop == NO_END and not self.stopping)
        except BulkscoreError as error:
            self._stop(error)
        except Exception:
            self.stopping.stop()  # a defect: nobody goes on, so that nobody waits for what is not written
            raise
        finally:
            course.abandon()
        return course.receipts

    def _columns_of(self, source: Source) -> Columns:
        """Return the columns, which planning saw to be the same in all sources."""
        with self._lock:
            if self._columns is None:
                types = types_of(self.job.input.columns)
                self._columns = columns_of(self.job, schema_of(source, self.job.input, types))
            return self._columns

    def _opened(self, work: Work) -> Old | None:
        """Open what is to be healed, if that is the work. Raises StorageFailed where it is not what was written."""
        if work.heal is None:
            return None
        old = opened(self.store, self.job.name, work.source, work.heal)
        sound(old)
        return old

    def _limits(self) -> Limits:
        service = self.job.service
        return Limits(service.limits.body, most_rows(service))

    def _blocks(self, work: Work, hole: Range, columns: Columns, old: Old | None) -> Iterator[Block]:
        encoder = encoder_of(self.job, columns, self._adapter)
        names = row_namer(self.job.name, work.source.path)
        batches = self._reader_of(columns, old).read(work, hole.start, hole.stop)
        for first, data, broken, uris, paths, rows in old.pick(batches) if old else batches:
            if paths is not None:
                uuids = file_names(self.job.name, paths)
            elif rows is None:
                uuids = names(first, first + data.num_rows)
            else:
                uuids = names(first, int(rows[-1]) + 1).take(rows - first)
            encoded = encoder.encode(data, uuids)
            unsent = {**self._check.unfit(encoded, uris), **broken} if self._check else broken
            yield Block(first, encoded, uuids, data.select(columns.keep), unsent, uris, rows)

    def _reader_of(self, columns: Columns, old: Old | None) -> Reader:
        """Return the reader that reads on behind the last range, or one that opens only the files to be healed."""
        wanted = wanted_of(self.job, columns)
        if old and self.job.input.format in FILES:
            return Reader(wanted._replace(only=old.asks), self.store)
        self._reader = self._reader or Reader(wanted, self.store)
        return self._reader


def _readable(blocks: Iterator[Block], failed: list[BulkscoreError]) -> Iterator[Block]:
    """Yield what can be read: what comes before a failure is scored and committed like any other."""
    try:
        yield from blocks
    except BulkscoreError as error:
        failed.append(error)


class _Turns:
    """Lets one through at a time: of those that wait, the one that comes first in the input."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[tuple[int, int]] = []
        self._taken = False

    @contextmanager
    def take(self, place: tuple[int, int]) -> Iterator[None]:
        """Wait for the turn of (source, row), and have it."""
        with self._changed:
            heappush(self._waiting, place)
            self._changed.wait_for(lambda: not self._taken and self._waiting[0] == place)
            heappop(self._waiting)
            self._taken = True
        try:
            yield
        finally:
            with self._changed:
                self._taken = False
                self._changed.notify_all()


def _caller(
    job: Job,
    order: Order,
    adapter: Adapter,
    *,
    stopping: Stopping,
    progress: Progress,
    opened: Callable[[], None],
    stop: Callable[[BulkscoreError], None],
    unfit: Callable[[pa.Array[Any]], Unfit | None],
) -> Caller:
    service = job.service
    urls = [adapter.address(url) for url in service.url]
    setting = Setting(
        adapter=adapter,
        retry=job.retry,
        url=urls[0],
        clock=shared_clock(),
        now=lambda: datetime.now(UTC),
        rng=random.Random(),  # noqa: S311 - jitter
        last_success=lambda: float("-inf"),
    )
    try:
        headers = {name: value.resolve() for name, value in service.headers.items()}
        hosts = {urlsplit(url).hostname for url in service.url}
        auth = open_auth(service.auth, verify=service.tls.ca or service.tls.verify, hosts=hosts)
    except Unresolved as error:
        raise JobError(str(error)) from None
    return Caller(
        setting,
        transport=way_of(service, adapter.method),
        auth=auth,
        headers=headers,
        limits=service.limits.model_copy(update={"rows": most_rows(service)}),
        urls=urls,
        rate=service.limits.rate.per_second / job.runner.workers if service.limits.rate else None,
        stopping=stopping,
        progress=progress,
        probe=order.probe,
        mend=MENDS.get(service.protocol, "input.send, input.rename or service.options"),
        max_requests=None if order.max_requests is None else order.max_requests // job.runner.workers,
        opened=opened,
        stop=stop,
        unfit=unfit,
    )
