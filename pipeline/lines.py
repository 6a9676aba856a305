"""Files made of lines: JSONL, and lists of files.

A row is a line that is not empty; LF and CRLF end a line, and the last one needs no end. A byte order mark at the
file's start belongs to no line. Everything that numbers rows does it here, so that a row has one number whoever reads
it, and from wherever.
"""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from pipeline.errors import JobError
from pipeline.pieces import Mark
from pipeline.storage import is_compressed, open_seekable, open_stream

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK: Final = 4 << 20
"""Bytes read at once, and between two marks."""
LONGEST: Final = 1_000_000_000
"""Bytes of a line that is still read: it is in memory twice."""
START: Final = Mark(0, 0)

_BOM: Final = b"\xef\xbb\xbf"
_LF, _CR = b"\n\r"
_SIP: Final = 4096  # of a file that was cut, all is lost that the failing read had unpacked already


def index(uri: str) -> tuple[int, tuple[Mark, ...]]:
    """Count the rows of a file that is not compressed, and mark START and the first line that begins in each block.

    What begins at the last mark may be no row any more. Raises OSError when storage fails.
    """
    rows, marks = 0, [START]
    tail = b"\n\n"  # the two bytes before a block; a file begins where a line does
    with open_seekable(uri) as stream:
        offset = stream.seek(len(_BOM) if stream.read(len(_BOM)) == _BOM else 0)
        while block := stream.read(BLOCK):
            data = np.frombuffer(tail + block, np.uint8)
            ends = np.flatnonzero(data[2:] == _LF)
            before, before_that = data[ends + 1], data[ends]
            full = (before != _LF) & ((before != _CR) | (before_that != _LF))
            if ends.size and offset >= BLOCK:
                marks.append(Mark(rows + int(full[0]), offset + int(ends[0]) + 1))
            rows += int(np.count_nonzero(full))
            offset += len(block)
            tail = (tail + block[-2:])[-2:]
    open_row = tail[1] != _LF and tail != b"\n\r"
    return rows + open_row, tuple(marks)


def read(uri: str, mark: Mark = START, block: int = BLOCK) -> Iterator[tuple[int, list[bytes]]]:
    """Yield (number of the first row, successive rows) from a mark on, about `block` bytes at a time.

    A compressed file is read from its beginning, whatever the mark. Memory is some blocks, or some times the longest
    line. Raises OSError or ArrowException where storage or the compression fails, after the rows before that place,
    and JobError for a line longer than LONGEST.
    """
    packed = is_compressed(uri)
    row, offset = START if packed else mark
    with open_stream(uri) if packed else open_seekable(uri) as stream:
        if offset:
            stream.seek(offset)
        for data in _whole_lines(uri, stream, block, _SIP if packed else block):
            if rows := _rows(data if offset else data.removeprefix(_BOM)):
                yield row, rows
            row, offset = row + len(rows), offset + len(data)


def _whole_lines(uri: str, stream: pa.NativeFile | IO[bytes], block: int, sip: int) -> Iterator[bytes]:
    """Cut what a stream still has into blocks of whole lines; the last line may lack its end."""
    parts: list[bytes] = []
    size = 0
    try:
        while part := stream.read(sip):
            parts.append(part)
            size += len(part)
            if size >= block and _LF in part:
                lines, rest = _cut(parts)
                yield lines
                parts, size = [rest], len(rest)
            elif size > LONGEST:
                raise JobError(f"input.path: {uri} has a line of more than {LONGEST} bytes; cut it, or leave it out")
    except (OSError, pa.ArrowException):
        yield _cut(parts)[0]
        raise
    yield b"".join(parts)


def _cut(parts: list[bytes]) -> tuple[bytes, bytes]:
    """Return (the lines that have their end, what is behind them)."""
    data = b"".join(parts)
    end = data.rfind(b"\n") + 1
    return data[:end], data[end:]


def _rows(data: bytes) -> list[bytes]:
    lines = data.split(b"\n")
    if b"\r" in data:
        lines = [line.removesuffix(b"\r") for line in lines]
    return list(filter(None, lines))
