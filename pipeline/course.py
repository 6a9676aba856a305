"""The requests of one range under way, oldest first, and the writing of what comes of them."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, wait
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from pipeline.errors import BulkscoreError
from pipeline.stopping import Stopped

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.caller import Caller
    from pipeline.converse import Outcome
    from pipeline.pack import Chunk
    from pipeline.write import RangeWriter
    from schemas.receipt import Receipt

ASIDE_SECONDS: Final = 60.0
"""How long a request in trouble may keep what was answered behind it from being committed."""

POLL_SECONDS: Final = 1.0


class Told(NamedTuple):
    """Who is told what becomes of a range: how many rows are answered, (rows, dead letters) settled, a receipt.

    `stop` is told what ends the run; `look` sees whether another worker has ended it. Any thread may call `answered`.
    """

    answered: Callable[[int], None]
    settled: Callable[[int, int], None]
    wrote: Callable[[Receipt], None]
    stop: Callable[[BulkscoreError], None]
    look: Callable[[], None]


class _Request(NamedTuple):
    chunk: Chunk
    future: Future[list[Outcome]]
    began: float


class Course:
    """Outcomes are written in row order. A request that is long in trouble is set aside, with a receipt of its own.

    `beside` opens a writer for the rows of such a request; without it the range is committed as a whole. `source` is
    the URI of the rows' source.
    """

    def __init__(
        self,
        caller: Caller,
        writer: RangeWriter,
        beside: Callable[[Chunk], RangeWriter] | None,
        told: Told,
        clock: Callable[[], float],
        source: str = "",
    ) -> None:
        self._caller = caller
        self._writer = writer
        self._beside = beside
        self._told = told
        self._clock = clock
        self._source = source
        self._pending: deque[_Request] = deque()
        self._aside: list[_Request] = []
        self.receipts: list[Receipt] = []

    def start(self, chunk: Chunk) -> None:
        """Start a chunk's conversation as soon as there is a place for it; meanwhile write what is done."""
        while not self._caller.reserve(chunk, self._pending[0].future if self._pending else None):
            self._told.look()
            self._advance()
            self._write_aside([one for one in self._aside if one.future.done()])
        future = self._caller.submit(chunk, self._source)
        # What ends the job is not left waiting behind the oldest chunk.
        future.add_done_callback(partial(self._heed, _rows(chunk)))
        self._pending.append(_Request(chunk, future, self._clock()))
        while self._pending and self._pending[0].future.done():
            self._advance()
        self._write_aside([one for one in self._aside if one.future.done()])

    def finish(self, *, end: bool) -> None:
        """Wait for all that is under way, write it, and close the range; `end` says that its source ends there."""
        while self._pending:
            wait([self._pending[0].future], POLL_SECONDS)
            self._told.look()
            self._advance()
        self._note(self._writer.close(end=end))
        self._write_aside(list(self._aside))

    def abandon(self) -> None:
        """Give up what is still under way, after a failure; its rows stay undone, and others get its places."""
        for chunk, future, _ in (*self._pending, *self._aside):
            wait([future])
            self._caller.release(chunk)
        self._pending.clear()
        self._aside.clear()
        self._writer.abandon()

    def _advance(self) -> None:
        """Write the oldest request's outcomes; or set it aside, where it is what keeps others from being written."""
        if not self._pending:
            return
        oldest = self._pending[0]
        if oldest.future.done():
            self._settle(self._pending.popleft())
        elif (
            self._beside
            and self._clock() - oldest.began > ASIDE_SECONDS
            and any(one.future.done() for one in self._pending)
        ):
            self._aside.append(self._pending.popleft())
            self._note(self._writer.skip(oldest.chunk.stop))

    def _settle(self, request: _Request) -> None:
        """Write a request's outcomes. Where it has none because the run ends, its rows stay undone."""
        try:
            outcomes = self._outcomes(request)
            if outcomes is not None:
                self._write(self._writer, request.chunk, outcomes)
                return
            if not self._caller.answered:  # what died so far died of a wrong contract
                self._writer.abandon()
            self._note(self._writer.skip(request.chunk.stop))
        finally:
            self._caller.release(request.chunk)

    def _write_aside(self, requests: list[_Request]) -> None:
        """Wait for requests that were set aside, and commit each."""
        for request in requests:
            self._aside.remove(request)
            try:
                outcomes = self._outcomes(request)
                if outcomes is not None and self._beside:
                    writer = self._beside(request.chunk)
                    try:
                        self._write(writer, request.chunk, outcomes)
                        self._note(writer.close())
                    finally:
                        writer.abandon()
            finally:
                self._caller.release(request.chunk)

    def _outcomes(self, request: _Request) -> list[Outcome] | None:
        try:
            return request.future.result()
        except BulkscoreError as error:
            self._told.stop(error)
        except Stopped:
            pass
        return None

    def _write(self, writer: RangeWriter, chunk: Chunk, outcomes: list[Outcome]) -> None:
        dead = writer.dead
        self._note(writer.add(chunk, outcomes))
        self._told.settled(_rows(chunk), writer.dead - dead)

    def _heed(self, rows: int, future: Future[list[Outcome]]) -> None:
        error = future.exception()
        if error is None:
            self._told.answered(rows)
        elif isinstance(error, BulkscoreError):
            self._told.stop(error)

    def _note(self, receipt: Receipt | None) -> None:
        if receipt:
            self.receipts.append(receipt)
            self._told.wrote(receipt)


def _rows(chunk: Chunk) -> int:
    """Return how many rows a chunk settles, those that are not sent included."""
    return len(chunk) + len(chunk.refused)
