"""Parquet rows, streamed: by row group and row range, only the columns that are needed."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

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


def read(
    source: Source, start: int, stop: int, *, columns: Sequence[str], types: Mapping[str, pa.DataType]
) -> Iterator[Batch]:
    """Yield rows `[start, stop)` of a source in order, in batches of at most BATCH_ROWS rows or about BATCH_BYTES.

    Memory is bounded by a batch and the read buffer, however large a row group is. Raises StorageFailed, naming the
    file, when it vanished, was cut, or is no longer the file that was planned.
    """
    with _reading(source.uri):
        fs, path = open_source(source.uri)
        info = fs.get_file_info(path)
        if f"{info.size}-{info.mtime_ns}" != source.version:
            raise StorageFailed(f"{source.uri} changed after it was planned; run the same command again to see how")
        with pq.ParquetFile(path, filesystem=fs, pre_buffer=False, buffer_size=_READ_BUFFER) as file:
            first, groups, size = _groups(file.metadata, start, stop)
            rows = max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, size)))
            for batch in file.iter_batches(rows, row_groups=groups, columns=list(columns), use_threads=False):
                low, high = max(start, first), min(stop, first + batch.num_rows)
                if low < high:
                    yield _cast(low, batch.slice(low - first, high - low), types)
                first += batch.num_rows


def _groups(metadata: pq.FileMetaData, start: int, stop: int) -> tuple[int, list[int], int]:
    """Return (row number of the first group's first row, groups that overlap the range, bytes of an average row)."""
    groups: list[int] = []
    row = first = size = rows = 0
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        if row < stop and row + group.num_rows > start:
            first = first if groups else row
            groups.append(index)
            size += group.total_byte_size
            rows += group.num_rows
        row += group.num_rows
    return first, groups, size // max(1, rows)


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
