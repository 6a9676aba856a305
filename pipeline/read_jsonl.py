"""JSONL: one JSON object a line, typed as declared or as the first file begins.

A file that is not compressed can be entered at any line. A line that cannot be read costs that line.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import msgspec
import pyarrow as pa

from pipeline import lines
from pipeline.errors import JobError
from pipeline.globs import folders
from pipeline.jsonrows import JsonRows, objects
from pipeline.jsontypes import NotFromJson, reading_of
from pipeline.pieces import Broken, Found, Piece
from pipeline.storage import is_compressed, open_source

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pipeline.pieces import Mark, Wanted
    from schemas.job import Input
    from schemas.plan import Source

_log: Final = logging.getLogger(__name__)

BATCH_ROWS: Final = 10_000
_HEAD: Final = 1 << 20
_SHOWN: Final = 60

_BY_FIRST_BYTE: Final = {
    **dict.fromkeys(b"tf", "bool"),
    ord('"'): "text",
    ord("["): "list",
    ord("{"): "object",
    ord("n"): "null",
}
_NESTED: Final = frozenset({"list", "object"})
_INFERRED: Final = (
    ({"integer"}, pa.int64()),
    ({"integer", "number"}, pa.float64()),
    ({"bool"}, pa.bool_()),
)
"""The first type that takes all kinds of a column's values; else it is text."""


def look(uri: str, given: Input, known: Mapping[str, pa.DataType]) -> Found:
    """Count a file's rows unless it is compressed, and infer the types that nobody knows from its first MiB.

    Declared columns (`given.columns`) that do not show there are part of the schema all the same. Where `known` has
    more than those, an earlier file has fixed all columns, and the values are not looked at. Raises JobError for a
    file whose first lines are no JSON objects or that cannot be unpacked, for a type that JSON is not read as, and
    for a column with the name of a folder.
    """
    fixed = not known.keys() <= given.columns.keys()
    try:
        fs, path = open_source(uri)
        size = fs.get_file_info(path).size
        rows, marks = (None, ()) if is_compressed(uri) else lines.index(uri)
        head = [] if fixed else _head(uri)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise JobError(f"input.path: {uri} is not readable as JSONL: {reason}; replace it or leave it out") from None
    _check(known)
    said = folders(uri)
    inferred, nested = _inferred(uri, head)
    unsaid = [name for name in nested if name not in known and (given.send is None or name in given.send)]
    if unsaid:
        _log.warning("lists and objects of %s are sent as text, for input.columns has no type of them: %s", uri, unsaid)
    types = {**inferred, **{name: kind for name, kind in known.items() if name not in said}}
    if given.send is None and (twice := types.keys() & said.keys()):
        name = min(twice)
        raise JobError(f"input.path: {name!r} is a column of {uri} and one of its folders; rename one of them")
    empty = rows == 0 or not (fixed or head)
    return Found(pa.schema(list(types.items())), rows, size, marks, empty, inferred)


def pieces(source: Source, wanted: Wanted, start: int, mark: Mark) -> Iterator[Piece]:
    """Yield the wanted columns in their types, of all rows from `start` or some rows before it; folders' are left out.

    Memory is some blocks of lines, or some times the longest line. Of a compressed file that was cut, the rows before
    that place come out before the OSError. Raises JobError for a line that is too long.
    """
    said = folders(source.uri)
    names = [name for name in wanted.columns if name in wanted.types and name not in said]
    rows = JsonRows({name: wanted.types[name] for name in names}, loose=True)
    for first, block in lines.read(source.uri, mark):
        for low in range(max(0, start - first), len(block), BATCH_ROWS):
            part = block[low : low + BATCH_ROWS]
            data, faults = rows.decode(part)
            yield Piece(first + low, data, {at: _broken(why, part[at]) for at, why in faults.items()})


def _broken(why: str, line: bytes) -> Broken:
    return Broken("unreadable", why, msgspec.json.encode(str(line, "utf-8", "replace")))


def _head(uri: str) -> list[bytes]:
    """Return the lines of the first MiB, or the first line if it is longer."""
    _, head = next(lines.read(uri, block=_HEAD), (0, []))
    return head


def _check(types: Mapping[str, pa.DataType]) -> None:
    for name, kind in types.items():
        try:
            reading_of(kind)
        except NotFromJson as error:
            raise JobError(f"input.columns.{name}: {error}; declare another type, or leave it out") from None


def _inferred(uri: str, head: Sequence[bytes]) -> tuple[dict[str, pa.DataType], list[str]]:
    """Return the columns in order of appearance, and those with lists or objects; broken lines are not read."""
    rows, faults = objects(head)
    if head and (len(faults) == len(head) or head[0].strip() == b"["):  # the latter begins one array over many lines
        shown = str(head[0][:_SHOWN], "utf-8", "replace")
        raise JobError(
            f"input.path: {uri} is not JSONL: its lines are no JSON objects, the first begins with {shown!r}; "
            "give its form by input.format, or leave it out"
        )
    kinds: dict[str, set[str]] = {}
    for row in rows:
        for name, text in row.items():
            kinds.setdefault(name, set()).add(_kind(bytes(text)))
    nested = [name for name, found in kinds.items() if not found.isdisjoint(_NESTED)]
    return {name: _type(found - {"null"}) for name, found in kinds.items()}, nested


def _kind(text: bytes) -> str:
    """Say what a JSON value is; an integer outside 64 bits is a number like any other."""
    if kind := _BY_FIRST_BYTE.get(text[0]):
        return kind
    whole = text.removeprefix(b"-").isdigit() and len(text) <= len(str(-(2**63)))
    return "integer" if whole and -(2**63) <= int(text) < 2**63 else "number"


def _type(kinds: Iterable[str]) -> pa.DataType:
    fitting = (kind for inferred, kind in _INFERRED if kinds and inferred.issuperset(kinds))
    return next(fitting, pa.string())
