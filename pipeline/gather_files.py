"""Planning for whole files: the frozen listing is a source, and its rows are the files."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import structs

from pipeline.arrowtypes import types_of
from pipeline.changes import altered_files, elsewhere, gone
from pipeline.columns import check_columns, columns_of
from pipeline.errors import JobError
from pipeline.forms import check_form
from pipeline.globs import keep_apart, plain, shared_folder
from pipeline.ledger import NewPlan
from pipeline.listing import listing_table
from pipeline.plan import cut
from pipeline.read_files import SCHEMA, read_listing
from pipeline.write import fields_of
from schemas.plan import Plan, Redo, Source
from schemas.tables import result_schema

if TYPE_CHECKING:
    import numpy.typing as npt

    from pipeline.columns import Columns
    from pipeline.ledger import Planned
    from pipeline.plan import Changed
    from pipeline.storage import Store
    from schemas.job import Job

    Mask = npt.NDArray[np.bool_]


def checked_columns(job: Job, schema: pa.Schema) -> Columns:
    """Choose the columns of the input. Raises JobError for what cannot be sent, and for what cannot be written."""
    columns = columns_of(job, schema)
    prediction = types_of(job.output.prediction, "output.prediction")
    fields_of(prediction)
    check_form(job.output.format, result_schema(columns.kept, prediction))
    return columns


def list_input(job: Job, *, may_be_gone: bool) -> pa.Table:
    """List the input, sorted by URI; `path` is what lies below the folder that all its patterns share.

    Raises JobError where a path is not there, a pattern matches nothing, or the output would be read as input.
    """
    for pattern in job.input.path:
        keep_apart(pattern, job.output.path, job.output.format)
    patterns = [plain(pattern) for pattern in job.input.path]
    return listing_table(patterns, shared_folder(patterns), may_be_gone=may_be_gone)


def draft_files(job: Job, store: Store, planned: Planned, run: str, changed: Changed) -> NewPlan | None:
    """Plan the files that are new or changed since the plans there are; None where none is.

    Files that moved as a whole are followed. Raises JobError for files that changed where nobody said what to do.
    """
    listed = list_input(job, may_be_gone=bool(planned.sources))
    if listed.num_rows:
        check_columns(job, SCHEMA, listed["uri"][0].as_py())
        checked_columns(job, SCHEMA)
    draft = _Draft(planned, changed, run)
    for source in planned.sources.values():
        draft.compare(source, read_listing(store, source), listed)
    draft.add(listed)
    return draft.plan(job)


class _Draft:
    """Listings that are new or changed, and what of them is to be done again."""

    def __init__(self, planned: Planned, changed: Changed, run: str) -> None:
        self._run = run
        self._planned = planned
        self._changed = changed
        self._paths: list[pa.ChunkedArray[Any]] = []
        self._sources: dict[int, Source] = {}
        self._listings: dict[str, pa.Table] = {}
        self._redo: list[Redo] = []

    def compare(self, source: Source, old: pa.Table, listed: pa.Table) -> None:
        """Compare a listing with what is there now; files that are gone stay in it."""
        self._paths.append(old["path"])
        _same_places(old, listed)
        at: Any = pc.index_in(old["path"], value_set=listed["path"])
        there = at.is_valid().combine_chunks().to_numpy(zero_copy_only=False)
        now = listed.take(at.fill_null(0)) if listed.num_rows else old
        moved = there & _differ(old["uri"], now["uri"])
        altered = there & _differ(old["version"], now["version"])
        if self._changed.everything:
            if not there.all():
                raise JobError(gone(old["uri"][int(np.flatnonzero(~there)[0])].as_py()))
            self._redo.append(Redo(source.number, self._changed.generation))
        elif altered.any():
            self._judge(source, now["uri"], altered)
            self._spare(source, old["uri"], altered, there)
        if moved.any() or altered.any() or self._changed.everything:
            mask = pa.chunked_array([pa.array(there)])
            columns = {name: pc.if_else(mask, now[name], old[name]) for name in old.column_names}
            self._put(structs.replace(source, uri=self._name(source.number)), pa.table(columns))

    def _judge(self, source: Source, uris: pa.ChunkedArray[Any], altered: Mask) -> None:
        """Decide what changed files of a listing cost."""
        rows = np.flatnonzero(altered)
        if self._changed.how == "rescore":
            edges = np.flatnonzero(np.diff(rows) > 1)
            starts, stops = rows[np.r_[0, edges + 1]], rows[np.r_[edges, len(rows) - 1]] + 1
            generation = self._changed.generation
            for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
                self._redo.append(Redo(source.number, generation, start, stop))
            return
        left = np.zeros(len(altered), np.bool_)
        for start, stop in self._changed.left.get(source.number, ()):
            left[start:stop] = True
        undone = rows[left[rows]]
        keep = self._changed.how == "keep"
        if len(undone) or not keep:
            named: Any = uris.take(undone if len(undone) else rows)
            raise JobError(altered_files(named.to_pylist(), keep=keep))

    def _spare(self, source: Source, uris: pa.ChunkedArray[Any], altered: Mask, there: Mask) -> None:
        """Refuse to give up the results of files that are gone, which receipts cover together with changed ones."""
        again = np.zeros(len(altered), np.bool_)
        for start, stop in self._changed.done.get(source.number, ()) if self._redo else ():
            again[start:stop] |= bool(altered[start:stop].any())
        lost = np.flatnonzero(again & ~there)
        if len(lost):
            raise JobError(gone(uris[int(lost[0])].as_py()))

    def add(self, listed: pa.Table) -> None:
        """Put the files that no listing has into one of their own."""
        known = pa.chunked_array([chunk for paths in self._paths for chunk in paths.chunks], pa.string())
        fresh = listed.filter(pc.invert(pc.is_in(listed["path"], value_set=known)))
        if fresh.num_rows:
            number, rows = self._planned.next_source, fresh.num_rows
            digest = hashlib.sha256("\n".join(map(str, fresh["path"].to_pylist())).encode()).hexdigest()
            size = pc.sum(fresh["size"]).as_py()
            version = f"{rows}-{digest[:16]}"  # of which files these are: a file that changes has its own version
            self._put(Source(number, self._name(number), "", size, version, rows, listing=True), fresh)

    def plan(self, job: Job) -> NewPlan | None:
        """Make the plan, if there is anything to plan."""
        if not self._sources:
            return None
        fresh = [source for number, source in self._sources.items() if number not in self._planned.sources]
        rows, size = sum(source.rows or 0 for source in fresh), sum(source.size for source in fresh)
        splits = list(cut(fresh, workers=job.runner.workers, row_bytes=size // max(1, rows), marks={}))
        splits += [split for split in self._planned.splits if split.source in self._sources]
        columns = {field.name: str(field.type) for field in SCHEMA}
        plan = Plan(self._run, columns, tuple(self._sources.values()), tuple(splits), tuple(self._redo))
        return NewPlan(plan, self._listings)

    def _put(self, source: Source, listing: pa.Table) -> None:
        self._sources[source.number] = source
        self._listings[source.uri] = listing

    def _name(self, number: int) -> str:
        return f"plan/{self._planned.count:06d}-{number:06d}-{self._run}.parquet"


def _differ(old: pa.ChunkedArray[Any], now: pa.ChunkedArray[Any]) -> Mask:
    differ: Mask = pc.not_equal(old, now).to_numpy()
    return differ.astype(bool)


def _same_places(old: pa.Table, listed: pa.Table) -> None:
    """Refuse patterns that begin elsewhere than when the files were planned: their rows would have other names."""
    at: Any = pc.index_in(listed["uri"], value_set=old["uri"])
    same = listed.filter(at.is_valid())
    paths = old["path"].take(at.drop_null())
    odd = np.flatnonzero(_differ(paths, same["path"]))
    if len(odd):
        raise JobError(elsewhere(*(column[int(odd[0])].as_py() for column in (same["uri"], paths, same["path"]))))
