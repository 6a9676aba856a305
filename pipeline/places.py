"""When a request may be sent: window, rate, outage, `Retry-After`, a limit on all. One per worker process."""

from __future__ import annotations

import logging
import math
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from pipeline.converse import told
from pipeline.errors import StorageFailed
from pipeline.outage import Outage
from pipeline.status import Action
from pipeline.window import Pace, Sent, Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.errors import BulkscoreError
    from pipeline.pack import Chunk
    from pipeline.progress import Progress
    from pipeline.status import Fault
    from pipeline.stopping import Stopping

_log: Final = logging.getLogger(__name__)

POLL_SECONDS: Final = 1.0
"""How often a thread that waits looks whether the end was asked for, or an outage is over."""

_ANSWERS: Final = (Action.REJECT, Action.TOO_LARGE, Action.REFRESH, Action.STOP)
"""What a service that is there says of a request."""


def shared_clock() -> Callable[[], float]:
    """Return a clock that only goes forward, and agrees with those of other hosts as far as their wall clocks did.

    Windows go down together, on whatever hosts their workers are.
    """
    ahead = time.time() - time.monotonic()
    return lambda: time.monotonic() + ahead


class Trip:
    """A request on its way, until it is told how it went. `late` if it was given up, or cut by the gateway.

    `chunk` is what is asked, of the source that has this URI; `hide` takes our secrets out of what is told of a reply.
    """

    __slots__ = ("chunk", "hide", "late", "rows", "seconds", "sent", "size", "source", "url", "uuid")

    def __init__(self, chunk: Chunk, source: str) -> None:
        self.chunk, self.source = chunk, source
        self.hide: Callable[[bytes], bytes] = bytes
        self.sent: Sent | None = None
        self.seconds = 0.0
        self.rows = self.size = 0
        self.uuid = self.url = ""
        self.late = False


class Places:
    """The places for requests on their way. Thread-safe; `grown` is called when there are more of them."""

    def __init__(
        self,
        in_flight: int,
        rate: float | None,
        most: int | None,
        *,
        clock: Callable[[], float],
        stopping: Stopping,
        stop: Callable[[BulkscoreError], None],
        progress: Progress,
        grown: Callable[[], None],
    ) -> None:
        self.last_success = float("-inf")
        self._clock = clock
        self._stopping = stopping
        self._stop = stop
        self._progress = progress
        self._grown = grown
        self._window = Window(in_flight, clock=clock)
        self._pace = Pace(rate)
        self._outage = Outage(clock)
        self._left = most
        self._held_until = float("-inf")
        self._told = False
        """Whether an outage that lasts has been told."""
        self._freed = threading.Condition()
        """For those that wait for a place: hundreds, of which one is woken for each place, and not all."""
        self._turns = threading.Lock()

    @property
    def limit(self) -> int:
        """Requests that may be in flight at once."""
        return self._window.limit

    def out(self) -> float:
        """Return for how many seconds requests have failed and none was answered."""
        with self._freed:
            return self._outage.seconds

    @contextmanager
    def take(self) -> Iterator[None]:
        """Hold one place. Raises Stopped when the run ends first."""
        with self._freed:
            while (seconds := self._wait()) > 0:
                self._stopping.check()
                self._freed.wait(min(seconds, POLL_SECONDS))
            self._count()
            self._window.in_flight += 1
            probe = self._outage.send()
        self._progress.add(requests=1, in_flight=1)
        try:
            self._await_turn()
            yield
        finally:
            self._progress.add(in_flight=-1)
            with self._freed:
                self._window.in_flight -= 1
                self._outage.back(probe)
                self._freed.notify()

    def _wait(self) -> float:
        """Return the seconds until there may be a place; POLL_SECONDS where another request's end tells."""
        if not self._window.open:
            return POLL_SECONDS
        return max(self._held_until - self._clock(), self._outage.wait())

    def _count(self) -> None:
        """Count a request, where their number is limited. Raises Stopped when there are none left."""
        if self._left is None:
            return
        if self._left <= 0:
            self._stop(StorageFailed("--max-requests is reached; the same command goes on from here"))
            self._stopping.check()
        self._left -= 1

    def _await_turn(self) -> None:
        """Wait until the rate allows one more request; one waits at a time, so that none leaves on another's heels."""
        if not self._pace.bounded and self._window.rate == math.inf:
            return
        self._waits(1)
        try:
            with self._turns:
                seconds = self._pace.turn(self._clock(), self._window.rate)
                if seconds:
                    self._stopping.wait(seconds)
                    self._pace.left(self._clock())
            while (left := self._held_until - self._clock()) > 0:
                self._stopping.wait(min(left, POLL_SECONDS))
        finally:
            self._waits(-1)

    def _waits(self, more: int) -> None:
        with self._freed:
            self._window.waiting += more

    def unsent(self) -> None:
        """Note that a request has its place in vain: it is not sent, and does not count."""
        self._progress.add(requests=-1)
        with self._freed:
            if self._left is not None:
                self._left += 1

    def leave(self, trip: Trip) -> None:
        """Note that a request that has its place goes out."""
        with self._freed:
            trip.sent = self._window.send()

    def succeeded(self, trip: Trip) -> None:
        """Note that a request had its answers."""
        with self._freed:
            self.last_success = self._clock()
            news, self._told = self._told, False
            back = bool(self._outage)
            self._outage.answered()
            before = self._window.limit
            if trip.sent:
                self._window.success(trip.sent, trip.seconds, trip.rows)
            more = self._window.limit - before
            if back:
                self._freed.notify_all()
            elif more > 0:
                self._freed.notify(more)
        trip.sent = None
        if news:
            _log.warning("the service answers again")
        if more > 0:
            self._grown()

    def failed(self, trip: Trip, fault: Fault, *, by_the_model: bool) -> None:
        """Note why a request failed."""
        with self._freed:
            if fault.action in _ANSWERS:
                self._outage.answered()
            else:
                self._outage.failed(trip.sent.at if trip.sent else self._clock(), by_the_model=by_the_model)
            if trip.sent and fault.action is Action.SLOWER:
                self._window.pressure(trip.sent)
            elif trip.sent and trip.late:
                self._window.late(trip.sent, trip.seconds, trip.rows)
            elif trip.sent:
                self._window.failed(trip.sent)
            news = bool(self._outage) and not self._told
            self._told = self._told or news
        trip.sent = None
        if news:
            _log.warning("nobody is answered (%s); asking goes on, with pauses, for retry.outage at most", told(fault))

    def rest(self, seconds: float, for_all: float) -> None:
        """Wait between two attempts, no longer than an outage lasts; all requests wait `for_all`.

        Raises Stopped when the run ends first.
        """
        now = self._clock()
        with self._freed:
            self._held_until = max(self._held_until, now + for_all)
        end, was_out = now + seconds, False
        while (left := end - self._clock()) > 0:
            was_out = was_out or bool(self._outage)
            if was_out and not self._outage:
                return
            self._stopping.wait(min(left, POLL_SECONDS))
