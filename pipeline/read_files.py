"""Whole files: one file is one row. The files are those of a listing that the plan has frozen."""

from __future__ import annotations

import errno
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import unquote

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileType

from pipeline import read_parquet
from pipeline.listing import LISTING
from pipeline.pieces import Broken, Found, Piece
from pipeline.storage import open_source, storing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from pyarrow.fs import FileInfo, FileSystem

    from pipeline.pieces import Mark, Wanted
    from pipeline.storage import Store
    from schemas.job import Input
    from schemas.plan import Source
    from schemas.tables import Kind

_TYPES: Final[dict[str, pa.DataType]] = {
    "content": pa.binary(),
    "uri": pa.string(),
    "name": pa.string(),
    "size": pa.int64(),
}
SCHEMA: Final = pa.schema(list(_TYPES.items()))
"""The columns of rows that are files."""

URI: Final = "\0uri"
"""A column beside the wanted ones: each row's file, null where the row names none."""
PATH: Final = "\0path"
"""A column beside the wanted ones, of listed files: what their row_uuids are derived from."""

BATCH_ROWS: Final = 10_000
BATCH_FILES: Final = 250
"""Files of a piece that are opened: those of a store are some time in coming, while the service waits."""
BATCH_BYTES: Final = 4_000_000

_LOCAL: Final = "file://"
_READERS: Final = 8
_PASSED_OVER: Final = Broken("unreadable", "not wanted", b"null")
_OURS: Final = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""What fails for want of something that this process lacks is not the file's fault."""


class Row(NamedTuple):
    """A row that is a file. `size` and `version` are what was planned; `broken` says why there is no content."""

    uri: str | None
    path: str | None = None
    size: int | None = None
    version: str | None = None
    content: bytes | None = None
    broken: Broken | None = None

    @property
    def name(self) -> str | None:
        """The last part of the file's path."""
        last = self.uri and self.uri.rpartition("/")[2]
        return unquote(last) if last and self.uri and self.uri.startswith(_LOCAL) else last


def look(uri: str, given: Input, known: Mapping[str, pa.DataType]) -> Found:  # noqa: ARG001 - any file will do
    """Return the columns that every file has, and its one row."""
    return Found(SCHEMA, 1, 0)


def pieces(source: Source, wanted: Wanted, start: int, mark: Mark) -> Iterator[Piece]:
    """Yield the files from row `start` of a listing, which `source.uri` names as Arrow's file systems do."""
    listed = read_parquet.pieces(source, wanted._replace(columns=tuple(LISTING.names)), start, mark)
    rows = (Row(*one) for piece in listed for one in _from(start, piece))
    yield from pieces_of(rows, wanted, start, sized=True)


def _from(start: int, piece: Piece) -> Iterator[tuple[Any, ...]]:
    data = piece.data.slice(max(0, start - piece.first)).select(LISTING.names)
    return zip(*(column.to_pylist() for column in data.columns), strict=True)


def read_listing(store: Store, source: Source) -> pa.Table:
    """Return a listing of an output's plan, whole, with the columns of LISTING."""
    with storing("read", f"{store.uri}/{source.uri}"), store.open(source.uri) as file:
        return pq.ParquetFile(file).read(LISTING.names)


def altered(listed: pa.Table) -> list[str]:
    """Return the URIs of those listed files that are there, but not as they are listed."""

    def differs(uri: str, version: str) -> bool:
        fs, path = open_source(uri)
        info = fs.get_file_info(path)
        return info.type != FileType.NotFound and version != f"{info.size}-{info.mtime_ns}"

    uris: list[Any] = listed["uri"].to_pylist()
    with ThreadPoolExecutor(_READERS) as pool, storing("look up", uris[0] if uris else ""):
        odd = list(pool.map(differs, uris, listed["version"].to_pylist()))
    return [uri for uri, one in zip(uris, odd, strict=True) if one]


def pieces_of(rows: Iterable[Row], wanted: Wanted, first: int, *, sized: bool = False) -> Iterator[Piece]:
    """Yield rows as pieces of about BATCH_BYTES; `first` is the number of the first one. `sized` ones have their size.

    Files are opened only for what is wanted of them. One that is too large, or cannot be read, or is no longer as
    planned, is a broken row.
    """
    only = wanted.only
    if only:
        rows = (row if only(at) else row._replace(broken=_PASSED_OVER) for at, row in enumerate(rows, first))
    fetch = _fetcher(wanted, sized=sized)
    most = BATCH_FILES if fetch else BATCH_ROWS
    group: list[Row] = []
    size = 0
    for row in _ahead(rows, fetch) if fetch else rows:
        weight = len(row.content or b"")
        if len(group) == most or (group and size + weight > BATCH_BYTES):
            yield _piece(first, group, wanted)
            first, group, size = first + len(group), [], 0
        group.append(row)
        size += weight
    if group:
        yield _piece(first, group, wanted)


def _piece(first: int, rows: list[Row], wanted: Wanted) -> Piece:
    columns: dict[str, Any] = {
        name: pa.array([getattr(row, name) for row in rows], _TYPES[name]) for name in wanted.columns if name in _TYPES
    }
    columns[URI] = pa.array([row.uri for row in rows], pa.string())
    if rows[0].path is not None:
        columns[PATH] = pa.array([row.path for row in rows], pa.string())
    broken = {position: row.broken for position, row in enumerate(rows) if row.broken}
    return Piece(first, pa.record_batch(columns), broken)


# Opening files


def _fetcher(wanted: Wanted, *, sized: bool) -> Callable[[Row], Row] | None:
    """Return what adds to a row what is wanted of its file; None where files need not be looked at."""
    if "content" in wanted.columns:
        return partial(_opened, largest=wanted.largest)
    return partial(_opened, largest=None) if "size" in wanted.columns and not sized else None


def _ahead(rows: Iterable[Row], fetch: Callable[[Row], Row]) -> Iterator[Row]:
    """Fetch rows in order; some of a remote store at once, local ones one by one, which is faster."""
    waiting: deque[Callable[[], Row]] = deque()
    with ThreadPoolExecutor(_READERS) as pool:
        try:
            for row in rows:
                remote = row.uri is not None and not row.uri.startswith(_LOCAL)
                waiting.append(pool.submit(fetch, row).result if remote else partial(fetch, row))
                if len(waiting) == _READERS:
                    yield waiting.popleft()()
            while waiting:
                yield waiting.popleft()()
        finally:
            pool.shutdown(cancel_futures=True)


def _opened(row: Row, largest: int | None) -> Row:
    """Return a row with its file's size, and with its content unless `largest`, the most bytes to read, is None."""
    if row.uri is None or row.broken:
        return row
    try:
        return _read(row, *open_source(row.uri), largest)
    except (OSError, ValueError, pa.ArrowException) as error:  # what Arrow raises is one of them
        if getattr(error, "errno", None) in _OURS:
            raise
        return _broken(row, "unreadable", f"cannot be read: {getattr(error, 'strerror', None) or error}")


def _read(row: Row, fs: FileSystem, path: str, largest: int | None) -> Row:
    info = fs.get_file_info(path)
    if fault := _fault(row, info):
        return _broken(row, "unreadable", fault)
    row = row._replace(size=info.size)
    if largest is None:
        return row
    if info.size > largest:
        return _broken(row, "too_large", f"is {info.size} bytes; the limit is {largest}")
    with fs.open_input_file(path) as file:
        content = file.read()
    whole = len(content) == info.size
    return row._replace(content=content) if whole else _broken(row, "unreadable", "changed while it was read")


def _fault(row: Row, info: FileInfo) -> str:
    """Say why a file is not to be read, if it is not."""
    if info.type == FileType.NotFound:
        return "is gone since it was planned" if row.version else "does not exist"
    if info.type != FileType.File:
        return "is a folder" if info.type == FileType.Directory else "is not a file"
    if row.version not in {None, f"{info.size}-{info.mtime_ns}"}:
        return "changed after it was planned"
    return ""


def _broken(row: Row, kind: Kind, why: str) -> Row:
    return row._replace(broken=Broken(kind, f"{row.uri} {why.splitlines()[0]}", msgspec.json.encode(row.uri)))
