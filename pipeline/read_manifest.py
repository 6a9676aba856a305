"""Lists of files: each line names one file, which is one row. A file that is named twice is two rows."""

from __future__ import annotations

import re
from posixpath import normpath
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote

import msgspec
import pyarrow as pa

from pipeline import lines
from pipeline.errors import JobError
from pipeline.pieces import Broken, Found
from pipeline.read_files import SCHEMA, Row, pieces_of
from pipeline.storage import is_compressed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pipeline.pieces import Mark, Piece, Wanted
    from schemas.job import Input
    from schemas.plan import Source

SCHEMES: Final = ("file", "s3", "obs", "gs", "gcs", "abfs", "abfss", "hdfs")

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_NO_TEXT: Final = re.compile(r"[\x00-\x1f\x7f]")
_GUESSED_FILE: Final = 100_000
"""Bytes of a file, for cutting: how large they are is seen when they are opened."""


class _Line(msgspec.Struct):
    """A line of a ModelArts manifest, as far as it matters here."""

    source: str


_line: Final = msgspec.json.Decoder(_Line)


def look(uri: str, given: Input, known: Mapping[str, pa.DataType]) -> Found:  # noqa: ARG001 - it has its own columns
    """Count the lines of a list, unless it is compressed; no file that it names is looked at.

    Raises JobError for a list that cannot be read.
    """
    try:
        if is_compressed(uri):
            empty = next(lines.read(uri), None) is None
            return Found(SCHEMA, 0 if empty else None, 0, empty=empty)
        rows, marks = lines.index(uri)
        return Found(SCHEMA, rows, rows * _GUESSED_FILE, marks, empty=not rows)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise JobError(
            f"input.path: {uri} is not a readable list of files: {reason}; replace it or leave it out"
        ) from None


def pieces(source: Source, wanted: Wanted, start: int, mark: Mark) -> Iterator[Piece]:
    """Yield the files from row `start` of a list; lines that name no file are broken rows."""
    folder = source.uri.rpartition("/")[0]
    found = lines.read(source.uri, mark)
    rows = (row_of(line, folder) for first, block in found for line in block[max(0, start - first) :])
    yield from pieces_of(rows, wanted, start)


def row_of(line: bytes, folder: str) -> Row:
    """Return the file that a line names; `folder` is the list's own, as a URI, for relative paths."""
    try:
        text = line.decode().strip()
        named = _line.decode(text).source.strip() if text.startswith("{") else text
    except (UnicodeDecodeError, msgspec.MsgspecError):
        named = ""
    if not named or _NO_TEXT.search(named):
        return _broken(None, "the line names no file", line.decode(errors="replace"))
    scheme = _SCHEME.match(named)
    if scheme is None:
        return Row(_beside(folder, named))
    if scheme[1].lower() not in SCHEMES:
        allowed = ", ".join(f"{one}://" for one in SCHEMES)
        return _broken(named, f"{named} is on no storage that can be read; allowed: paths, {allowed}", named)
    rest = named[scheme.end() :]
    if scheme[1].lower() != "file":
        return Row(f"{scheme[1].lower()}://{rest}")
    path = unquote(rest.removeprefix("localhost"))
    if not path.startswith("/"):
        return _broken(named, f"{named} is on another machine, or not absolute; allowed: file:///...", named)
    return Row(_local(path))


def _beside(folder: str, path: str) -> str:
    """Return the URI of a path that may be relative to a folder."""
    scheme, _, place = folder.partition("://")
    if path.startswith("/"):
        return _local(path)
    if scheme == "file":
        return _local(normpath(f"{unquote(place)}/{path}"))
    return f"{scheme}://{normpath(f'{place}/{path}')}"


def _local(path: str) -> str:
    return f"file://{quote(path)}"


def _broken(uri: str | None, message: str, shown: str) -> Row:
    return Row(uri, broken=Broken("unreadable", message, msgspec.json.encode(shown)))
