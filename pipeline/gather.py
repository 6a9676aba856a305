"""From the job file and the folders it names to a plan: what is new in the input, and how it is cut."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import structs

from pipeline.columns import columns_of
from pipeline.errors import JobError
from pipeline.globs import keep_apart, nothing_at, split_pattern
from pipeline.plan import cut
from pipeline.read import Footer, footer
from pipeline.storage import Listed, find
from schemas.plan import Plan, Source

if TYPE_CHECKING:
    from pipeline.ledger import Planned
    from schemas.job import Job


def listing(job: Job, *, may_be_gone: bool = False) -> list[Listed]:
    """List the input, sorted; `path` is what lies below the folder that all its patterns share.

    Raises JobError where a path is not there, a pattern matches nothing, or the output would be read as input.
    """
    found: dict[str, Listed] = {}
    shared = _shared([split_pattern(pattern)[0] for pattern in job.input.path])
    for pattern in job.input.path:
        keep_apart(pattern, job.output.path)
        matched = find(pattern)
        if not matched and not may_be_gone:
            raise JobError(nothing_at(pattern, folder=Path(pattern).is_dir()))
        above = split_pattern(pattern)[0][len(shared) :].strip("/")
        found.update((one.uri, one._replace(path=f"{above}/{one.path}".lstrip("/"))) for one in matched)
    return sorted(found.values())


def _shared(folders: list[str]) -> str:
    """Return the folder that all of them are in, or are."""
    parts = [folder.split("/") for folder in folders]
    same = [one[0] for one in takewhile(lambda level: len(set(level)) == 1, zip(*parts, strict=False))]
    return "/".join(same)


def draft(job: Job, planned: Planned, run: str) -> Plan | None:
    """Plan what is new in the input since the plans there are; None where nothing is. Moved sources are followed.

    Raises JobError for a planned file that changed, a file that cannot be read, and columns that are missing or differ.
    """
    known = {source.path: source for source in planned.sources.values()}
    places = {source.uri: source.path for source in planned.sources.values()}
    listed = listing(job, may_be_gone=bool(places))
    for one in listed:
        if places.get(one.uri, one.path) != one.path:
            raise JobError(
                f"input.path: {one.uri} was planned as {places[one.uri]!r} and would now be {one.path!r}, with other "
                "row_uuids, because the patterns begin elsewhere; take a new output.path, or --restart"
            )
        if one.path in known and known[one.path].version != one.version:
            raise JobError(
                f"input.path: {one.uri} changed since it was planned ({known[one.path].version}, now {one.version}); "
                "score it into a new output.path, or use --restart to score everything again"
            )
        if one.path in known:  # the input may have moved as a whole: its rows are the same rows
            source = known[one.path]
            planned.sources[source.number] = structs.replace(source, uri=one.uri)
    new = [one for one in listed if one.path not in known]
    return _plan(job, planned, run, new) if new else None


def _plan(job: Job, planned: Planned, run: str, new: list[Listed]) -> Plan:
    columns = dict(planned.columns)
    sources: list[Source] = []
    weight = 0
    for number, one in enumerate(new, start=planned.next_source):
        found = footer(one.uri)
        used = columns_of(job, found.schema, one.uri).needed
        if found.rows:  # without rows a file may have any columns and types: writers put null where nothing is
            columns = columns or _types(found)
            _same_columns(job, one, found, columns)
            _same_types(job, one, found, columns, used)
        sources.append(Source(number, one.uri, one.path, one.size, one.version, found.rows))
        weight += found.data_bytes
    rows = sum(source.rows for source in sources)
    splits = cut(sources, workers=job.runner.workers, row_bytes=weight // max(1, rows))
    return Plan(run, columns, tuple(sources), tuple(splits))


def _types(found: Footer) -> dict[str, str]:
    return {field.name: str(field.type) for field in found.schema}


def _same_columns(job: Job, one: Listed, found: Footer, columns: dict[str, str]) -> None:
    """Where all columns are sent, all files have the same ones; `input.send` says which ones matter."""
    odd = sorted(columns.keys() ^ set(found.schema.names))
    if job.input.send is None and odd:
        has = "has" if odd[0] in found.schema.names else "does not have"
        raise JobError(
            f"input.path: {one.uri} {has} a column {odd[0]!r}, unlike files before it; "
            "name the columns to send: input.send: [...]"
        )


def _same_types(job: Job, one: Listed, found: Footer, columns: dict[str, str], used: tuple[str, ...]) -> None:
    """All files have the same types in the columns that are used; `input.columns` makes them so."""
    types = _types(found)
    for name in used:
        if name not in job.input.columns and types[name] != columns.get(name, types[name]):
            raise JobError(
                f"input.path: column {name!r} is {types[name]} in {one.uri} and {columns[name]} in files before it; "
                f"declare it: input.columns: {{{name}: ...}}"
            )
