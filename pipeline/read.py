"""Rows of any input format, streamed by row range: cut to the range, cast to their types, with folder columns."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from msgspec import structs
from pyarrow.fs import FileType

from pipeline import read_arrow, read_csv, read_files, read_jsonl, read_manifest, read_parquet
from pipeline.cast import cast
from pipeline.columns import TYPELESS
from pipeline.encode import RowEncoder
from pipeline.errors import JobError, StorageFailed
from pipeline.globs import folders
from pipeline.pieces import Broken, Format, Mark, Piece
from pipeline.read_files import PATH, URI
from pipeline.storage import open_source

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pipeline.encode import Int64s
    from pipeline.pieces import Wanted
    from pipeline.storage import Store
    from schemas.job import Input
    from schemas.plan import Source, Work

FORMATS: Final[Mapping[str, Format]] = {
    "parquet": read_parquet,
    "csv": read_csv,
    "jsonl": read_jsonl,
    "arrow": read_arrow,
    "files": read_files,
    "manifest": read_manifest,
}
FILES: Final = frozenset({"files", "manifest"})
"""Formats whose rows are files."""


class Batch(NamedTuple):
    """Source rows `[first, first + data.num_rows)`, the wanted columns in their types.

    `broken` is by position. Where rows are files, `uris` says which; `paths`, from which their identities are derived,
    is there if they are sources of their own. `rows` are the numbers of rows that were picked, the first one `first`.
    """

    first: int
    data: pa.RecordBatch
    broken: Mapping[int, Broken]
    uris: pa.Array[Any] | None = None
    paths: pa.Array[Any] | None = None
    rows: Int64s | None = None

    def pick(self, positions: Int64s) -> Batch:
        """Return the rows at some positions, at least one, in order."""
        runs = [(int(run[0]), len(run)) for run in np.split(positions, np.flatnonzero(np.diff(positions) > 1) + 1)]
        concatenate: Any = pa.concat_batches  # type: ignore[attr-defined] # missing in the stubs
        data = concatenate([self.data.slice(*run) for run in runs])  # `take` has nothing for views
        broken = {at: self.broken[one] for at, one in enumerate(positions.tolist()) if one in self.broken}
        uris, paths = (column if column is None else column.take(positions) for column in (self.uris, self.paths))
        rows = positions + self.first
        return Batch(int(rows[0]), data, broken, uris, paths, rows)


def schema_of(source: Source, given: Input, types: Mapping[str, pa.DataType]) -> pa.Schema:
    """Return the schema of a planned source; `types` are those of its columns where files have none themselves.

    Raises StorageFailed when it is no longer the file that was planned.
    """
    if given.format in TYPELESS:
        return pa.schema(list(types.items()))
    with _reading(source.uri):
        as_planned(source)
        return FORMATS[given.format].look(source.uri, given, {}).schema


class Reader:
    """Reads ranges of rows, one after the other; a range that follows the last one costs no second look.

    What lies between a place where a file can be entered and a range in it is decoded and thrown away. A worker reads
    its splits in order, so the file stays open behind the last range for the next one. Not thread-safe.
    """

    def __init__(self, wanted: Wanted, store: Store) -> None:
        self._wanted = wanted
        self._store = store
        self._open: _OpenSource | None = None

    def read(self, work: Work, start: int, stop: int) -> Iterator[Batch]:
        """Yield rows `[start, stop)` of a piece of work in order, in batches of about 10,000 rows or 4 MB at the most.

        Raises StorageFailed, naming the file, when it vanished, was cut, or is no longer the file that was planned;
        what was read before that is yielded.
        """
        try:
            with _reading(work.source.uri):
                file = self._file(work, start)
                while file.position < stop and (piece := file.take(start, stop)) is not None:
                    yield _finished(piece, work.source, self._wanted)
        except Exception:
            self.close()  # whoever reads on would take the failure for the file's end
            raise

    def close(self) -> None:
        """Close the file that is open, if one is."""
        if self._open:
            self._open.close()
            self._open = None

    def _file(self, work: Work, start: int) -> _OpenSource:
        if self._open is None or self._open.source != work.source or self._open.position > start:
            self.close()
            self._open = _OpenSource(work, start, self._wanted, self._store)
        return self._open


class _OpenSource:
    """A source open at `position`: the rows before it are gone by."""

    def __init__(self, work: Work, start: int, wanted: Wanted, store: Store) -> None:
        self.source = source = work.source
        as_planned(source)
        if source.listing:
            source = structs.replace(source, uri=f"{store.uri}/{source.uri}")
        self._pieces = FORMATS[wanted.input.format].pieces(source, wanted, start, Mark(*work.mark))
        self._rest: Piece | None = None
        self.position = start  # what lies before it may not come at all

    def take(self, start: int, stop: int) -> Piece | None:
        """Return the next rows at or behind `start` and before `stop`, as many as come at once; None at the end."""
        while (piece := self._rest or next(self._pieces, None)) is not None:
            end = piece.first + piece.data.num_rows
            low, high = max(start, piece.first), min(stop, end)
            self._rest = _slice(piece, max(high, piece.first), end) if high < end else None
            self.position = max(self.position, min(high, end))
            if low < high:
                return _slice(piece, low, high)
            if self._rest:
                return None
        return None

    def close(self) -> None:
        if isinstance(self._pieces, Generator):
            self._pieces.close()


def as_planned(source: Source) -> None:
    """See that a source is still the file that was planned. Raises StorageFailed, which says what happened to it."""
    if source.listing:
        return
    fs, path = open_source(source.uri)
    info = fs.get_file_info(path)
    if f"{info.size}-{info.mtime_ns}" != source.version:
        what = "is gone since" if info.type == FileType.NotFound else "changed after"
        raise StorageFailed(
            f"{source.uri} {what} it was planned; put it back, or use --changed rescore to score what is there"
        )


def _slice(piece: Piece, low: int, high: int) -> Piece:
    """Return source rows `[low, high)` of a piece."""
    start, stop = low - piece.first, high - piece.first
    if (start, stop) == (0, piece.data.num_rows):
        return piece
    broken = {position - start: why for position, why in piece.broken.items() if start <= position < stop}
    return Piece(low, piece.data.slice(start, stop - start), broken)


def _finished(piece: Piece, source: Source, wanted: Wanted) -> Batch:
    """Give a piece the wanted columns, in their types and their order."""
    data, broken = piece.data, dict(piece.broken)
    uris, paths = (data.column(name) if name in data.schema.names else None for name in (URI, PATH))
    columns: dict[str, pa.Array[Any]] = {}
    for name in wanted.columns:
        if name in data.schema.names:
            column = data.column(name)
        else:
            column = _folder_column(name, source.uri if uris is None else uris, data.num_rows)
        kind = wanted.types.get(name, column.type)
        if column.type != kind:
            column, faults = cast(name, column, kind)
            for position, message in faults.items():
                broken.setdefault(position, Broken("unreadable", message, _stored(data, position)))
        columns[name] = column
    if columns:
        finished = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
    else:  # a batch made of no columns would have no rows
        rows: Any = pa.array([{}] * data.num_rows, pa.struct([]))
        finished = pa.RecordBatch.from_struct_array(rows)
    return Batch(piece.first, finished, broken, uris, paths)


def _folder_column(name: str, uris: str | pa.Array[Any], rows: int) -> pa.Array[Any]:
    """Return what the folders of each row's file say of a column."""
    if isinstance(uris, str):
        return pa.repeat(pa.scalar(folders(uris).get(name), pa.string()), rows)
    return pa.array([folders(uri or "").get(name) for uri in uris.to_pylist()], pa.string())


def _stored(data: pa.RecordBatch, position: int) -> bytes:
    """Return a row as JSON as it is stored, before any cast."""
    names = [name for name in data.schema.names if name not in {URI, PATH}]
    try:
        encoder = RowEncoder(data.schema, names, rename={})
    except JobError:  # a type without a JSON form, which the cast would have given one
        return b"null"
    return encoder.encode(data.slice(position, 1)).lines.rstrip(b"\n")


@contextmanager
def _reading(uri: str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise StorageFailed(
            f"cannot read {uri}: {reason}; put the file back as it was planned and run again"
        ) from error
