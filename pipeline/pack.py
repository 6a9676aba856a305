"""Encoded rows -> chunks, each the content of one request.

Rules: order is kept and nothing is lost; a body never exceeds the byte limit, judged on the exact bytes; a chunk never
has more rows than the row limit; and it is as full as it can be: the next row would not have fitted. A row that is
refused (it exceeds the limit alone, or the encoder said so) rides, unsent, in the chunk of its neighbours, so that a
chunk always covers an unbroken range of its source; only a chunk that holds too many of them is closed early.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.ids import request_uuid

if TYPE_CHECKING:
    from pipeline.encode import Encoded, Int64s
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
    """A batch on its way into requests: source rows `[first, first + len(row_uuids))`."""

    first: int
    encoded: Encoded
    row_uuids: pa.StringArray
    keep: pa.RecordBatch


class Refusal(NamedTuple):
    """A row that is not sent at all, and why."""

    source_row: int
    row_uuid: str
    line: bytes
    keep: pa.RecordBatch
    kind: Kind
    message: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """Source rows `[first, stop)`: those that `body` carries, in order, and those that are refused unsent.

    `spans[i]` is the half-open byte range of the i-th sent row in `body`. A chunk without sent rows is never sent.
    """

    first: int
    stop: int
    uuid: str
    body: bytes
    spans: Int64s
    source_rows: Int64s
    row_uuids: pa.StringArray
    keep: pa.RecordBatch
    refused: tuple[Refusal, ...] = ()

    def __len__(self) -> int:
        """Rows in the request."""
        return len(self.source_rows)

    @property
    def weight(self) -> int:
        """Bytes that the chunk holds: its body, and the rows that are refused."""
        return len(self.body) + sum(len(refusal.line) for refusal in self.refused)

    def line(self, position: int) -> bytes:
        """Return the JSON of one sent row."""
        start, stop = self.spans[position]
        return self.body[start:stop]

    def part(self, start: int, stop: int, frame: Frame) -> Chunk:
        """Return sent rows `[start, stop)` as a request of their own, with its own uuid; refusals stay behind."""
        uuids = self.row_uuids.slice(start, stop - start)
        uuid = request_uuid(uuids)
        prefix, suffix = frame(uuid)
        low, high = int(self.spans[start][0]), int(self.spans[stop - 1][1])
        rows = self.source_rows[start:stop]
        return Chunk(
            first=int(rows[0]),
            stop=int(rows[-1]) + 1,
            uuid=uuid,
            body=b"".join((prefix, self.body[low:high], suffix)),
            spans=self.spans[start:stop] - low + len(prefix),
            source_rows=rows,
            row_uuids=uuids,
            keep=self.keep.slice(start, stop - start),
        )


def pack(blocks: Iterable[Block], limits: Limits, frame: Frame) -> Iterator[Chunk]:
    """Pack blocks of successive rows into chunks; every row is in exactly one of them."""
    room = limits.body - sum(map(len, frame("0" * 36))) + 1  # every row pays for a comma, one too many
    draft = _Draft(frame)
    for block in blocks:
        costs = np.diff(block.encoded.ends, prepend=0)
        totals = np.cumsum(costs)
        refused = _refusals(block, costs, room, limits.body)
        for start, stop in _runs(len(costs), refused):
            position = start
            while position < stop:
                spent = int(totals[position - 1]) if position else 0
                fitting = int(np.searchsorted(totals, spent + room - draft.size, side="right")) - position
                count = min(fitting, limits.rows - draft.rows, stop - position)
                if count <= 0:
                    yield draft.close()
                    draft = _Draft(frame)
                    continue
                draft.add(block, position, position + count, int(totals[position + count - 1]) - spent)
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
    starts = block.encoded.ends - costs
    reasons: dict[int, tuple[Kind, str]] = {
        position: ("unreadable", message) for position, message in block.encoded.refused.items()
    }
    for position in np.flatnonzero(costs > room):
        body = int(costs[position]) - room + limit
        reasons[int(position)] = ("too_large", f"alone it makes a body of {body} bytes; the limit is {limit}")
    return {
        position: Refusal(
            source_row=block.first + position,
            row_uuid=block.row_uuids[position].as_py(),
            line=block.encoded.lines[starts[position] : block.encoded.ends[position] - 1],
            keep=block.keep.slice(position, 1),
            kind=kind,
            message=message,
        )
        for position, (kind, message) in reasons.items()
    }


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
    parts: list[tuple[Block, int, int]] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    refused_bytes: int = 0

    def __bool__(self) -> bool:
        return bool(self.rows or self.refused)

    def add(self, block: Block, start: int, stop: int, size: int) -> None:
        self.parts.append((block, start, stop))
        self.size += size
        self.rows += stop - start

    def refuse(self, refusal: Refusal) -> None:
        self.refused.append(refusal)
        self.refused_bytes += len(refusal.line)

    def close(self) -> Chunk:
        covered = [row.source_row for row in self.refused]
        covered += [block.first + edge for block, start, stop in self.parts for edge in (start, stop - 1)]
        uuids = pa.concat_arrays([block.row_uuids.slice(i, j - i) for block, i, j in self.parts] or [_NO_UUIDS])
        uuid = request_uuid(uuids)
        prefix, suffix = self.frame(uuid)
        return Chunk(
            first=min(covered),
            stop=max(covered) + 1,
            uuid=uuid,
            body=b"".join((prefix, b",".join(_json(*part) for part in self.parts), suffix)),
            spans=self._spans(len(prefix)),
            source_rows=np.concatenate([np.arange(b.first + i, b.first + j) for b, i, j in self.parts] or [_NO_ROWS]),
            row_uuids=uuids,
            keep=self._keep(),
            refused=tuple(self.refused),
        )

    def _spans(self, offset: int) -> Int64s:
        lengths = [np.diff(b.encoded.ends[i:j], prepend=b.encoded.ends[i - 1] if i else 0) for b, i, j in self.parts]
        ends = np.cumsum(np.concatenate(lengths or [_NO_ROWS])) + offset
        return np.stack((np.concatenate(([offset], ends[:-1]))[: len(ends)], ends - 1), axis=1)

    def _keep(self) -> pa.RecordBatch:
        kept = [block.keep.slice(start, stop - start) for block, start, stop in self.parts]
        if not kept:
            return self.refused[0].keep.slice(0, 0)
        return pa.concat_batches(kept)  # type: ignore[attr-defined, no-any-return]  # missing in the stubs


_NO_UUIDS: Final = pa.array([], pa.string())
_NO_ROWS: Final = np.empty(0, np.int64)


def _json(block: Block, start: int, stop: int) -> bytes:
    """Return the rows of one part, joined by commas."""
    ends = block.encoded.ends
    return block.encoded.lines[ends[start - 1] if start else 0 : ends[stop - 1] - 1].replace(b"\n", b",")
