"""From the job file and the folders it names to a plan: what is new or changed in the input, and how it is cut."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Final

from msgspec import structs

from pipeline.arrowtypes import types_of
from pipeline.changes import altered_files, elsewhere, gone
from pipeline.columns import TYPELESS, check_columns
from pipeline.errors import JobError
from pipeline.gather_files import checked_columns, draft_files, list_input
from pipeline.ledger import NewPlan
from pipeline.listing import Listed
from pipeline.plan import NO_CHANGE, Changed, cut
from pipeline.read import FORMATS
from schemas.plan import Plan, Redo, Source

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pyarrow import DataType

    from pipeline.ledger import Planned
    from pipeline.pieces import Found, Mark
    from pipeline.storage import Store
    from schemas.job import Job

_LOOKERS: Final = 4
_LOOKED_AT_ONCE: Final = 1_000


def draft(job: Job, store: Store, planned: Planned, run: str, changed: Changed = NO_CHANGE) -> NewPlan | None:
    """Plan what is new or changed in the input since the plans there are; None where nothing is.

    An input that moved as a whole is followed. Raises JobError for files that changed where nobody said what to do
    about it, a file that cannot be read, and columns that are missing or differ.
    """
    if job.input.format == "files":
        return draft_files(job, store, planned, run, changed)
    plan = _draft_rows(job, planned, run, changed)
    return NewPlan(plan) if plan else None


def _draft_rows(job: Job, planned: Planned, run: str, changed: Changed) -> Plan | None:
    known = {source.path: source for source in planned.sources.values()}
    columns = list_input(job, may_be_gone=bool(known)).to_pydict()
    listed = [Listed(*one) for one in zip(*columns.values(), strict=True)]
    _same_places(planned, listed)
    news = _News(job, changed)
    numbers = count(planned.next_source)
    for one in listed:
        if one.path in known:
            news.again(known[one.path], one)
        else:
            news.todo.append((next(numbers), one))
    if changed.everything:
        _all_there(known, listed)
    return news.plan(planned, run)


class _News:
    """What is new: files to look at under their numbers, sources that are let pass, and what is to be done again."""

    def __init__(self, job: Job, changed: Changed) -> None:
        self._job = job
        self._changed = changed
        self.todo: list[tuple[int, Listed]] = []
        self._kept: list[Source] = []
        self._redo: list[Redo] = []
        self._odd: list[str] = []

    def again(self, source: Source, one: Listed) -> None:
        """Meet a file that is planned."""
        accepted = one.version == source.accepted and source.number not in self._changed.left
        same = one.version == source.version or accepted
        if self._changed.everything or (not same and self._changed.how == "rescore"):
            self.todo.append((source.number, one))
            self._redo.append(Redo(source.number, self._changed.generation))
        elif not same and self._changed.how == "keep" and source.number not in self._changed.left:
            self._kept.append(structs.replace(source, uri=one.uri, accepted=one.version))
        elif same and one.uri != source.uri:  # the input moved as a whole: its rows are the same rows
            self._kept.append(structs.replace(source, uri=one.uri))
        elif not same:
            self._odd.append(f"{one.uri} ({source.version}, now {one.version})")

    def plan(self, planned: Planned, run: str) -> Plan | None:
        """Make the plan. Raises JobError for files that changed, and may not be passed over."""
        if self._odd:
            raise JobError(altered_files(self._odd, keep=self._changed.how == "keep"))
        if not self.todo and not self._kept:
            return None
        columns, sources, marks, weight = _looked_at(self._job, self.todo, planned, anew=self._changed.everything)
        rows = sum(source.rows or 0 for source in sources)
        splits = cut(sources, workers=self._job.runner.workers, row_bytes=weight // max(1, rows), marks=marks)
        kept = {source.number for source in self._kept}
        splits_kept = (split for split in planned.splits if split.source in kept)
        return Plan(run, columns, (*sources, *self._kept), (*splits, *splits_kept), tuple(self._redo))


def _same_places(planned: Planned, listed: list[Listed]) -> None:
    """Refuse patterns that begin elsewhere than when the files were planned: their rows would have other names."""
    places = {source.uri: source.path for source in planned.sources.values()}
    for one in listed:
        if places.get(one.uri, one.path) != one.path:
            raise JobError(elsewhere(one.uri, places[one.uri], one.path))


def _all_there(known: Mapping[str, Source], listed: list[Listed]) -> None:
    missing = sorted(known.keys() - {one.path for one in listed})
    if missing:
        raise JobError(gone(known[missing[0]].uri))


Looked = tuple[dict[str, str], list[Source], dict[int, tuple["Mark", ...]], int]


def _looked_at(job: Job, todo: list[tuple[int, Listed]], planned: Planned, *, anew: bool) -> Looked:
    """Look into files; return the columns, the sources, their marks, and the weight of all rows in bytes."""
    columns = {} if anew else dict(planned.columns)
    declared = types_of(job.input.columns)
    sources: list[Source] = []
    marks: dict[int, tuple[Mark, ...]] = {}
    weight = 0
    position = 0
    while position < len(todo):  # one by one until the columns are known, then many at once
        piece = todo[position : position + (_LOOKED_AT_ONCE if columns else 1)]
        position += len(piece)
        known = {**types_of(columns), **declared} if job.input.format in TYPELESS else {}
        for (number, one), found in zip(piece, _look(job, piece, known), strict=True):
            if found.schema.names:
                check_columns(job, found.schema, one.uri)
            if not found.empty:  # without rows a file may have any columns and types: writers put null where nothing is
                used = checked_columns(job, found.schema).needed
                columns = columns or _types(found)
                _same_columns(job, one, found, columns)
                _same_types(job, one, found, columns, used)
            rows = 0 if found.empty else found.rows
            sources.append(Source(number, one.uri, one.path, one.size, one.version, rows))
            weight += found.size if rows else 0
            if found.marks:
                marks[number] = found.marks
    return columns, sources, marks, weight


def _look(job: Job, piece: list[tuple[int, Listed]], known: Mapping[str, DataType]) -> Iterator[Found]:
    look = partial(_look_at, job, known=known)
    if len(piece) == 1:
        yield look(piece[0])
        return
    with ThreadPoolExecutor(_LOOKERS) as pool:  # most of the time is storage's
        yield from pool.map(look, piece)


def _look_at(job: Job, item: tuple[int, Listed], *, known: Mapping[str, DataType]) -> Found:
    return FORMATS[job.input.format].look(item[1].uri, job.input, known)


def _types(found: Found) -> dict[str, str]:
    """Return the types of all columns as nobody declared them; a column that does not show has its declared one."""
    types = {field.name: field.type for field in found.schema} | dict(found.inferred)
    return {name: str(kind) for name, kind in types.items()}


def _same_columns(job: Job, one: Listed, found: Found, columns: dict[str, str]) -> None:
    """Where all columns are sent, all files have the same ones; `input.send` says which ones matter.

    Lines of JSON have keys of their own: those that the first file did not show are not sent.
    """
    odd = sorted(columns.keys() ^ set(found.schema.names))
    if job.input.send is None and odd and job.input.format != "jsonl":
        has = "has" if odd[0] in found.schema.names else "does not have"
        raise JobError(
            f"input.path: {one.uri} {has} a column {odd[0]!r}, unlike files before it; "
            "name the columns to send: input.send: [...]"
        )


def _same_types(job: Job, one: Listed, found: Found, columns: dict[str, str], used: tuple[str, ...]) -> None:
    """All files have the same types in the columns that are used; `input.columns` makes them so."""
    types = _types(found)
    for name in used:
        if name in types and name not in job.input.columns and types[name] != columns.get(name, types[name]):
            raise JobError(
                f"input.path: column {name!r} is {types[name]} in {one.uri} and {columns[name]} in files before it; "
                f"declare it: input.columns: {{{name}: ...}}"
            )
