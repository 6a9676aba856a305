"""Parquet rows, streamed: by row group and row range, only the columns that are needed."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileSystem, FileType

from pipeline.errors import JobError, StorageFailed
from pipeline.storage import open_source

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from schemas.plan import Source

BATCH_ROWS: Final = 10_000
BATCH_BYTES: Final = 4_000_000
_READ_BUFFER: Final = 1 << 20


class Footer(NamedTuple):
    """What a Parquet file says of itself."""

    schema: pa.Schema
    rows: int
    data_bytes: int


class Batch(NamedTuple):
    """Source rows `[first, first + data.num_rows)`; `unreadable` maps a position to why it does not fit its type."""

    first: int
    data: pa.RecordBatch
    unreadable: Mapping[int, str]


def footer(uri: str) -> Footer:
    """Read a file's schema and counts. Raises JobError when it is not a whole Parquet file."""
    fs, path = open_source(uri)
    try:
        with pq.ParquetFile(path, filesystem=fs) as file:
            groups = [file.metadata.row_group(index).total_byte_size for index in range(file.metadata.num_row_groups)]
            return Footer(file.schema_arrow, file.metadata.num_rows, sum(groups))
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise JobError(
            f"input.path: {uri} is not a readable Parquet file: {reason}; replace it or leave it out"
        ) from None


def schema_of(source: Source) -> pa.Schema:
    """Return the schema of a planned source. Raises StorageFailed when it is no longer the file that was planned."""
    with _reading(source.uri):
        fs, path = _as_planned(source)
        return pq.read_schema(path, filesystem=fs)


def types_of(columns: Mapping[str, str]) -> dict[str, pa.DataType]:
    """Return the declared Arrow types. Raises JobError for a name that Arrow does not have."""
    types: dict[str, pa.DataType] = {}
    for name, text in columns.items():
        try:
            types[name] = pa.type_for_alias(text)  # type: ignore[call-overload]
        except (ValueError, KeyError):
            raise JobError(
                f"input.columns.{name}: {text!r} is not a type; allowed: string, int64, double, float, bool, date32, "
                "timestamp[us], binary and the other Arrow names"
            ) from None
    return types


class Reader:
    """Reads ranges of rows, one after the other; a range that follows the last one costs no second look.

    Parquet cannot be entered in the middle of a row group: what comes before a range in its group is decoded and
    thrown away. A worker reads its splits in order, so the file stays open behind the last range for the next one.
    Not thread-safe.
    """

    def __init__(self, columns: Sequence[str], types: Mapping[str, pa.DataType]) -> None:
        self._columns = list(columns)
        self._types = types
        self._open: _OpenSource | None = None

    def read(self, source: Source, start: int, stop: int) -> Iterator[Batch]:
        """Yield rows `[start, stop)` in order, in batches of at most BATCH_ROWS rows or about BATCH_BYTES.

        Memory is bounded by a batch and the read buffer, however large a row group is. Raises StorageFailed, naming the
        file, when it vanished, was cut, or is no longer the file that was planned.
        """
        with _reading(source.uri):
            file = self._file(source, start)
            while max(start, file.position) < stop and (batch := file.take(start, stop)) is not None:
                yield _cast(file.position - batch.num_rows, batch, self._types)

    def close(self) -> None:
        """Close the file that is open, if one is."""
        if self._open:
            self._open.close()
            self._open = None

    def _file(self, source: Source, start: int) -> _OpenSource:
        if self._open is None or self._open.source != source or self._open.position > start:
            self.close()
            self._open = _OpenSource(source, start, self._columns)
        return self._open


class _OpenSource:
    """A Parquet file open at `position`, the number of the next row."""

    def __init__(self, source: Source, start: int, columns: list[str]) -> None:
        self.source = source
        fs, path = _as_planned(source)
        self._file = pq.ParquetFile(path, filesystem=fs, pre_buffer=False, buffer_size=_READ_BUFFER)
        self.position, groups, size = _groups(self._file.metadata, start)
        rows = max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, size)))
        self._batches = self._file.iter_batches(rows, row_groups=groups, columns=columns, use_threads=False)
        self._rest: pa.RecordBatch | None = None

    def take(self, start: int, stop: int) -> pa.RecordBatch | None:
        """Return the next rows at or behind `start` and before `stop`, as many as come at once; None at the end."""
        while (batch := self._rest or next(self._batches, None)) is not None:
            low, high = max(start - self.position, 0), min(stop - self.position, batch.num_rows)
            self._rest = batch.slice(high) if high < batch.num_rows else None
            self.position += min(high, batch.num_rows)
            if low < high:
                return batch.slice(low, high - low)
        return None

    def close(self) -> None:
        self._file.close()


def _as_planned(source: Source) -> tuple[FileSystem, str]:
    """Return the file system and path of a source that is still the file that was planned."""
    fs, path = open_source(source.uri)
    info = fs.get_file_info(path)
    if f"{info.size}-{info.mtime_ns}" != source.version:
        what = "is gone since" if info.type == FileType.NotFound else "changed after"
        raise StorageFailed(f"{source.uri} {what} it was planned; put it back, or run again to see how")
    return fs, path


def _groups(metadata: pq.FileMetaData, start: int) -> tuple[int, list[int], int]:
    """Return (first row of the group that `start` is in, that group and all behind it, bytes of a row)."""
    groups: list[int] = []
    row = first = size = 0
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        if row + group.num_rows > start:
            first = first if groups else row
            groups.append(index)
            size = max(size, group.total_byte_size // max(1, group.num_rows))
        row += group.num_rows
    return first if groups else row, groups, size


def _cast(first: int, batch: pa.RecordBatch, types: Mapping[str, pa.DataType]) -> Batch:
    unreadable: dict[int, str] = {}
    for index, name in enumerate(batch.schema.names):
        if name in types and batch.schema.field(index).type != types[name]:
            column = _cast_column(name, batch.column(index), types[name], unreadable)
            batch = batch.set_column(index, pa.field(name, types[name]), column)
    return Batch(first, batch, unreadable)


def _cast_column(name: str, column: pa.Array[Any], kind: pa.DataType, unreadable: dict[int, str]) -> pa.Array[Any]:
    try:
        return column.cast(kind)
    except pa.ArrowException:
        pass
    values = []
    for position, value in enumerate(column):  # the slow way, only for a batch with a value that does not fit
        try:
            values.append(value.cast(kind))
        except pa.ArrowException:
            unreadable[position] = f"{name} is {value.as_py()!r}, which is no {kind}"
            values.append(pa.scalar(None, kind))
    return pa.array(values, kind)


@contextmanager
def _reading(uri: str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise StorageFailed(
            f"cannot read {uri}: {reason}; put the file back as it was planned and run again"
        ) from error
