"""What a run would do, without doing it."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

from pipeline.columns import columns_of, encoder_of
from pipeline.gather import draft
from pipeline.ledger import counted, read_plans
from pipeline.modelarts import ModelArts
from pipeline.pack import MAX_ROWS
from pipeline.plan import remaining
from pipeline.read import Reader, schema_of, types_of
from pipeline.storage import Store

if TYPE_CHECKING:
    from schemas.job import Job
    from schemas.plan import Work


class Estimate(NamedTuple):
    """Counts of a run before it; `requests` and `bytes` follow from a sample of the rows that are left."""

    job: str
    output: str
    files: int
    new_files: int
    rows: int
    done: int
    left: int
    splits: int
    requests: int
    bytes: int


def estimate(job: Job) -> Estimate:
    """Plan a run without writing anything or calling the service. Raises JobError as the run would."""
    store = Store(job.output.path)
    planned = read_plans(store)
    plan = draft(job, planned, "estimate")
    if plan:
        planned.add(plan)
    todo = remaining(planned.sources, planned.splits, counted(store, planned.versions))
    left = sum(work.stop - work.start for work in todo)
    row_bytes = _row_bytes(job, todo)
    requests, size = _requests(job, todo, row_bytes)
    return Estimate(
        job=job.name,
        output=store.uri,
        files=len(planned.sources),
        new_files=len(plan.sources) if plan else 0,
        rows=planned.rows,
        done=planned.rows - left,
        left=left,
        splits=len(todo),
        requests=requests,
        bytes=size,
    )


def _row_bytes(job: Job, todo: list[Work]) -> float:
    """Return what a row weighs in a request, comma included, from the first batch that is left."""
    if not todo:
        return 0.0
    work = todo[0]
    columns = columns_of(job, schema_of(work.source), work.source.uri)
    with closing(Reader(columns.needed, types_of(job.input.columns))) as reader:
        sample = next(reader.read(work.source, work.start, work.stop)).data
    encoded = encoder_of(job, columns).encode(sample)
    return len(encoded.lines) / len(encoded.ends)


def _requests(job: Job, todo: list[Work], row_bytes: float) -> tuple[int, int]:
    envelope = sum(map(len, ModelArts(job.service.options).frame("0" * 36)))
    limits = job.service.limits
    fitting = int((limits.body - envelope + 1) / row_bytes) if row_bytes else 1
    rows = max(1, min(limits.rows or MAX_ROWS, fitting))
    requests = sum(-(-(work.stop - work.start) // rows) for work in todo)
    return requests, int(requests * envelope + row_bytes * sum(work.stop - work.start for work in todo))
