"""Proof from files alone: every planned row is in one result or dead letter, every object is what was written."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from pipeline.errors import JobError
from pipeline.identity import rows_of
from pipeline.ledger import SUCCESS, Planned, Receipts, decoded, objects, read_plans
from pipeline.recount import recount
from schemas.plan import NO_END
from schemas.values import Allowance

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pipeline.storage import Store
    from schemas.receipt import Receipt

_FOLDERS: Final = ("results", "errors")


class Verdict(NamedTuple):
    """What `verify` found; `breaches` is empty where the output keeps the first promise and is complete."""

    output: str
    planned: int
    scored: int
    dead: int
    breaches: tuple[str, ...]


class _Errors(msgspec.Struct):
    allow: str


class _Job(msgspec.Struct):
    """What `verify` needs to know of the job."""

    name: str
    errors: _Errors


_job: Final = msgspec.json.Decoder(_Job)


def verify(store: Store) -> Verdict:
    """Recount and rehash an output. Raises JobError when it is none.

    Memory is bounded by the receipts, and by the rows of one of them, of which two bytes each are kept.
    """
    if not store.exists("job.json"):
        raise JobError(
            f"{store.uri} has no job.json, so it is no output of bulkscore; name a job file or its output.path"
        )
    job = decoded(store, "job.json", _job)
    planned = read_plans(store)
    receipts = Receipts(store).all()  # before the objects are listed, since they are written first
    there = [f"{folder}/{name}" for folder in _FOLDERS for name in store.names(folder)]
    counting = planned.counting(one for one in receipts if objects(one).issubset(there))
    breaches = [
        *_hollow(receipts, counting, there),
        *_missing(planned, counting),
        *_strays(counting, there),
    ]
    behind = _behind(planned, counting)
    breaches += behind.values()
    breaches += _recounted(store, job.name, planned, [one for one in counting if one.name not in behind])
    rows = planned.tally(counting)
    if rows.left > 0 and not any(breach.startswith("missing") for breach in breaches):
        breaches.append(f"missing: {rows.left} rows that no split of the plan has")
    if store.exists(SUCCESS):
        breaches += _unearned(breaches, _allowance(store, job), rows.dead, rows.planned)
    return Verdict(store.uri, rows.planned, rows.scored, rows.dead, tuple(breaches))


def _allowance(store: Store, job: _Job) -> Allowance:
    try:
        return Allowance.read(job.errors.allow)
    except ValueError as error:
        raise JobError(
            f"{store.uri}/job.json is not as bulkscore wrote it: errors.allow: {error}; put it back"
        ) from None


def _unearned(breaches: list[str], allow: Allowance, dead: int, planned: int) -> list[str]:
    """Say why `_SUCCESS` may not stand, if it may not."""
    if breaches:
        return [f"{SUCCESS} stands without right"]
    if not allow.permits(dead, planned):
        return [f"{SUCCESS} stands without right: {dead} of {planned} rows are dead letters, errors.allow is {allow}"]
    return []


def _hollow(receipts: Iterable[Receipt], counting: Iterable[Receipt], there: Iterable[str]) -> Iterator[str]:
    names, found = {receipt.name for receipt in counting}, set(there)
    for receipt in receipts:
        if receipt.name not in names:
            yield from (f"receipt without object: {name}" for name in sorted(objects(receipt) - found))


def _missing(planned: Planned, counting: list[Receipt]) -> Iterator[str]:
    if not planned.count:
        yield "nothing is planned yet: the run ended before it began"
    for work in planned.remaining(counting):
        rows = f"{work.start} to {work.stop - 1}" if work.stop < NO_END else f"from {work.start} on"
        yield f"missing: rows {rows} of {work.source.uri}"


def _strays(counting: Iterable[Receipt], there: Iterable[str]) -> Iterator[str]:
    named = {name for receipt in counting for name in objects(receipt)}
    for name in there:
        if name not in named:
            yield f"object without receipt: {name}; the next run removes it"


def _behind(planned: Planned, counting: list[Receipt]) -> dict[str, str]:
    """Name receipts with rows that their source does not have: planning knew its rows, or the first end is its end."""
    breaches: dict[str, str] = {}
    ends: dict[int, int] = {}
    for receipt in counting:
        if receipt.end:
            ends[receipt.source] = min(receipt.stop, ends.get(receipt.source, NO_END))
    for receipt in counting:
        source = planned.sources[receipt.source]
        rows = ends.get(source.number, NO_END) if source.rows is None else source.rows
        if receipt.stop > rows:
            breaches[receipt.name] = (
                f"foreign: {receipt.name} goes on behind the end of {source.uri}, which has {rows} rows"
            )
    return breaches


def _recounted(store: Store, job: str, planned: Planned, counting: list[Receipt]) -> Iterator[str]:
    in_order = sorted(counting, key=lambda receipt: (receipt.source, receipt.start))
    for number, of_source in groupby(in_order, key=lambda receipt: receipt.source):
        with rows_of(store, job, planned.sources[number]) as between:
            for receipt in of_source:
                yield from recount(store, receipt, between(receipt.start, receipt.stop))
