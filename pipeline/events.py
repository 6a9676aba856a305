"""Server-sent events: the bytes of a stream, in pieces cut anywhere -> events -> the body that an adapter reads.

Lines end in LF, CRLF or CR, and all that is syntax is ASCII; so lines are found among the bytes, and a character that
a piece cuts in two is whole again before anybody decodes it. A POST cannot be resumed: `id` and `retry` mean nothing.

A browser drops an event that no blank line closes. The reply to a POST ends, and where its end is marked (by its
length, or a last chunk) nothing is missing: many services leave the blank line out, so the event counts (`end`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    Pick = Callable[[Any], Any]

Form = Literal["joined", "last", "all"]

_LINE_END: Final = re.compile(rb"\r\n|\r|\n")
_BOM: Final = b"\xef\xbb\xbf"
_DONE: Final = b"[DONE]"
_NOT_JSON: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_NOTHING: Final = object()


class Event(NamedTuple):
    """One event: its data, and what `event:` names it."""

    data: bytes
    name: bytes = b""


class Stream:
    """Takes the pieces of a stream as they come. `done` is whether `data: [DONE]` has ended it."""

    def __init__(self) -> None:
        self.done = False
        self._line: list[bytes] = []  # the pieces of the line that has not ended
        self._after_cr = False
        self._begun = False
        self._data: list[bytes] = []
        self._name = b""

    @property
    def open(self) -> bool:
        """Whether something has begun that no blank line has closed."""
        return not self.done and bool(self._data or any(self._line))

    def feed(self, piece: bytes) -> Iterator[Event]:
        """Yield the events that this piece closes; none behind `[DONE]`."""
        if self._after_cr and piece:
            piece, self._after_cr = piece.removeprefix(b"\n"), False
        if not piece:
            return
        self._after_cr = piece.endswith(b"\r")
        first, *others = _LINE_END.split(piece)
        self._line.append(first)
        for rest in others:
            yield from self._ended(b"".join(self._line))
            self._line = [rest]

    def end(self) -> Iterator[Event]:
        """Yield the last event, if no blank line has closed it."""
        last, self._line = b"".join(self._line), []
        if last:
            yield from self._ended(last)
        yield from self._ended(b"")

    def _ended(self, line: bytes) -> Iterator[Event]:
        if not self._begun:
            line, self._begun = line.removeprefix(_BOM), True
        if line:
            self._take(line)
            return
        data, name = self._data, self._name
        self._data, self._name = [], b""
        if data and not self.done:
            yield Event(b"\n".join(data), name)

    def _take(self, line: bytes) -> None:
        """Note a field; a line that begins with a colon is a comment, and has none."""
        field, _, value = line.partition(b":")
        if field == b"data":
            self.done = self.done or (not self._data and value.strip() == _DONE)
            self._data.append(value.removeprefix(b" "))
        elif field == b"event":
            self._name = value.removeprefix(b" ")


def failed(event: Event) -> bool:
    """Whether the event says that the model failed in the middle of its answer; a number is a measure of its own."""
    if event.name == b"error":
        return True
    value = _value(event.data) if b'"error"' in event.data else None
    error = value.get("error") if isinstance(value, dict) else None
    return isinstance(error, str | dict) and bool(error)


def body_of(events: Sequence[Event], form: Form, *, text: bool = False, pick: Pick | None = None) -> bytes:
    """Make one body of the events of a stream; it is empty, and so no answer, where there is nothing to make it of.

    joined: their pieces in order, as they are, or with `text` as one JSON string; `pick` finds a piece in an event's
        value, None for none; by default it is what `piece_of` says.
    last: the last one's data, JSON where it is JSON, else as a JSON string.
    all: a JSON array of the data of each, in the same way.
    Bytes that are not UTF-8 stay as they are, so that whoever reads the body refuses it.
    """
    if not events:
        return b""
    if form == "last":
        return _as_json(events[-1].data)
    if form == "all":
        return b"[" + b",".join(_as_json(event.data) for event in events) + b"]"
    pieces = [_piece(event.data, pick) for event in events]
    if pick and all(piece is None for piece in pieces):
        return b""
    joined = b"".join(piece for piece in pieces if piece)
    return _quoted(joined) if text else joined


def piece_of(value: Any) -> Any:
    """Return the piece of text in an event of a language model (`choices[0].delta.content` or `.text`), else itself.

    An event of that form without a piece, such as its usage counts, has the empty one.
    """
    if not isinstance(value, dict) or not isinstance(value.get("choices"), list):
        return value
    choice = next(iter(value["choices"]), None)
    if not isinstance(choice, dict):
        return ""
    delta = choice.get("delta")
    content = delta.get("content") if isinstance(delta, dict) else choice.get("text")
    return "" if content is None else content


def _piece(data: bytes, pick: Pick | None) -> bytes | None:
    value = _value(data)
    if value is _NOTHING:  # plain text: there is nothing in it to look for
        return None if pick else data
    found = (pick or piece_of)(value)
    if found is value and not isinstance(found, str):
        return data
    if found is None:
        return None
    return found.encode() if isinstance(found, str) else msgspec.json.encode(found)


def _value(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except _NOT_JSON:
        return _NOTHING


def _as_json(data: bytes) -> bytes:
    return data if _value(data) is not _NOTHING else _quoted(data)


def _quoted(data: bytes) -> bytes:
    try:
        return msgspec.json.encode(data.decode())
    except UnicodeDecodeError:
        return data


def events_of(pieces: Iterable[bytes]) -> list[Event]:
    """Return the events of a whole stream."""
    stream = Stream()
    return [*(event for piece in pieces for event in stream.feed(piece)), *stream.end()]
