"""How many requests are under way at once, and how many bytes a worker holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

START: Final = 16
CUT: Final = 0.7
EPISODE_SECONDS: Final = 1.0


class Window:
    """The limit on requests in flight: pure arithmetic, guarded by its owner.

    It starts at START, or below where the job file says so. Pressure cuts it once an episode (all requests that were
    under way when a service overflowed report the same overflow); each success gives a little back, until START again.
    """

    def __init__(self, upper: int, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._upper = float(min(START, upper))
        self._limit = self._upper
        self._cut_at = float("-inf")
        self.in_flight = 0

    @property
    def limit(self) -> int:
        """Requests that may be in flight at once."""
        return int(self._limit)

    @property
    def open(self) -> bool:
        """Whether one more request may be sent."""
        return self.in_flight < self.limit

    def pressure(self) -> None:
        """Note that the service has too much to do."""
        if self._clock() - self._cut_at >= EPISODE_SECONDS:
            self._cut_at = self._clock()
            self._limit = max(1.0, self._limit * CUT)

    def success(self) -> None:
        """Note that a request succeeded."""
        self._limit = min(self._upper, self._limit + 1 / self._limit)


class Pace:
    """Spaces requests evenly, so that no second sees more than the rate allows. Guarded by its owner."""

    def __init__(self, per_second: float | None) -> None:
        self._gap = 1 / per_second if per_second else 0.0
        self._next = float("-inf")

    def turn(self, now: float) -> float:
        """Take the next turn; return the seconds to wait for it."""
        at = max(now, self._next)
        self._next = at + self._gap
        return at - now

    def left(self, now: float) -> None:
        """Take note of when the turn was really used: who overslept must not be caught up with."""
        self._next = max(self._next, now + self._gap)


class Budget:
    """The bytes a worker may hold: bodies, expected replies, results not yet written. Guarded by its owner.

    A request is admitted while it fits; one always is, however large. The reply is expected to be as large, row for
    row, as the largest one seen.
    """

    FIRST_GUESS: Final = 64.0

    def __init__(self, size: int) -> None:
        self._size = size
        self._held = 0
        self._reply_per_row = self.FIRST_GUESS

    def cost(self, body: int, rows: int) -> int:
        """Bytes to reserve for a request."""
        return body + int(rows * self._reply_per_row)

    def admit(self, cost: int) -> bool:
        """Reserve the bytes, if they fit."""
        if self._held and self._held + cost > self._size:
            return False
        self._held += cost
        return True

    def exceed(self, cost: int) -> None:
        """Reserve the bytes, whether they fit or not."""
        self._held += cost

    def release(self, cost: int) -> None:
        """Give reserved bytes back."""
        self._held -= cost

    def seen(self, reply: int, rows: int) -> None:
        """Learn from a reply."""
        self._reply_per_row = max(self._reply_per_row, reply / max(1, rows))
