"""Proof from files alone: every planned row is in one result or dead letter, every object is what was written."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import JobError
from pipeline.ids import row_namer
from pipeline.ledger import SUCCESS, Planned, counted, decoded, objects, read_plans, read_receipts
from pipeline.plan import remaining
from pipeline.storage import Store, storing
from schemas.values import Allowance

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.encode import Int64s
    from schemas.plan import Source
    from schemas.receipt import Receipt, StoredObject

_PIECE: Final = 1 << 20
_FEW: Final = 5


class Verdict(NamedTuple):
    """What `verify` found; `breaches` is empty where the output keeps the first promise and is complete."""

    output: str
    planned: int
    scored: int
    dead: int
    breaches: tuple[str, ...]


class _Identity(msgspec.Struct):
    """What a dead letter says of who it is."""

    source: str
    source_row: int
    row_uuid: str


class _Errors(msgspec.Struct):
    allow: str


class _Job(msgspec.Struct):
    """What `verify` needs to know of the job."""

    name: str
    errors: _Errors


_identity: Final = msgspec.json.Decoder(_Identity)
_job: Final = msgspec.json.Decoder(_Job)


def verify(store: Store) -> Verdict:
    """Recount and rehash an output. Memory is bounded by one object's row numbers. Raises JobError when it is none."""
    if not store.exists("job.json"):
        raise JobError(
            f"{store.uri} has no job.json, so it is no output of bulkscore; name a job file or its output.path"
        )
    job = decoded(store, "job.json", _job)
    planned = read_plans(store)
    receipts = counted(store, planned.versions)
    breaches = [*_hollow(store, receipts), *_missing(planned, receipts), *_strays(store, receipts)]
    for receipt in receipts:
        breaches += _receipt(store, job.name, planned.sources[receipt.source], receipt)
    scored, dead = sum(one.scored for one in receipts), sum(one.dead for one in receipts)
    if store.exists(SUCCESS):
        breaches += _unearned(breaches, Allowance.read(job.errors.allow), dead, planned.rows)
    return Verdict(store.uri, planned.rows, scored, dead, tuple(breaches))


def _unearned(breaches: list[str], allow: Allowance, dead: int, planned: int) -> list[str]:
    """Say why `_SUCCESS` may not stand, if it may not."""
    if breaches:
        return [f"{SUCCESS} stands without right"]
    if not allow.permits(dead, planned):
        return [f"{SUCCESS} stands without right: {dead} of {planned} rows are dead letters, errors.allow is {allow}"]
    return []


def _hollow(store: Store, counting: list[Receipt]) -> Iterator[str]:
    names = {receipt.name for receipt in counting}
    for receipt in read_receipts(store):
        if receipt.name not in names:
            gone = [name for name in sorted(objects(receipt)) if not store.exists(name)]
            yield from (f"receipt without object: {name}" for name in gone)


def _missing(planned: Planned, receipts: list[Receipt]) -> Iterator[str]:
    if not planned.count:
        yield "nothing is planned yet: the run ended before it began"
    for work in remaining(planned.sources, planned.splits, receipts):
        yield f"missing: rows {work.start} to {work.stop - 1} of {work.source.uri}"


def _strays(store: Store, receipts: list[Receipt]) -> Iterator[str]:
    named = {one.name for receipt in receipts for one in (receipt.results, receipt.errors) if one}
    for folder in ("results", "errors"):
        for name in store.names(folder):
            if f"{folder}/{name}" not in named:
                yield f"object without receipt: {folder}/{name}; the next run removes it"


def _receipt(store: Store, job: str, source: Source, receipt: Receipt) -> Iterator[str]:
    """Check one receipt against its objects: there, unchanged, and with its rows, each once, under their own ids."""
    objects = [one for one in (receipt.results, receipt.errors) if one]
    broken = [breach for one in objects for breach in _changed(store, one)]
    yield from broken
    if broken:
        return
    rows: list[Int64s] = []
    for numbers, uuids in _rows(store, receipt):
        rows.append(numbers)
        yield from _foreign(job, source, receipt, numbers, uuids)
    found = np.concatenate(rows) if rows else np.empty(0, np.int64)
    counts = np.bincount(found[(found >= receipt.start) & (found < receipt.stop)] - receipt.start)
    counts = np.pad(counts, (0, receipt.stop - receipt.start - len(counts)))
    for what, wrong in (("missing", counts == 0), ("doubled", counts > 1)):
        if wrong.any():
            rows_of = _some(np.flatnonzero(wrong) + receipt.start)
            yield f"{what}: {int(wrong.sum())} rows, such as {rows_of}, of {receipt.name}"
    if receipt.scored + receipt.dead != len(found):
        yield f"wrong count: {receipt.name} says {receipt.scored} + {receipt.dead} rows, its objects have {len(found)}"


def _changed(store: Store, stored: StoredObject) -> Iterator[str]:
    if not store.exists(stored.name):
        yield f"receipt without object: {stored.name}"
        return
    digest, size = hashlib.sha256(), 0
    with storing("read", f"{store.uri}/{stored.name}"), store.open(stored.name) as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            size += len(piece)
    if (size, digest.hexdigest()) != (stored.size, stored.sha256):
        yield f"wrong hash: {stored.name} is not what was written"


def _rows(store: Store, receipt: Receipt) -> Iterator[tuple[Int64s, pa.Array[Any]]]:
    """Yield (row numbers, row_uuids) of a receipt's objects, in pieces."""
    if receipt.results:
        with store.open(receipt.results.name) as file, pq.ParquetFile(file) as table:
            for batch in table.iter_batches(columns=["source_row", "row_uuid"]):
                yield batch.column("source_row").fill_null(-1).to_numpy(), batch.column("row_uuid")
    if receipt.errors:
        letters = [_identity.decode(line) for line in store.read(receipt.errors.name).splitlines()]
        yield np.array([one.source_row for one in letters], np.int64), pa.array([one.row_uuid for one in letters])


def _foreign(job: str, source: Source, receipt: Receipt, rows: Int64s, uuids: pa.Array[Any]) -> Iterator[str]:
    """Rows that are not of the receipt's range, or not under the id that their place gives them."""
    inside = (rows >= receipt.start) & (rows < receipt.stop)
    if not inside.all():
        yield f"foreign: {int((~inside).sum())} rows, such as {_some(rows[~inside])}, in {receipt.name}"
    if not len(rows):
        return
    low, high = int(rows.min()), int(rows.max()) + 1
    if high - low > receipt.stop - receipt.start:
        return
    own = row_namer(job, source.path)(low, high).take(rows - low)
    if own.to_pylist() != uuids.to_pylist():
        wrong = np.flatnonzero([mine != theirs for mine, theirs in zip(own, uuids, strict=True)])
        yield f"foreign: {len(wrong)} row_uuids, such as that of row {_some(rows[wrong])}, in {receipt.name}"


def _some(rows: Int64s) -> str:
    return ", ".join(map(str, rows[:_FEW].tolist()))
