"""Parquet: entered at any row group, streamed by row range, only the columns that are needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import JobError
from pipeline.pieces import Found, Piece
from pipeline.storage import open_seekable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pipeline.pieces import Mark, Wanted
    from schemas.job import Input
    from schemas.plan import Source

BATCH_ROWS: Final = 10_000
BATCH_BYTES: Final = 4_000_000
_READ_BUFFER: Final = 1 << 20


def look(uri: str, given: Input, known: Mapping[str, pa.DataType]) -> Found:  # noqa: ARG001 - the file has its types
    """Read a file's footer: schema and counts. Raises JobError when it is not a whole Parquet file."""
    try:
        with open_seekable(uri) as opened, pq.ParquetFile(opened) as file:
            groups = [file.metadata.row_group(index).total_byte_size for index in range(file.metadata.num_row_groups)]
            rows = file.metadata.num_rows
            return Found(file.schema_arrow, rows, sum(groups), empty=not rows)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise JobError(
            f"input.path: {uri} is not a readable Parquet file: {reason}; replace it or leave it out"
        ) from None


def pieces(source: Source, wanted: Wanted, start: int, mark: Mark) -> Iterator[Piece]:  # noqa: ARG001 - row groups are marks
    """Yield batches of at most BATCH_ROWS rows or about BATCH_BYTES, from the row group that `start` is in.

    Parquet cannot be entered in the middle of a row group. Memory is bounded by a batch and the read buffer, however
    large a row group is.
    """
    with (
        open_seekable(source.uri) as opened,
        pq.ParquetFile(opened, pre_buffer=False, buffer_size=_READ_BUFFER) as file,
    ):
        position, groups, size = _groups(file.metadata, start)
        rows = max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, size)))
        columns = [name for name in wanted.columns if name in file.schema_arrow.names]
        for batch in file.iter_batches(rows, row_groups=groups, columns=columns, use_threads=False):
            yield Piece(position, batch)
            position += batch.num_rows


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
