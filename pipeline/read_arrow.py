"""Arrow IPC: files, entered at any record batch, and streams, read from their beginning."""

from __future__ import annotations

import struct
from bisect import bisect_left
from typing import IO, TYPE_CHECKING, Final, NamedTuple

import pyarrow as pa
from pyarrow import ipc

from pipeline.errors import JobError
from pipeline.pieces import Found, Mark, Piece
from pipeline.storage import open_seekable, open_source, open_stream

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pipeline.pieces import Wanted
    from schemas.job import Input
    from schemas.plan import Source

BATCH_ROWS: Final = 10_000
BATCH_BYTES: Final = 4_000_000

_MAGIC: Final = b"ARROW1"  # a file begins and ends with it, a stream has none
_TAIL: Final = struct.Struct(f"<i{len(_MAGIC)}x")  # the footer's length, and the magic
_BLOCK: Final = struct.Struct("<qi4xq")
_UINT16: Final = struct.Struct("<H")
_INT32: Final = struct.Struct("<i")
_INT64: Final = struct.Struct("<q")
_CONTINUED: Final = b"\xff\xff\xff\xff"  # comes before a message's length since Arrow 0.15
# Fields by their number in Arrow's File.fbs and Message.fbs.
_FOOTER_BATCHES: Final = 3
_MESSAGE_HEADER: Final = 2
_BATCH_LENGTH: Final = 0


class _Block(NamedTuple):
    """Where a record batch is in a file, and the bytes of its metadata and of its values."""

    offset: int
    metadata: int
    body: int


def look(uri: str, given: Input, known: Mapping[str, pa.DataType]) -> Found:  # noqa: ARG001 - the file has its types
    """Read what a file says of itself; a stream says nothing of its rows. Raises JobError when it is neither.

    Marks are record batches, by the byte where they begin. No values are decoded, but for a stream's first batches.
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

    Of a file, no batch before `start` is decoded. Memory is bounded by the largest record batch.
    """
    if _is_file(source.uri):
        batches = _file_batches(source.uri, wanted.columns, start, mark)
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
    with open_stream(uri) as stream, ipc.open_stream(stream) as reader:
        empty = not any(batch.num_rows for batch in reader)
        return Found(reader.schema, 0 if empty else None, fs.get_file_info(path).size, empty=empty)


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
    with open_seekable(uri) as file:
        schema = ipc.open_file(file).schema  # type: ignore[arg-type]
        row = size = 0
        marks: list[Mark] = []
        for block in _blocks(file):
            if not marks or row - marks[-1].row >= BATCH_ROWS or block.offset - marks[-1].offset >= BATCH_BYTES:
                marks.append(Mark(row, block.offset))
            row += _rows(file, block)
            size += block.body
        return Found(schema, row, size, tuple(marks), empty=not row)


def _file_batches(uri: str, columns: Sequence[str], start: int, mark: Mark) -> Iterator[tuple[int, pa.RecordBatch]]:
    with open_seekable(uri) as file:
        schema = ipc.open_file(file).schema  # type: ignore[arg-type]
        reader = ipc.open_file(file, options=_only(schema, columns))  # type: ignore[arg-type]
        blocks = _blocks(file)
        first = mark.row
        for index in range(bisect_left(blocks, mark.offset, key=lambda block: block.offset), len(blocks)):
            rows = _rows(file, blocks[index])
            if first + rows > start:
                yield first, _select(reader.get_batch(index), columns)
            first += rows


def _blocks(file: pa.NativeFile | IO[bytes]) -> list[_Block]:
    """Return the record batches, in order, from the footer of a file that Arrow could open."""
    end = file.seek(-_TAIL.size, 2)
    [length] = _TAIL.unpack(file.read(_TAIL.size))
    file.seek(end - length)
    footer = file.read(length)
    place = _field(footer, _table(footer, 0), _FOOTER_BATCHES)
    if not place:
        return []
    vector = _table(footer, place)
    [count] = _INT32.unpack_from(footer, vector)
    blocks = footer[vector + _INT32.size :][: count * _BLOCK.size]
    return [_Block(*block) for block in _BLOCK.iter_unpack(blocks)]


def _rows(file: pa.NativeFile | IO[bytes], block: _Block) -> int:
    """Return how many rows a record batch has. Arrow itself would read all its values for that."""
    file.seek(block.offset)
    message = file.read(block.metadata)
    message = message.removeprefix(_CONTINUED)[_INT32.size :]
    try:
        batch = _table(message, _field(message, _table(message, 0), _MESSAGE_HEADER))
        place = _field(message, batch, _BATCH_LENGTH)
        return int(_INT64.unpack_from(message, place)[0]) if place else 0
    except struct.error:
        raise pa.ArrowInvalid(f"there is no record batch at byte {block.offset}") from None


def _table(data: bytes, place: int) -> int:
    """Follow the reference at a place in a flatbuffer, the coding of Arrow's metadata."""
    return place + int(_INT32.unpack_from(data, place)[0])


def _field(data: bytes, table: int, number: int) -> int:
    """Return the place of a table's field in a flatbuffer; 0 where it is left out, because it has its default."""
    directory = table - int(_INT32.unpack_from(data, table)[0])
    entry = 2 * _UINT16.size + _UINT16.size * number  # the directory's own size and the table's come first
    if entry >= _UINT16.unpack_from(data, directory)[0]:
        return 0
    [offset] = _UINT16.unpack_from(data, directory + entry)
    return table + offset if offset else 0
