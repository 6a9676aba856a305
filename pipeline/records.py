"""Bytes in any encoding -> blocks of whole CSV records in UTF-8. Pure but for the `read` that it is given.

Arrow's parser gets one such block at a time. Its own streaming reader reads 34 blocks ahead, takes the rest of a file
for one field where a quote is never closed, and gives up at a row with too many fields that is not UTF-8.

A record ends where Arrow ends it: at CR or LF outside of quotes; a quote opens only at the beginning of a field, two
of them in a quoted field are one, and behind the closing one the field goes on as if there were none.
"""

from __future__ import annotations

import codecs
import re
from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BLOCK: Final = 1 << 20
LONGEST: Final = 1 << 24
NEWLINES: Final = b"\r\n"

UNDECODABLE: Final = "\ufdd0\ufdd1\ufdd0"
"""Stands for bytes that are no text: noncharacters, which Unicode keeps for a program's own use.

It is text itself, because Arrow shows a ragged row only if that is. A row that comes with it is taken for no text.
"""

_HANDLER: Final = "bulkscore.undecodable"
codecs.register_error(_HANDLER, lambda error: (UNDECODABLE, error.end))  # type: ignore[attr-defined]

_UTF8: Final = ((codecs.BOM_UTF8, "utf-8"),)
_UTF16: Final = ((codecs.BOM_UTF16_BE, "utf-16-be"), (codecs.BOM_UTF16_LE, "utf-16-le"))
_UTF32: Final = ((codecs.BOM_UTF32_BE, "utf-32-be"), (codecs.BOM_UTF32_LE, "utf-32-le"))
_MARKS: Final = {
    "utf-8": _UTF8,
    "utf-8-sig": _UTF8,
    "utf-16": _UTF16,
    "utf-16-be": _UTF16[:1],
    "utf-16-le": _UTF16[1:],
    "utf-32": _UTF32,
    "utf-32-be": _UTF32[:1],
    "utf-32-le": _UTF32[1:],
}
_UNMARKED: Final = {"utf-8-sig": "utf-8", "utf-16": "utf-16-le", "utf-32": "utf-32-le"}  # as Windows writes them


class UnendedError(Exception):
    """A record is longer than LONGEST, or the file ends within its quotes; all records before it were yielded."""


def blocks(read: Callable[[int], bytes], encoding: str, delimiter: str, quote: str) -> Iterator[bytes]:
    """Yield all records in order, in blocks of about BLOCK bytes; each ends in a newline, also a last one without.

    `read(n)` gives at most n bytes, and none at the end. Bytes that are no text become UNDECODABLE; a byte order mark
    is dropped. Memory is bounded by BLOCK, or by twice LONGEST where records are long. Raises UnendedError,
    UnicodeError where an encoding's decoder does not go on behind a fault, and whatever `read` raises.
    """
    codec, head = _begin(encoding, _fill(read, len(codecs.BOM_UTF32_BE)))
    decoder = codecs.getincrementaldecoder(codec)(_HANDLER)
    data, last = b"", False
    while not last:
        size = max(BLOCK, len(data))  # doubled while a record goes on, so that a long one is not gone through often
        raw = _fill(read, size)
        last = len(raw) < size
        data += decoder.decode(head + raw, last).encode("utf-8", _HANDLER) + b"\n" * last
        head = b""
        end = _end(data, delimiter, quote)
        if end:
            yield data[:end]
        data = data[end:]
        if len(data) > LONGEST or (last and data):
            raise UnendedError


def first_record(block: bytes, delimiter: str, quote: str) -> bytes:
    """Return the first record of a block, with its newline."""
    found = _patterns(delimiter, quote)[0].match(block)
    return found.group() if found else block


def _begin(encoding: str, head: bytes) -> tuple[str, bytes]:
    """Return the codec of a file by its declared encoding and first bytes, and these without a byte order mark."""
    name = codecs.lookup(encoding).name
    for mark, codec in _MARKS.get(name, ()):
        if head.startswith(mark):
            return codec, head[len(mark) :]
    return _UNMARKED.get(name, name), head


def _fill(read: Callable[[int], bytes], size: int) -> bytes:
    data = read(size)
    while 0 < len(data) < size and (more := read(size - len(data))):
        data += more
    return data


def _end(data: bytes, delimiter: str, quote: str) -> int:
    """Return where the last whole record ends, in data that begins with a record."""
    if not quote or quote.encode() not in data:
        return max(data.rfind(b"\n"), data.rfind(b"\r")) + 1  # between CR and LF there is a blank line, which is no row
    found = _patterns(delimiter, quote)[1].match(data)
    return found.end() if found else 0


@cache
def _patterns(delimiter: str, quote: str) -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
    """Return what matches one record, and all whole ones; possessive, so that neither ever goes back."""
    d, q = re.escape(delimiter), re.escape(quote)
    field = rf"[^{d}\r\n]*+"
    if quote:
        field = rf"(?:{q}[^{q}]*+(?:{q}{q}[^{q}]*+)*+{q}|(?!{q})){field}"
    record = rf"(?:{field}{d})*+{field}[\r\n]"
    return re.compile(record.encode()), re.compile(rf"(?:{record})*+".encode())
