"""How many requests are under way at once, how fast they follow each other, and how many bytes a worker holds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

from pipeline.ceiling import Ceiling
from pipeline.latency import Cohort, Unloaded

if TYPE_CHECKING:
    from collections.abc import Callable

STRIDES: Final = (1.1, 1.25, 1.5, 2.0)
"""Growth where nothing queues: careful at first, then faster; a start begins with the last."""

FREE: Final = math.log(1.1)
"""Slowness up to which nothing queues."""

FULL: Final = math.log(1.25)
"""Slowness that is aimed at: a queue of a quarter keeps every place in the service busy, and costs nobody much."""

DEEPEST_CUT: Final = -math.log(2)

DRAIN_SECONDS: Final = 8.0
DRAIN_TIMES: Final = 32
"""How often the limit is halved for a moment, to see the unloaded time again: in seconds, but not more often than that
many unloaded times."""

HELPED: Final = math.log(2) / 2
"""A halved limit has helped where it brought half of what it would bring if all the time were spent in a queue."""

COHORT_SECONDS: Final = 0.05
LARGEST_COHORT: Final = 256
SEEN: Final = 32
SMALLEST_COHORT: Final = 8
FIRST_COHORT: Final = 4


class Sent(NamedTuple):
    """A request that went out: when, as the how manieth on the wire, and the cohort that waits for it, if any."""

    at: float
    in_flight: int
    cohort: Cohort | None


class Window:
    """The limit on requests in flight, found by measuring: pure arithmetic, guarded by its owner.

    Most gateways tell nobody that they are full, they only get slower. So the limit grows while requests take no longer
    than in an idle service, stays where they take a quarter longer, and shrinks above. The unloaded time is seen again
    at every drain, when all workers that share a clock go down together. What gets slower but not faster again when
    less is sent, has a new unloaded time. Pressure is no matter of time: see Ceiling.
    """

    def __init__(self, upper: int, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._upper = float(upper)
        self._limit = 1.0
        self._ceiling = Ceiling(clock)
        self._unloaded = Unloaded()
        self._cohort = Cohort(FIRST_COHORT)
        self._spread = 0.3
        self._seen = 0
        self._busiest = 0
        self._stride = len(STRIDES) - 1
        self._starting = True
        self._slowness = 0.0
        self._before_drain: float | None = None
        self._halvings = 0
        self._drain_at = clock()
        self.in_flight = 0
        """Places taken."""
        self.waiting = 0
        """Places taken by requests that wait for the rate, and are not on the wire yet."""

    @property
    def limit(self) -> int:
        """Requests that may be in flight at once."""
        return max(1, int(min(self._limit, self._upper, self._ceiling.in_flight)))

    @property
    def open(self) -> bool:
        """Whether one more request may be sent."""
        return self.in_flight < self.limit

    @property
    def rate(self) -> float:
        """Requests a second that the service takes without refusing some; infinite until it refused one."""
        return self._ceiling.rate

    def send(self) -> Sent:
        """Note that a request that has its place goes out."""
        now = self._clock()
        on_wire = self.in_flight - self.waiting
        self._ceiling.sent(now, on_wire, self._unloaded.seconds)
        self._busiest = max(self._busiest, on_wire)
        fits = self.in_flight <= self.limit  # or it has its place from before a cut
        return Sent(now, on_wire, self._cohort if fits and self._cohort.admit() else None)

    def success(self, sent: Sent, seconds: float, rows: int) -> None:
        """Note that a request succeeded, how long it took, and how many rows it had."""
        self._cut(self._ceiling.success(sent))
        self.late(sent, seconds, rows)

    def late(self, sent: Sent, seconds: float, rows: int) -> None:
        """Note how long a request took, though it did not succeed: it was given up, or cut by the gateway."""
        if sent.cohort is self._cohort:
            slowness = self._slowness if self._before_drain is None else 0.0
            self._cohort.add(self._unloaded.times(seconds, rows, slowness))
            if self._cohort.complete:
                self._decide()
        if self._clock() >= self._drain_at:
            self._drain()

    def failed(self, sent: Sent) -> None:
        """Note that a request failed for another reason, of which the window makes nothing."""
        if sent.cohort is self._cohort:
            self._cohort.drop()

    def pressure(self, sent: Sent) -> None:
        """Note that the service refused a request because it has too much to do."""
        self.failed(sent)
        self._cut(self._ceiling.pressure(sent, self._unloaded.seconds))

    def _cut(self, refused_at: float | None) -> None:
        """Go below what the service refused, where that is news."""
        if refused_at is not None:
            self._starting, self._stride, self._before_drain = False, 0, None
            self._next(min(self._limit, refused_at) * Ceiling.CUT)

    def _decide(self) -> None:
        slowness, error = self._judged()
        if self._before_drain is not None:
            self._drained(slowness, error)
            return
        slowness += self._correct(min(0.0, slowness + 2 * error))
        self._slowness = max(0.0, slowness)
        self._steer(slowness, error)

    def _judged(self) -> tuple[float, float]:
        """Return the slowness that the cohort saw, and its standard error."""
        mean, spread = self._cohort.mean()
        size = self._cohort.size
        self._spread += (spread - self._spread) * size / (size + 16)
        return math.log(mean), self._spread * math.sqrt(1 / size + 1 / max(self._seen, 1))

    def _correct(self, by: float) -> float:
        """Move the unloaded time; return by how much less slow, seen from there, all is."""
        self._unloaded.shift(by)
        return -by

    def _learn(self, slowness: float) -> None:
        """Take what a cohort saw for the unloaded time, as far as it can be trusted beside all that was seen before."""
        size = self._cohort.size
        self._unloaded.shift(slowness * size / (size + self._seen))
        self._seen = min(self._seen + size, SEEN)

    def _steer(self, slowness: float, error: float) -> None:
        """Grow, hold or shrink.

        A worker that has less than others grows by as much and shrinks by less, which makes them equal in the end.
        """
        used = self._busiest >= 0.75 * self.limit
        more = min(1.0, self._limit / 8 + 0.25) if used else 0.0
        alone = self._starting and self.limit == 1  # a single request is in nobody's way
        if alone or slowness <= FREE + (2 * error if self._starting else error):
            if self._starting:
                self._learn(slowness)
            grown = max(self._limit * STRIDES[self._stride], self._limit + more)
            self._stride = min(self._stride + 1, len(STRIDES) - 1)
            self._next(grown if used else self._limit)
        elif self._starting and self._seen < SEEN / 2:
            self._next(1.0)
        else:
            self._starting, self._stride = False, 0
            change = max(DEEPEST_CUT, min(0.0, FULL + error - slowness))
            self._next(self._limit * math.exp(change) + more)

    def _drain(self) -> None:
        self._drain_at = self._next_drain()
        if not self._starting and self._before_drain is None:
            self._before_drain, self._halvings = self._limit, 0
            self._next(min(self._limit, max(self._busiest, 1)) / 2)

    def _drained(self, slowness: float, error: float) -> None:
        """Compare with what was seen at twice the limit, and learn the unloaded time.

        What is slow still is halved again while that helps: then there is a queue, and it is ours. Where it does not
        help, the service itself is slower than it was.
        """
        assert self._before_drain is not None
        helped = self._slowness - slowness > HELPED
        slow = slowness > FREE + 2 * error
        if slow and self.limit > 1 and (helped or not self._halvings):
            self._halvings += 1
            self._slowness = slowness
            self._next(self._limit / 2)
            return
        self._slowness = 0.0 if self._halvings else self._slowness
        if slow and not helped:
            self._correct(slowness)
        elif not slow:
            self._learn(slowness + self._correct(min(0.0, slowness + 2 * error)))
        limit = min(self._before_drain, 2 * self._limit) if self._halvings and helped else self._before_drain
        self._before_drain, self._stride = None, 1
        self._next(limit)

    def _next(self, limit: float) -> None:
        """Set the limit, and begin the cohort that tells how it is."""
        self._limit = min(max(1.0, limit), self._upper, self._ceiling.in_flight)
        self._busiest = 0
        size = self._limit * max(1.0, COHORT_SECONDS / self._unloaded.seconds)
        least = float(FIRST_COHORT)
        if not self._starting and self._before_drain is None:
            least = max(SMALLEST_COHORT, (self._spread / 0.15) ** 2)
        self._cohort = Cohort(round(min(max(size, least), LARGEST_COHORT)))

    def _next_drain(self) -> float:
        """Return when the next drain is due: at the same time for all workers that see the same clock."""
        period = DRAIN_SECONDS
        while period < DRAIN_TIMES * self._unloaded.seconds:
            period *= 2
        return (self._clock() // period + 1) * period


class Pace:
    """Spaces requests evenly, so that no second sees more than the rate allows. Guarded by its owner."""

    def __init__(self, per_second: float | None) -> None:
        self._gap = 1 / per_second if per_second else 0.0
        self.bounded = bool(per_second)
        self._next = float("-inf")

    def turn(self, now: float, rate: float = math.inf) -> float:
        """Take the next turn, at a lower rate where one is given; return the seconds to wait for it."""
        at = max(now, self._next)
        self._next = at + max(self._gap, 1 / rate)
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
