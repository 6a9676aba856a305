"""Refusals that come whatever the load: what share they are, and whether there are more than that. No I/O."""

from __future__ import annotations

import math
from collections import deque
from typing import Final

CHANCE: Final = 0.02
"""A share that says nothing, even where there is no noise."""

SAMPLE: Final = 50
"""Requests of which noise does not refuse more than is usual, with two standard deviations."""


def usual(share: float) -> float:
    """Return the share of refusals that says nothing where so large a share is noise."""
    return share + 2 * math.sqrt(share * (1 - share) / SAMPLE) + CHANCE


class Check:
    """Less load for a moment, to see whether refusals depend on it: a sequential test of two hypotheses.

    Noise refuses the same share as before, a ceiling hardly anything. The share before was what made one look, and
    luck had its part in it; so noise need not refuse quite as much, nor a ceiling nothing, as others may send, too.
    """

    NOISE: Final = 0.6
    CEILING: Final = 0.08
    """How much of the share that was seen each of them refuses in a check."""

    SURE: Final = 6.0
    """Logarithm of the odds at which it is decided."""

    MOST: Final = 0.4
    """A larger share is no noise: far too much is sent, or it is an outage."""

    ENOUGH: Final = 8
    OUTAGE: Final = 32
    """Refusals that tell so; the second, where nothing succeeds."""

    def __init__(self, at: float, rate: float, known: float, seen: float, *, again: bool) -> None:
        """Begin one, after so large a share was seen, and a part of it is known to be noise."""
        noise, ceiling = known + self.NOISE * (seen - known), known + self.CEILING * (seen - known)
        self.at = at
        """When it began."""
        self.rate = rate
        """Requests a second while it lasts."""
        self.seen = seen
        self.again = again
        """Whether what was found to be noise is checked again."""
        self._refusal = math.log(noise / ceiling)
        self._success = math.log((1 - noise) / (1 - ceiling))
        self._answers = self._refused = 0
        self._early: deque[float] = deque()

    @property
    def share(self) -> float:
        """The share that was refused."""
        return self._refused / max(self._answers, 1)

    def answered(self, sent_at: float, *, refused: bool) -> bool | None:
        """Note what became of a request; return whether load has nothing to do with it, or None while it is not sure.

        Refusals are back before successes, and would exaggerate: each counts when a later request has succeeded.
        """
        if refused:
            self._early.append(sent_at)
            return False if len(self._early) >= self.OUTAGE else None
        while self._early and self._early[0] <= sent_at:
            self._early.popleft()
            self._refused += 1
            self._answers += 1
        self._answers += 1
        odds = self._refused * self._refusal + (self._answers - self._refused) * self._success
        if abs(odds) < self.SURE:
            return None
        if self.share > self.MOST:
            return False if self._refused >= self.ENOUGH else None
        return odds > 0 or self.seen <= usual(self.share)


class Noise:
    """Tells refusals that may say something about load from those that do not: counts, and times as arguments.

    Every refusal fills a bucket by one, every request drains it by the share that says nothing; where it flows over,
    there are too many to be chance. A check tells whether they are noise. That is checked again from time to time, at
    once by all workers that share a clock: what one of them saw may have been the others' doing.
    """

    UNKNOWN: Final = 8.0
    NEAR: Final = 2.0
    NOISY: Final = 4.0
    """Depth of the bucket: at first, and near a ceiling that was found, without noise and with it."""

    CUTS: Final = 3
    """So many in a row bring a load below a ceiling; where they do not, it was none."""

    PERIOD_SECONDS: Final = 8.0
    LONGEST_SECONDS: Final = 4.0
    """How often it is checked again, unless that would take too long."""

    def __init__(self) -> None:
        self.share = 0.0
        """The share of requests that is refused whatever the load."""
        self.check_at = math.inf
        """When it is to be checked again."""
        self._near_ceiling = False
        self._cuts = 0
        self._usual = CHANCE
        self._excess = 0.0
        self._on_wire = self._sent = self._refused = 0

    @property
    def seen(self) -> float:
        """The share that was refused since the bucket was empty; half of what is in it may be chance."""
        return (self._refused - self._excess / 2) / max(self._sent, self._refused)

    def sent(self, on_wire: int) -> None:
        """Note a request, and how many are on the wire with it: of those, too, some are going to be refused."""
        self._on_wire = on_wire
        self._excess -= self._usual
        if self._excess <= -self._usual * on_wire:
            self.empty()
        self._sent += 1

    def refused(self) -> bool:
        """Note a refusal; return whether there are too many to be chance."""
        self._excess += 1.0
        self._refused += 1
        near = self.NOISY if self.share else self.NEAR
        return self._excess > (near if self._near_ceiling else self.UNKNOWN)

    def empty(self) -> None:
        """Empty the bucket."""
        self._excess, self._sent, self._refused = -self._usual * self._on_wire, self._on_wire, 0

    def possible(self, *, in_a_row: bool) -> bool:
        """Whether too many refusals may be noise for all that is known; `in_a_row` if there were too many just now."""
        self._cuts = self._cuts + 1 if in_a_row else 0
        if self._cuts > self.CUTS:
            self._near_ceiling = False
        return not self._near_ceiling and self.share < self.seen <= Check.MOST

    def found(self, share: float, now: float) -> None:
        """Take a share for noise, until it is checked again."""
        self._learn(share)
        self._later(now)

    def refuted(self, check: Check) -> None:
        """Take note that there is a ceiling, or that what was held for noise is none."""
        self._near_ceiling, self._cuts = True, 0
        if check.again:
            self._learn(0.0)
            self.check_at = math.inf

    def again(self, now: float, rate: float) -> Check | None:
        """Begin to check the noise again at half the rate, or put it off where that would take too long."""
        if 3 / self.share > self.LONGEST_SECONDS * rate / 2:
            self._later(now)
            return None
        return Check(now, rate / 2, 0.0, self.share, again=True)

    def _later(self, now: float) -> None:
        """Let the next check be halfway between two drains: at the same time for all that see the same clock."""
        self.check_at = (math.floor(now / self.PERIOD_SECONDS + 0.5) + 0.5) * self.PERIOD_SECONDS

    def _learn(self, share: float) -> None:
        self.share = share
        self._usual = usual(share)
