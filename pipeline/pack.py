"""Encoded rows -> chunks, each the content of one request.

Rules: order is kept and nothing is lost; a body never exceeds the byte limit, judged on the exact bytes; a chunk never
has more rows than the row limit; and it is as full as it can be: the next row would not have fitted. Lower bounds are
learned while chunks are made, and asked for before each; a row that exceeds only those is a chunk of its own, because
services change. A row that is refused (it exceeds the limit alone, or the encoder said so) rides, unsent, in the chunk
of its neighbours, so that a chunk always covers an unbroken range of its source; only a chunk that holds too many of
them is closed early.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from pipeline.encode import are_long
from pipeline.ids import request_uuid

if TYPE_CHECKING:
    from pipeline.encode import Encoded, Int64s
    from pipeline.pieces import Broken
    from schemas.tables import Kind

MAX_ROWS: Final = 10_000
MAX_REFUSED_BYTES: Final = 32_000_000
"""A chunk holds at most MAX_ROWS refused rows, and about so many bytes of them: they wait in memory to be written."""

Frame = Callable[[str], tuple[bytes, bytes]]
"""`request_uuid -> (what stands before the rows, what stands behind them)`: the same lengths for every uuid."""


class Limits(NamedTuple):
    """Bounds of one request: serialized bytes of the body, and rows."""

    body: int
    rows: int = MAX_ROWS


class Block(NamedTuple):
    """A batch on its way into requests: source rows `[first, first + len(row_uuids))`.

    `broken` rows, by position, must not be sent, whatever they are encoded as. `uris` are the rows' files, where rows
    are files. `rows` are the rows' numbers where they do not follow each other; the first of them is `first`.
    """

    first: int
    encoded: Encoded
    row_uuids: pa.StringArray
    keep: pa.RecordBatch
    broken: Mapping[int, Broken] = {}
    uris: pa.Array[Any] | None = None
    rows: Int64s | None = None

    def numbers(self, start: int, stop: int) -> Int64s:
        """Return the numbers of the rows at positions `[start, stop)`."""
        return np.arange(self.first + start, self.first + stop) if self.rows is None else self.rows[start:stop]


class Refusal(NamedTuple):
    """A row that is not sent at all, and why. `line` is the JSON that stands for it, `uri` the file that it may be."""

    source_row: int
    row_uuid: str
    line: bytes
    keep: pa.RecordBatch
    kind: Kind
    message: str
    uri: str | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """Source rows `[first, stop)`: those that `body` carries, in order, and those that are refused unsent.

    The rows begin at `offset` in `body`; `costs[i]` is the bytes of the i-th sent row with the comma behind it;
    `uris[i]` is its file, where rows are files; `shown[i]` the JSON that stands for it, where it is sent as
    something else. A chunk without sent rows is never sent.
    """

    first: int
    stop: int
    uuid: str
    body: bytes
    offset: int
    costs: Int64s
    source_rows: Int64s
    row_uuids: pa.StringArray
    keep: pa.RecordBatch
    refused: tuple[Refusal, ...] = ()
    uris: pa.Array[Any] | None = None
    shown: pa.Array[Any] | None = None

    def __len__(self) -> int:
        """Rows in the request."""
        return len(self.source_rows)

    @property
    def weight(self) -> int:
        """Bytes that the chunk holds: its body, and the rows that are refused."""
        return len(self.body) + sum(len(refusal.line) for refusal in self.refused)

    @property
    def spans(self) -> Int64s:
        """The half-open byte range of each sent row in `body`; worked out when asked for, which is seldom."""
        ends = np.cumsum(self.costs) + self.offset
        return np.stack((ends - self.costs, ends - 1), axis=1)

    def line(self, position: int) -> bytes:
        """Return the JSON of one sent row, or what stands for it."""
        if self.shown is not None:
            return _bytes(self.shown, position)
        start, stop = self.spans[position]
        return self.body[start:stop]

    def part(self, start: int, stop: int, frame: Frame) -> Chunk:
        """Return sent rows `[start, stop)` as a request of their own, with its own uuid; refusals stay behind."""
        uuids = self.row_uuids.slice(start, stop - start)
        uuid = request_uuid(uuids)
        prefix, suffix = frame(uuid)
        spans = self.spans
        rows = self.source_rows[start:stop]
        return Chunk(
            first=int(rows[0]),
            stop=int(rows[-1]) + 1,
            uuid=uuid,
            body=b"".join((prefix, self.body[spans[start][0] : spans[stop - 1][1]], suffix)),
            offset=len(prefix),
            costs=self.costs[start:stop],
            source_rows=rows,
            row_uuids=uuids,
            keep=self.keep.slice(start, stop - start),
            uris=None if self.uris is None else self.uris.slice(start, stop - start),
            shown=None if self.shown is None else self.shown.slice(start, stop - start),
        )

    def cut(self, limits: Limits, frame: Frame) -> list[Chunk]:
        """Return the sent rows, in order, as requests within the limits; refusals stay behind.

        Where it is the rows that are too many, all have about as many.
        """
        most = -(-len(self) // -(-len(self) // limits.rows))
        totals = np.cumsum(self.costs)
        room = limits.body - (len(self.body) - int(totals[-1]))
        edges = [0]
        while edges[-1] < len(self):
            spent = int(totals[edges[-1] - 1]) if edges[-1] else 0
            fitting = int(np.searchsorted(totals, spent + room, side="right"))
            edges.append(max(edges[-1] + 1, min(fitting, edges[-1] + most)))
        return [self.part(start, stop, frame) for start, stop in pairwise(edges)]


def pack(
    blocks: Iterable[Block], limits: Limits, frame: Frame, learned: Callable[[], Limits] | None = None
) -> Iterator[Chunk]:
    """Pack blocks of successive rows into chunks; every row is in exactly one of them.

    `learned` is asked before each chunk for bounds that are not above `limits`; by `limits` alone a row is too large.
    """
    envelope = sum(map(len, frame("0" * 36))) - 1  # every row pays for a comma, one too many
    room = limits.body - envelope
    bounds = limits
    draft = _Draft(frame)
    for block in blocks:
        costs = np.diff(block.encoded.ends, prepend=0)
        totals = np.cumsum(costs)
        refused = _refusals(block, costs, room, limits.body)
        for start, stop in _runs(len(costs), refused):
            position = start
            while position < stop:
                if learned and not draft.rows:
                    bounds = learned()
                spent = int(totals[position - 1]) if position else 0
                free = spent + bounds.body - envelope - draft.size
                fitting = int(np.searchsorted(totals, free, side="right")) - position
                count = min(max(fitting, not draft.rows), bounds.rows - draft.rows, stop - position)
                if count <= 0:
                    yield draft.close()
                    draft = _Draft(frame)
                    continue
                draft.add(_Part(block, position, position + count, costs[position : position + count]))
                draft.size += int(totals[position + count - 1]) - spent
                position += count
            if stop in refused:
                draft.refuse(refused[stop])
                if len(draft.refused) >= MAX_ROWS or draft.refused_bytes >= MAX_REFUSED_BYTES:
                    yield draft.close()
                    draft = _Draft(frame)
    if draft:
        yield draft.close()


def _refusals(block: Block, costs: Int64s, room: int, limit: int) -> dict[int, Refusal]:
    """Return the rows of a block that must not be sent, by position."""
    reasons: dict[int, tuple[Kind, str]] = {
        position: ("unreadable", message) for position, message in block.encoded.refused.items()
    }
    for position in np.flatnonzero(costs > room):
        body = int(costs[position]) - room + limit
        reasons[int(position)] = ("too_large", f"alone it makes a body of {body} bytes; the limit is {limit}")
    reasons |= {position: (broken.kind, broken.message) for position, broken in block.broken.items()}
    return {position: _refusal(block, position, int(costs[position]), *why) for position, why in reasons.items()}


def _refusal(block: Block, position: int, cost: int, kind: Kind, message: str) -> Refusal:
    uri = None if block.uris is None else block.uris[position].as_py()
    end = block.encoded.ends[position]
    if position in block.broken:
        line = block.broken[position].row
    elif uri is not None:
        line = msgspec.json.encode(uri)
    elif block.encoded.shown is not None:
        line = _bytes(block.encoded.shown, position)
    else:
        line = block.encoded.lines[end - cost : end - 1]
    row_uuid = block.row_uuids[position].as_py()
    [number] = block.numbers(position, position + 1).tolist()
    return Refusal(number, row_uuid, line, block.keep.slice(position, 1), kind, message, uri)


def _bytes(texts: pa.Array[Any], position: int) -> bytes:
    text: str = texts[position].as_py()
    return text.encode()


def _runs(rows: int, refused: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Return the stretches of sendable rows between refused ones; each ends at a refused row or at the end."""
    for before, after in pairwise([-1, *sorted(refused), rows]):
        yield before + 1, after


@dataclass(slots=True)
class _Draft:
    """A chunk that still grows. `size` is bytes of its rows, each with a comma."""

    frame: Frame
    size: int = 0
    rows: int = 0
    parts: list[_Part] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    refused_bytes: int = 0

    def __bool__(self) -> bool:
        return bool(self.rows or self.refused)

    def add(self, part: _Part) -> None:
        self.parts.append(part)
        self.rows += part.stop - part.start

    def refuse(self, refusal: Refusal) -> None:
        self.refused.append(refusal)
        self.refused_bytes += len(refusal.line)

    def close(self) -> Chunk:
        covered = [row.source_row for row in self.refused]
        rows = _joined([part.rows for part in self.parts], np.concatenate, _NO_ROWS)
        covered += [int(rows[0]), int(rows[-1])] if len(rows) else []
        uuids = _joined([part.row_uuids for part in self.parts], pa.concat_arrays, _NO_UUIDS)
        uuid = request_uuid(uuids)
        prefix, suffix = self.frame(uuid)
        return Chunk(
            first=min(covered),
            stop=max(covered) + 1,
            uuid=uuid,
            body=b"".join([prefix, *self._rows(), suffix]),
            offset=len(prefix),
            costs=_joined([part.costs for part in self.parts], np.concatenate, _NO_ROWS),
            source_rows=rows,
            row_uuids=uuids,
            keep=self._keep(),
            refused=tuple(self.refused),
            uris=self._column(lambda block: block.uris),
            shown=self._column(lambda block: block.encoded.shown),
        )

    def _rows(self) -> Iterator[bytes | memoryview]:
        """Yield what is between the frame: rows, and the commas between them."""
        for number, part in enumerate(self.parts):
            yield b"," if number else b""
            yield from part.pieces()

    def _column(self, of: Callable[[Block], pa.Array[Any] | None]) -> pa.Array[Any] | None:
        """Join what the rows' blocks have of a column, if they have it."""
        columns = [(part, of(part.block)) for part in self.parts]
        rows = [column.slice(part.start, part.stop - part.start) for part, column in columns if column is not None]
        found: pa.Array[Any] | None = _joined(rows, pa.concat_arrays, None)
        return found

    def _keep(self) -> pa.RecordBatch:
        nothing = self.refused[0].keep.slice(0, 0) if self.refused else None
        kept = [part.block.keep.slice(part.start, part.stop - part.start) for part in self.parts]
        concatenate = pa.concat_batches  # type: ignore[attr-defined] # missing in the stubs
        batch: pa.RecordBatch = _joined(kept, concatenate, nothing)
        return batch


class _Part(NamedTuple):
    """Rows `[start, stop)` of a block; `costs` are their bytes, each with the comma behind it."""

    block: Block
    start: int
    stop: int
    costs: Int64s

    @property
    def rows(self) -> Int64s:
        return self.block.numbers(self.start, self.stop)

    @property
    def row_uuids(self) -> pa.StringArray:
        return self.block.row_uuids.slice(self.start, self.stop - self.start)

    def pieces(self) -> Iterator[bytes | memoryview]:
        """Yield the rows with commas between them; one alone may be anything, newlines included."""
        end = int(self.block.encoded.ends[self.stop - 1])
        begin = end - int(self.costs.sum())
        rows, count = memoryview(self.block.encoded.lines)[begin : end - 1], self.stop - self.start
        if count == 1:
            yield rows
        elif not are_long(len(rows), count):
            yield bytes(rows).replace(b"\n", b",")
        else:  # each is copied once, into the body
            start = 0
            for stop in np.cumsum(self.costs).tolist():
                yield from (b"," if start else b"", rows[start : stop - 1])
                start = stop


_NO_UUIDS: Final = pa.array([], pa.string())
_NO_ROWS: Final = np.empty(0, np.int64)


def _joined(pieces: list[Any], concatenate: Callable[[list[Any]], Any], nothing: Any) -> Any:
    """Join what the parts of a chunk have; most chunks have one part, and are spared the copy."""
    if len(pieces) > 1:
        return concatenate(pieces)
    return pieces[0] if pieces else nothing
