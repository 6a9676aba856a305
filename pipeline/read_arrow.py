"""Arrow IPC: files, entered at any record batch, and streams, read from their beginning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pyarrow as pa
from pyarrow import ipc

from pipeline.errors import JobError
from pipeline.pieces import Found, Mark, Piece
from pipeline.storage import is_compressed, open_seekable, open_source, open_stream

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pipeline.pieces import Wanted
    from schemas.job import Input
    from schemas.plan import Source

BATCH_ROWS: Final = 10_000
BATCH_BYTES: Final = 4_000_000

_MAGIC: Final = b"ARROW1"  # a file begins and ends with it, a stream has none


def look(uri: str, given: Input, known: Mapping[str, pa.DataType]) -> Found:  # noqa: ARG001 - the file has its types
    """Read what a file says of itself; a stream says nothing of its rows. Raises JobError when it is neither.

    Marks are record batches, by their number. To count rows, one column is decoded: Arrow tells them in no other way.
    """
    try:
        return _look_file(uri) if _is_file(uri) else _look_stream(uri)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise JobError(
            f"input.path: {uri} is not a readable Arrow file: {reason}; replace it or leave it out"
        ) from None


def pieces(source: Source, wanted: Wanted, start: int, mark: Mark) -> Iterator[Piece]:
    """Yield record batches from `start`, in pieces of at most BATCH_ROWS rows or about BATCH_BYTES.

    Of a file, no batch before `mark` is decoded. Memory is bounded by the largest record batch.
    """
    if _is_file(source.uri):
        batches = _file_batches(source.uri, wanted.columns, mark)
    else:
        batches = _stream_batches(source.uri, wanted.columns)
    for first, batch in batches:
        batch.validate()  # a damaged file must not be read beyond its end
        yield from _sliced(first, batch, start)


def _sliced(first: int, batch: pa.RecordBatch, start: int) -> Iterator[Piece]:
    rows = max(1, min(BATCH_ROWS, BATCH_BYTES * batch.num_rows // max(1, batch.nbytes)))
    for position in range(max(0, start - first), batch.num_rows, rows):
        yield Piece(first + position, batch.slice(position, rows))


def _is_file(uri: str) -> bool:
    with open_stream(uri) as stream:
        return stream.read(len(_MAGIC)) == _MAGIC


def _only(schema: pa.Schema, columns: Sequence[str]) -> ipc.IpcReadOptions:
    """Decode nothing but these columns. Of columns that have the same name, the first counts."""
    return ipc.IpcReadOptions(
        use_threads=False, included_fields=[schema.names.index(name) for name in columns if name in schema.names]
    )


def _select(batch: pa.RecordBatch, columns: Sequence[str]) -> pa.RecordBatch:
    return batch.select([name for name in columns if name in batch.schema.names])


# Streams


def _look_stream(uri: str) -> Found:
    fs, path = open_source(uri)
    size = fs.get_file_info(path).size
    if not is_compressed(uri):
        with open_stream(uri) as stream:
            _check_length(stream.read(8), size)
    with open_stream(uri) as stream, ipc.open_stream(stream) as reader:
        empty = not any(batch.num_rows for batch in reader)
        return Found(reader.schema, 0 if empty else None, size, empty=empty)


def _check_length(head: bytes, size: int) -> None:
    """See that the first message ends within the file: what is no stream may say a length that Arrow would allocate."""
    length = int.from_bytes(head.removeprefix(b"\xff\xff\xff\xff")[:4], "little")
    if length > size:
        raise pa.ArrowInvalid(f"it is neither a file nor a stream: its first message would have {length} bytes")


def _stream_batches(uri: str, columns: Sequence[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    with open_stream(uri) as stream, ipc.open_stream(stream) as reader:
        schema = reader.schema
    first = 0
    with open_stream(uri) as stream, ipc.open_stream(stream, options=_only(schema, columns)) as reader:
        for batch in reader:
            yield first, _select(batch, columns)
            first += batch.num_rows


# Files


def _look_file(uri: str) -> Found:
    fs, path = open_source(uri)
    with open_seekable(uri) as file:
        schema = ipc.open_file(file).schema  # type: ignore[arg-type]
        reader = ipc.open_file(file, options=_only(schema, schema.names[:1]))  # type: ignore[arg-type]
        marks: list[Mark] = []
        row = 0
        for index in range(reader.num_record_batches):
            if not marks or row - marks[-1].row >= BATCH_ROWS:
                marks.append(Mark(row, index))
            row += reader.get_batch(index).num_rows
        return Found(schema, row, fs.get_file_info(path).size, tuple(marks), empty=not row)


def _file_batches(uri: str, columns: Sequence[str], mark: Mark) -> Iterator[tuple[int, pa.RecordBatch]]:
    with open_seekable(uri) as file:
        schema = ipc.open_file(file).schema  # type: ignore[arg-type]
        reader = ipc.open_file(file, options=_only(schema, columns))  # type: ignore[arg-type]
        first = mark.row
        for index in range(mark.offset, reader.num_record_batches):
            batch = _select(reader.get_batch(index), columns)
            yield first, batch
            first += batch.num_rows
