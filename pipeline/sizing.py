"""How large the next request may be: learned from how requests of all sizes went. Pure arithmetic, no I/O.

A service says in three ways what it takes: it refuses (413, or all rows at once of what it takes one by one), it is
cut (504), or it only gets slower with each row. The first two are found by halving the distance between what went and
what did not, one request at a time; the third is foreseen, from a straight line through times and sizes.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import linear_regression
from typing import TYPE_CHECKING, Final, NamedTuple

from pipeline.pack import Limits

if TYPE_CHECKING:
    from collections.abc import Callable

STRIDE: Final = 10
"""How many times larger than what went a request may be, while nothing was refused; and how many times smaller than
what was refused, while nothing went."""

CLOSE: Final = 10
"""The search ends where what went and what was refused differ by a tenth."""

REST: Final = 5.0
"""Seconds until what was refused is tried again; they double each time it is in vain."""

LAPSE: Final = 60.0
"""Seconds after which a trial of which nothing was heard is forgotten."""

ALIKE: Final = 2
"""Sizes that differ by less are too much alike to tell the rows' part from noise."""

CHANCE: Final = 2
"""How often in a row a size may be refused that had gone before, and it was chance."""

RECENT: Final = 16
FEW: Final = 4
FRESH: Final = 3
"""Only times of as many timeouts are compared: else a service that has much to do would seem slow per row."""


SLACK: Final = 1.25
"""A request that is ready is not cut for a foreseen time that is so little longer."""


class Bound:
    """The largest request that the service takes, in rows or bytes, between what it took and what it refused.

    It begins with `start`, and grows up to `upper` with what goes. Once something was refused, at most one request at a
    time is larger than what went.
    """

    def __init__(self, upper: int, *, start: int, clock: Callable[[], float]) -> None:
        self._upper = upper
        self._clock = clock
        self._open = min(start, upper)
        self._good = 0
        self._bad = 0
        self._doubted = self._doubts = 0
        """The largest size that was refused though as much had gone before, and how often since as much went."""
        self._trying = 0
        self._lapses = self._offered = self._due = float("-inf")
        self._rest = REST

    @property
    def limit(self) -> int:
        """What every request may have."""
        if not self._bad:
            return self._open
        return self._good or max(1, self._bad // STRIDE)

    @property
    def growing(self) -> bool:
        """Whether nothing was refused, and not all that is allowed was seen to go."""
        return not self._bad and self._good < self._upper

    def offer(self) -> int:
        """Return what the next request may be made of: now and then more than others may have."""
        now, larger = self._clock(), self._larger()
        if larger == self.limit or now < self._offered:
            return self.limit
        self._offered = now + REST
        return larger

    def admit(self, size: int) -> int:
        """Return how much of a request of this size may go now: all, or less."""
        if size <= self.limit or (size == self._trying and self._clock() < self._lapses):
            return size
        return min(size, self._larger())

    def going(self, size: int) -> None:
        """Note that a request goes out that was admitted."""
        if size > self.limit:
            self._trying, self._lapses = size, self._clock() + LAPSE

    def accepted(self, size: int) -> None:
        """Note that a request of this size went."""
        if size >= self._doubted:
            self._doubted = self._doubts = 0
        if self._trying and size >= self._trying:
            self._trying, self._offered = 0, float("-inf")
        self._good = max(self._good, size)
        if size >= self._bad > 0:  # what was refused was refused for something else
            self._bad, self._open, self._rest = 0, size, REST
        if not self._bad:
            self._open = min(max(self._open, STRIDE * size), self._upper)

    def cap(self, upper: int) -> None:
        """Note that no request may be larger: there is nothing to find out."""
        self._upper = min(self._upper, upper)
        self._open, self._good, self._bad = min(self._open, upper), min(self._good, upper), 0

    def refused(self, size: int) -> None:
        """Note that a request of this size did not go, and perhaps for its size."""
        vain = 0 < self._bad <= size
        if size <= self._trying:
            self._rest *= 2 if vain else 1
            self._trying, self._offered = 0, float("-inf")
            self._due = self._clock() + self._rest
        if size <= self._good:
            self._doubted, self._doubts = max(self._doubted, size), self._doubts + 1
        if not vain and (size > self._good or self._doubts > CHANCE):
            self._good = self._good if self._good < size else 0
            self._bad = size
            self._due = self._clock() + self._rest

    def _larger(self) -> int:
        """Return what a single request may have: more than `limit` where there is something to find out."""
        limit = self.limit
        if not self._bad or (self._trying and self._clock() < self._lapses):
            return limit
        if self._clock() >= self._due:
            return self._bad
        close = self._bad - limit <= max(1, limit // CLOSE)
        return limit if close else max(limit + 1, math.isqrt(limit * self._bad))


class _Seen(NamedTuple):
    at: float
    rows: int
    seconds: float


class Times:
    """How long requests take: a fixed part, and a part for each row."""

    def __init__(self, clock: Callable[[], float], *, fresh: float) -> None:
        self._clock = clock
        self._fresh = fresh
        self._seen: dict[int, deque[_Seen]] = {}

    def add(self, rows: int, seconds: float) -> None:
        """Note how long an answered request took."""
        seen = self._seen.setdefault(_class(rows), deque(maxlen=RECENT))
        seen.append(_Seen(self._clock(), rows, seconds))

    def late(self, rows: int, seconds: float) -> None:
        """Note that a request was not answered in that time.

        Where others of its size are, it is the slow one of them, without which they would flatter; else it says nothing
        of time.
        """
        if len(self._seen.get(_class(rows), ())) >= FEW:
            self.add(rows, seconds)

    def rows(self, seconds: float) -> float:
        """Return how many rows take at most so long; infinite where rows cost nothing.

        Where sizes are much alike all is taken for the rows' part; and where that is far too long, half as many rows
        tell whether it is. Where the fixed part alone takes about as long, a quarter of the time is left to the rows.
        """
        oldest = self._clock() - self._fresh
        points = [_median(seen) for seen in self._seen.values() if seen[-1].at >= oldest]
        if not points:
            return math.inf
        rows, times = [point.rows for point in points], [point.seconds for point in points]
        fixed = -1.0
        if max(rows) >= ALIKE * min(rows):
            each, fixed = linear_regression(rows, times)
        if fixed >= 0:
            return max(seconds - fixed, seconds / 4) / each if each > 0 else math.inf
        largest = max(points, key=lambda point: point.rows)
        most = seconds * largest.rows / largest.seconds
        return most if most * SLACK >= largest.rows else min(most, largest.rows / ALIKE)


def _class(rows: int) -> int:
    """Return the class of sizes that are compared as one: each is larger than the one before by the root of two."""
    return round(2 * math.log2(rows))


def _median(seen: deque[_Seen]) -> _Seen:
    return sorted(seen, key=lambda one: one.seconds)[(len(seen) - 1) // 2]


class Sizing:
    """How many rows and bytes the next request may have. One for each service and process, guarded by its owner.

    `rows` and `body` are never exceeded; `timeout` is the service's cut, of which a request is to take half at most.
    With `trial` it begins with one row, and goes on tenfold with what goes.
    """

    def __init__(self, *, rows: int, body: int, timeout: float, clock: Callable[[], float], trial: bool) -> None:
        self._rows = Bound(rows, start=1 if trial else rows, clock=clock)
        self._body = Bound(body, start=body, clock=clock)
        self._times = Times(clock, fresh=FRESH * timeout)
        self._half = timeout / 2
        self._trial = trial
        self._foreseen = math.inf
        self._largest = 0

    def offer(self) -> Limits:
        """Return the bounds of a request that is about to be made."""
        return Limits(self._body.offer(), self._timely(self._rows.offer()))

    def admit(self, rows: int, size: int) -> Limits | None:
        """Tell of a request that is about to go; it may where this is None, else it must be cut to these bounds.

        A single row may always go.
        """
        bounds = Limits(self._body.admit(size), self._rows.admit(rows))
        if rows > 1 and rows > SLACK * self._foreseen:
            bounds = bounds._replace(rows=self._timely(bounds.rows))
        if rows > 1 and (bounds.rows < rows or bounds.body < size):
            return bounds
        if rows > 1:
            self._rows.going(rows)
            self._body.going(size)
        return None

    def is_trial(self, rows: int) -> bool:
        """Whether a request is so much larger than any before that others should wait for how it goes.

        Of those that go wrong, only the first is.
        """
        if not (self._trial and self._rows.growing) or rows < max(1, 2 * self._largest):
            return False
        self._largest = rows
        return True

    def answered(self, rows: int, size: int, seconds: float) -> None:
        """Learn from a request that succeeded."""
        self._largest = max(self._largest, rows)
        self._rows.accepted(rows)
        self._body.accepted(size)
        self._times.add(rows, seconds)
        self._foreseen = self._times.rows(self._half)

    def late(self, rows: int) -> None:
        """Learn from a request that was given up, or cut by the gateway."""
        self._times.late(rows, 2 * self._half)
        self._foreseen = self._times.rows(self._half)

    def too_large(self, rows: int, size: int, most: int | None = None) -> None:
        """Learn from a request refused for its size. A single row cannot be cut: it is its own trouble.

        `most` is what the service says that it takes.
        """
        if most is not None and most < size:
            self._body.cap(most)
        elif rows > 1:
            self._body.refused(size)

    def divided(self, rows: int) -> None:
        """Learn from a request that was late again and again, or refused although all its rows succeeded in parts."""
        self._rows.refused(rows)

    def _timely(self, rows: int) -> int:
        return max(1, int(min(rows, self._foreseen)))
