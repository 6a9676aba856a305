"""Whose an output is, and how it was made: what changed since, and what `--changed` makes of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pyarrow as pa

from pipeline.arrowtypes import type_of
from pipeline.errors import JobError, StorageFailed
from pipeline.heal import letters, opened
from pipeline.jobprint import changed_answers
from pipeline.ledger import decoded
from pipeline.plan import Changed, Range
from pipeline.read import as_planned
from pipeline.read_files import altered, read_listing
from pipeline.storage import storing
from pipeline.typenames import NoSuchTypeError
from schemas.plan import Heal

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from pipeline.ledger import Planned, Receipts
    from pipeline.plan import How
    from pipeline.storage import Store
    from schemas.job import Job
    from schemas.plan import Source, Work
    from schemas.receipt import Receipt

_FEW: Final = 5
_LOOKERS: Final = 8
_NUMBERING: Final = ("input.format:", *(f"input.csv.{key}:" for key in ("delimiter", "encoding", "header", "quote")))
"""Keys that decide where a row begins: half a file cannot be read by one value, and half by another."""
_SHAPING: Final = ("input.keep:", "output.format:", "output.prediction:")
"""Keys that decide what a result looks like."""
_TEXT: Final = "string"
"""The type of a column that is said by folders."""
_resolved: Final = msgspec.json.Decoder(dict[str, Any])


def own(store: Store) -> None:
    """Refuse a folder that somebody else fills."""
    if not store.exists("job.json") and not store.is_empty():
        raise JobError(f"output.path: {store.uri} is not empty and has no job.json, so it is not ours; give a new path")


def changed(store: Store, job: Job, planned: Planned, receipts: Receipts, how: How | None) -> Changed:
    """Compare a job with the one that made the output, if one did, and prepare what `how` says.

    Raises JobError for keys that change answers, where nobody said what to do about it.
    """
    _same_rows(store, job, planned)
    old = decoded(store, "job.json", _resolved) if store.exists("job.json") else None
    keys = changed_answers(old, job) if old else []
    if keys and how is None:
        raise JobError(
            f"{store.uri} was made by a job that answers differently: {'; '.join(keys)}; use --changed rescore "
            "to score everything again, --changed keep to use the new value for the rest, --restart, "
            "or a new output.path"
        )
    if how is None:
        return Changed()
    valid = receipts.valid()
    counting = planned.counting(valid)
    left: dict[int, list[Range]] = {}
    for work in planned.remaining(counting):
        left.setdefault(work.source.number, []).append(Range(work.start, work.stop))
    done: dict[int, list[Range]] = {}
    for receipt in counting:
        done.setdefault(receipt.source, []).append(Range(receipt.start, receipt.stop))
    if how == "keep":
        _mixable(keys, left, _retyped(old, job, planned.columns) if old else None)
    newest = max([0, *(one.generation for one in valid), *(one.generation for one in planned.redo)])
    return Changed(how, tuple(keys), left, done, newest + 1)


def _same_rows(store: Store, job: Job, planned: Planned) -> None:
    """Refuse to take whole files for rows in files, or the other way round: their plans have nothing in common."""
    for source in planned.sources.values():
        if source.listing != (job.input.format == "files"):
            what = "whole files" if source.listing else "rows in files"
            raise JobError(
                f"input.format: {job.input.format} does not go with {store.uri}, where {what} are planned; "
                "use --restart, or a new output.path"
            )


def _retyped(old: Mapping[str, Any], job: Job, columns: Mapping[str, str]) -> str | None:
    """Return a kept column that has another type than in the results that are there, if one has."""
    was, now = ({**columns, **one} for one in ((old.get("input") or {}).get("columns") or {}, job.input.columns))
    return next((name for name in job.input.keep if not _same(was.get(name, _TEXT), now.get(name, _TEXT))), None)


def _same(one: str, other: str) -> bool:
    """Whether two names are those of one type; a file may have types whose names are not read."""
    with suppress(NoSuchTypeError):
        return one == other or type_of(one) == type_of(other)
    return False


def _mixable(keys: Iterable[str], left: Collection[int], retyped: str | None) -> None:
    """Refuse to keep rows beside others that would have other names, other numbers, or other columns."""
    for key in keys:
        if key.startswith("name:"):
            why = "row_uuids are made of it"
        elif key.startswith(_NUMBERING) and left:
            why = "rows are numbered by it, and not all planned ones are scored"
        elif key.startswith(_SHAPING):
            why = "all results have one schema"
        elif key.startswith("input.columns:") and retyped:
            why = f"{retyped!r} is kept, and all results have one schema"
        else:
            continue
        raise JobError(
            f"{key}; {why}, so --changed keep cannot mix both; use --changed rescore, --restart, or a new output.path"
        )


def with_letters(store: Store, receipts: Iterable[Receipt], kinds: Collection[str]) -> list[Receipt]:
    """Return the receipts that have dead letters of these kinds; without any, all that have some."""
    dead = [one for one in receipts if one.dead]
    if not kinds:
        return dead

    def has(receipt: Receipt) -> bool:
        return any(some.wanted.any() for some in letters(store, Heal(receipt, tuple(kinds))))

    with ThreadPoolExecutor(_LOOKERS) as pool:  # most of the time is storage's
        return [one for one, wanted in zip(dead, pool.map(has, dead), strict=True) if wanted]


def readable(store: Store, job: Job, healing: Iterable[Work]) -> None:
    """See that rows which are to be asked again can be read as they were planned; whole files may be gone.

    Raises JobError, which names the file.
    """
    listings: dict[Source, list[Heal]] = {}
    for work in healing:
        listings.setdefault(work.source, []).extend([work.heal] if work.heal else [])
    with ThreadPoolExecutor(_LOOKERS) as pool:
        list(pool.map(_unchanged, listings))
    for source, heals in listings.items():
        if source.listing:
            files = read_listing(store, source)
            for heal in heals:
                wanted = pa.array(opened(store, job.name, source, heal).wanted)
                odd = altered(files.slice(heal.receipt.start, len(wanted)).filter(wanted))
                if odd:
                    raise JobError(altered_files(odd, keep=False))


def _unchanged(source: Source) -> None:
    try:
        with storing("look up", source.uri):
            as_planned(source)
    except StorageFailed as error:
        raise JobError(f"input.path: {error}") from None


def altered_files(files: list[str], *, keep: bool) -> str:
    """Say which planned files changed, and what can be done about it."""
    few = ", ".join(files[:_FEW]) + (f" and {len(files) - _FEW} more" if len(files) > _FEW else "")
    if keep:
        return (
            f"input.path: {few} changed before all rows were scored, and --changed keep takes only files that are "
            "done; use --changed rescore, --restart, or a new output.path"
        )
    return (
        f"input.path: {few} changed since planned; use --changed rescore to score changed files again, "
        "--changed keep to keep what is done, --restart, or a new output.path"
    )


def gone(uri: str) -> str:
    """Say that a file cannot be scored again."""
    return (
        f"input.path: {uri} is gone, so that it cannot be scored again; put it back, use --changed keep, "
        "or take a new output.path"
    )


def elsewhere(uri: str, was: str, now: str) -> str:
    """Say that patterns begin elsewhere than when a file was planned."""
    return (
        f"input.path: {uri} was planned as {was!r} and would now be {now!r}, with other row_uuids, "
        "because the patterns begin elsewhere; take a new output.path, or --restart"
    )
