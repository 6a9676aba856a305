"""Listings of very many files as a table: no Python object stays of a file for longer than its folder takes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.fs import FileSelector, FileType, LocalFileSystem

from pipeline.errors import JobError
from pipeline.globs import WILD, matches, nothing_at, split_pattern
from pipeline.storage import open_source, storing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pyarrow.fs import FileInfo, FileSystem

_TYPES: Final[dict[str, pa.DataType]] = {
    "uri": pa.string(),
    "path": pa.string(),
    "size": pa.int64(),
    "version": pa.string(),
}

LISTING: Final = pa.schema(list(_TYPES.items()))
"""The columns of a listing, as in `Listed`."""

_LISTERS: Final = 8  # on an object store each folder is a request


def listing_table(patterns: Iterable[str], shared: str, *, may_be_gone: bool = False) -> pa.Table:
    """List all files that the patterns name as a table of LISTING, sorted by URI, each file once.

    `path` is what lies below `shared`, the folder that the fixed parts of all patterns are in. Hidden files match only
    by name. Raises JobError where a pattern matches nothing, unless that `may_be_gone`, and StorageFailed where listing
    fails.
    """
    batches: list[pa.RecordBatch] = []
    for pattern in patterns:
        found = [batch for batch in _found(pattern, shared) if batch.num_rows]
        if not found and not may_be_gone:
            raise JobError(nothing_at(pattern, folder=Path(pattern).is_dir()))
        batches += found
    table = pa.Table.from_batches(batches, LISTING).sort_by("uri")
    return table.filter(_first_of_equals(table["uri"])) if len(table) else table


def may_hold(pattern: str, folder: str) -> bool:
    """Whether files somewhere in a folder can match a relative glob."""
    *parts, last = pattern.split("/")
    fixed = list(takewhile(lambda part: part != "**", parts))
    crossing = "**" in (*parts, last)
    above = folder.split("/")[: len(fixed)]
    return (crossing or folder.count("/") < len(fixed)) and matches("/".join(fixed[: len(above)]), "/".join(above))


def _first_of_equals(column: pa.ChunkedArray[Any]) -> pa.ChunkedArray[Any]:
    """Tell which values of a column differ from the one before them; the first one does."""
    differ: Any = pc.not_equal(column[1:], column[:-1])
    return pa.chunked_array([pa.array([True]), *differ.chunks])


class Listed(NamedTuple):
    """A file as a listing shows it: absolute URI, the part below the pattern's fixed prefix, bytes, and version."""

    uri: str
    path: str
    size: int
    version: str


class _Place(NamedTuple):
    """Where a pattern begins: a file system, the folder on it, its URI, and the folder's path below the shared one."""

    fs: FileSystem
    root: str
    uri: str
    above: str

    def turns(self, info: FileInfo) -> bool:
        """Whether a folder is a link to one that it is in: its files are there without it, again and again with it."""
        with suppress(UnicodeDecodeError):  # such a name is told if it matters
            if isinstance(self.fs, LocalFileSystem) and Path(info.path).is_symlink():
                real = Path(info.path).resolve()
                return any(above.resolve() == real for above in Path(info.path).parents)
        return False

    def batch(self, folder: str, infos: list[FileInfo]) -> pa.RecordBatch:
        """Return files that are in a folder below the root as a part of the table."""
        names = self.readable(map(_name, infos))
        below = f"{folder}/" if folder else ""
        above = f"{self.above}/{below}" if self.above else below
        escaped = quote if isinstance(self.fs, LocalFileSystem) else str  # as `Path.as_uri` does
        uri = f"{self.uri}/{escaped(below)}"
        columns: dict[str, list[Any]] = {
            "uri": [f"{uri}{escaped(name)}" for name in names],
            "path": [f"{above}{name}" for name in names],
            "size": [info.size for info in infos],
            "version": [f"{info.size}-{info.mtime_ns}" for info in infos],
        }
        return pa.record_batch({name: pa.array(columns[name], kind) for name, kind in _TYPES.items()})

    def readable(self, names: Iterable[str]) -> list[str]:
        """Return names below the root. Raises JobError for one that is not UTF-8, as Arrow wants them to be."""
        found = list(names)
        try:
            "".join(found).encode()
        except UnicodeEncodeError as error:
            odd = next(name for name in found if error.object[error.start] in name)
            raise JobError(
                f"input.path: a name in {self.uri} is not UTF-8: {odd.encode(errors='surrogateescape')!r}; rename it"
            ) from None
        return found


def _name(info: FileInfo) -> str:
    try:
        return info.base_name
    except UnicodeDecodeError as error:
        return error.object.decode(errors="surrogateescape")


def _found(pattern: str, shared: str) -> Iterator[pa.RecordBatch]:
    prefix, rest = split_pattern(pattern)
    with storing("list", pattern):
        fs, root = open_source(prefix)
        local = isinstance(fs, LocalFileSystem)
        uri = Path(root or "/").as_uri() if local else f"{prefix.partition('://')[0]}://{root}"
        place = _Place(fs, root, uri.rstrip("/"), prefix[len(shared) :].strip("/"))
        if WILD.search(rest):
            yield from _walk(place, rest)
        else:
            info = fs.get_file_info(f"{root}/{rest}")
            yield place.batch("", [info] if info.type == FileType.File else [])


def _walk(place: _Place, rest: str) -> Iterator[pa.RecordBatch]:
    """List the folders that may hold matches, level by level."""

    def look(folder: str) -> tuple[pa.RecordBatch, list[str]]:
        below = f"{folder}/" if folder else ""
        infos = place.fs.get_file_info(FileSelector(f"{place.root}/{folder}".rstrip("/"), allow_not_found=True))
        files = [one for one in infos if one.type == FileType.File and matches(rest, f"{below}{_name(one)}")]
        inner = (one for one in infos if one.type == FileType.Directory and not place.turns(one))
        folders = [f"{below}{_name(one)}" for one in inner]
        return place.batch(folder, files), place.readable(one for one in folders if may_hold(rest, one))

    level = [""]
    with ThreadPoolExecutor(_LISTERS) as pool:
        while level:
            deeper: list[str] = []
            for batch, folders in pool.map(look, level):
                yield batch
                deeper += folders
            level = deeper
