"""What a run would do, without doing it."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Final, NamedTuple

from pipeline.arrowtypes import types_of
from pipeline.changes import changed, own
from pipeline.columns import columns_of, encoder_of, fixed, wanted_of
from pipeline.gather import draft
from pipeline.ledger import Receipts, read_plans
from pipeline.protocols import adapter_of, most_rows
from pipeline.read import Reader, schema_of
from pipeline.storage import Store, open_stream, packed_share
from schemas.plan import NO_END

if TYPE_CHECKING:
    from pyarrow import RecordBatch

    from pipeline.ledger import NewPlan, Planned
    from pipeline.plan import How
    from schemas.job import Job
    from schemas.plan import Work


_HEAD: Final = 1 << 20


class Estimate(NamedTuple):
    """Counts of a run before it; `requests` and `bytes` follow from a sample of the rows that are left.

    `rows` and `left` are guessed too where only reading can tell how many rows a file has: `exact` says.
    """

    job: str
    output: str
    files: int
    new_files: int
    rows: int
    done: int
    left: int
    exact: bool
    splits: int
    requests: int
    bytes: int


def estimate(job: Job, how: How | None = None) -> Estimate:
    """Plan a run without writing anything or calling the service. Raises JobError as the run would."""
    store = Store(job.output.path)
    own(store)
    receipts = Receipts(store)
    planned = read_plans(store)
    new = draft(job, store, planned, "estimate", changed(store, job, planned, receipts, how))
    before = _files(planned)
    if new:
        planned.add(new.plan)
    counting = planned.counting(receipts.valid())
    todo = planned.remaining(counting)
    done = sum(one.stop - one.start for one in counting)
    sample = _sample(fixed(job, planned.columns), todo, store, new)
    left = sum(_rows(work, sample) for work in todo)
    requests, size = _requests(job, [_rows(work, sample) for work in todo], sample.sent)
    return Estimate(
        job=job.name,
        output=store.uri,
        files=_files(planned),
        new_files=_files(planned) - before,
        rows=done + left,
        done=done,
        left=left,
        exact=all(work.stop < NO_END for work in todo),
        splits=len(todo),
        requests=requests,
        bytes=size,
    )


class _Sample(NamedTuple):
    """What a row weighs, in bytes: as it lies in its file, and in a request, comma included."""

    stored: float = 1.0
    sent: float = 0.0


def _files(planned: Planned) -> int:
    return sum(source.rows or 0 if source.listing else 1 for source in planned.sources.values())


def _rows(work: Work, sample: _Sample) -> int:
    """Return the rows of a piece of work, guessed where the file has not told."""
    if work.stop < NO_END:
        return work.stop - work.start
    return max(0, round(work.source.size / sample.stored) - work.start)


def _sample(job: Job, todo: list[Work], store: Store, new: NewPlan | None) -> _Sample:
    """Look at the first batch that is left."""
    if not todo:
        return _Sample()
    work = todo[0]
    if new and work.source.uri in new.listings:  # it is not written yet, and files may be large
        share = 1 if job.service.protocol == "file" else 4 / 3  # base64
        return _Sample(sent=share * work.source.size / max(1, work.source.rows or 0))
    columns = columns_of(job, schema_of(work.source, job.input, types_of(job.input.columns)))
    with closing(Reader(wanted_of(job, columns), store)) as reader:
        data = next((batch.data for batch in reader.read(work, work.start, work.stop)), None)
    if data is None or not data.num_rows:
        return _Sample()
    encoded = encoder_of(job, columns).encode(data)
    stored = 1.0 if work.stop < NO_END else _stored(job.input.format, work, data)
    return _Sample(stored, len(encoded.lines) / len(encoded.ends))


def _stored(form: str, work: Work, data: RecordBatch) -> float:
    """Guess the bytes that a row takes in its file, as many as in the file's beginning: in text a row is a line."""
    if form == "arrow":
        return max(1.0, data.nbytes / data.num_rows * packed_share(work.source.uri))
    with open_stream(work.source.uri) as stream:
        head = stream.read(_HEAD)
    return max(1.0, len(head) / max(1, head.count(b"\n")) * packed_share(work.source.uri))


def _requests(job: Job, rows: list[int], row_bytes: float) -> tuple[int, int]:
    envelope = sum(map(len, adapter_of(job.service).frame("0" * 36)))
    limits = job.service.limits
    fitting = int((limits.body - envelope + 1) / row_bytes) if row_bytes else 1
    most = max(1, min(most_rows(job.service), fitting))
    requests = sum(-(-count // most) for count in rows)
    return requests, int(requests * envelope + row_bytes * sum(rows))
