"""How much longer requests take than they would in an idle service: statistics of cohorts, no I/O.

Times are compared like with like: a request of a thousand rows takes longer than one of ten, so each class of sizes has
an unloaded time of its own. How slow the service is, is a natural logarithm: twice as slow as twice as slow is 2 log 2.
"""

from __future__ import annotations

import math
from bisect import insort
from statistics import fmean, pstdev
from typing import Final

ENOUGH: Final = 0.85
"""The share of a cohort that must be back."""

FIRST: Final = 8
"""Samples whose mean is a class's first unloaded time."""


class Cohort:
    """So many requests sent one after the other, and the times of those that came back.

    Those that come back first are the fast ones, and alone they would flatter. So nearly all are waited for; the rest,
    be it out or only slow, counts like the slowest of the others: a straggler holds nothing up and spoils no mean. It
    is a mean and no median, because services work in waves: where one request in five waits, it waits a whole time.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._enough = math.ceil(ENOUGH * size)
        self._places = size
        self._times: list[float] = []

    @property
    def complete(self) -> bool:
        """Whether enough came back."""
        return not self._places and len(self._times) >= self._enough

    def admit(self) -> bool:
        """Take one more request in, if there is a place left."""
        if not self._places:
            return False
        self._places -= 1
        return True

    def add(self, time: float) -> None:
        """Note a request that came back, with its time in units of the unloaded one."""
        insort(self._times, time)

    def drop(self) -> None:
        """Forget a request that failed: it says nothing about time, and another one takes its place."""
        self._places += 1

    def mean(self) -> tuple[float, float]:
        """Return the mean time, and the standard deviation relative to it."""
        times = self._times[: self._enough]
        times += times[-1:] * (self.size - len(times))
        mean = fmean(times)
        return mean, pstdev(times, mean) / mean


class Unloaded:
    """The time that requests of each size class take in an idle service, as far as is known."""

    def __init__(self) -> None:
        self._times: dict[int, float] = {}
        self._counts: dict[int, int] = {}
        self.seconds = 1.0
        """Unloaded time of the latest request."""

    def times(self, seconds: float, rows: int, slowness: float) -> float:
        """Return a request's time in units of its class's unloaded one.

        What a class that is new would take is told from its first requests and from how slow the service is just now.
        """
        size = round(2 * math.log2(max(1, rows)))
        count = self._counts.get(size, 0)
        alike = max(seconds, 1e-6) / math.exp(slowness)
        if count < FIRST and (len(self._times) > 1 or not count):
            self._counts[size] = count + 1
            known = self._times.get(size, 0.0)
            self._times[size] = known + (alike - known) / (count + 1)
        self.seconds = self._times[size]
        return max(seconds, 1e-6) / self.seconds

    def shift(self, by: float) -> None:
        """Move all classes: the service as a whole is slower, by that logarithm, than was thought."""
        for size in self._times:
            self._times[size] *= math.exp(by)
