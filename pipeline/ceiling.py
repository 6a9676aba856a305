"""What a service takes without refusing: learned from its refusals, where there are any."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from pipeline.noise import Check, Noise

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.window import Sent


class Load(NamedTuple):
    """Requests a second, and at once."""

    rate: float = math.inf
    in_flight: float = math.inf


class Ceiling:
    """What a service takes without refusing, learned from refusals (429, 503), as far as these are no noise.

    It may count requests at once, or requests a second: both are kept a little below where it refused one. Then they
    grow again, in steps that double, after a rest that doubles where the service is found as narrow as before.
    """

    CUT: Final = 0.8
    BELOW: Final = 0.95
    STEP: Final = 0.02
    LONGEST_STEP: Final = 0.08
    REST_SECONDS: Final = 2.0
    LONGEST_REST_SECONDS: Final = 64.0
    SAMPLES: Final = 64
    CHECKED: Final = 1 / 3
    """The part of the load that shows whether refusals are noise."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._successes: deque[float] = deque(maxlen=self.SAMPLES)
        self._cut_at = float("-inf")
        self._rest = self.REST_SECONDS / 2
        self._load = self._found = self._proved = Load()
        """What the service takes; what it refused; what it refused when that was no noise."""
        self._factor = self._step = 1.0
        self._next_at = math.inf
        self._noise = Noise()
        self._check: Check | None = None

    @property
    def rate(self) -> float:
        """Requests a second."""
        known = self._load.rate * self._factor
        return min(known, self._check.rate) if self._check else known

    @property
    def in_flight(self) -> float:
        """Requests at once."""
        return max(1.0, self._load.in_flight - 1.0) * max(1.0, self._factor)

    def sent(self, now: float, in_flight: int, seconds: float) -> None:
        """Note a request, how many are on the wire with it, and for how many seconds each, where nothing queues."""
        self._noise.sent(in_flight)
        if now >= self._noise.check_at and not self._check:
            self._check = self._noise.again(now, min(self.rate, max(1, in_flight) / seconds))

    def success(self, sent: Sent) -> float | None:
        """Note one; where its time has come, grow. Return at how many requests at once the service refused, if news."""
        now = self._clock()
        if sent.at >= self._cut_at:
            self._successes.append(now)
        if self._check:
            return self._checked(self._check, sent, now, refused=False)
        if now >= self._next_at:
            self._factor += self._step
            self._step = min(2 * self._step, self.LONGEST_STEP)
            self._next_at = now + 1.0
            if self._factor > 2.0:  # noqa: PLR2004 - it is no bound any more
                self._lift()
        return None

    def pressure(self, sent: Sent, seconds: float) -> float | None:
        """Note a refusal; return at how many requests at once the service refused, if that is news.

        It is none where it may be chance or noise, and requests sent before the last cut only tell the same again.
        """
        now = self._clock()
        if self._check:
            return self._checked(self._check, sent, now, refused=True)
        if sent.at < self._cut_at or not self._noise.refused() or self._too_early(now, seconds):
            return None
        again, self._cut_at = now - self._cut_at < 2 * self.REST_SECONDS, now
        possible, seen = self._noise.possible(in_a_row=self._factor < 1.0), self._noise.seen
        self._noise.empty()
        if self._answering:  # else it is an outage, which tells nothing about a rate
            rate = min(
                sent.in_flight / seconds, max(self._delivered(now), self.CUT * self.rate) if again else self.rate
            )
            self._found = Load(rate, sent.in_flight)
            self._successes.clear()
            if possible:
                self._check = Check(now, rate * self.CHECKED, self._noise.share, seen, again=False)
                return None
            self._keep_below(now)
        return sent.in_flight

    @property
    def _answering(self) -> bool:
        return len(self._successes) > 1

    def _too_early(self, now: float, seconds: float) -> bool:
        """Whether what was sent since the last cut cannot have succeeded yet, and so many refusals may be noise."""
        return not self._answering and now < self._cut_at + seconds and self._noise.seen <= Check.MOST

    def _delivered(self, now: float) -> float:
        return (len(self._successes) - 1) / max(now - self._successes[0], 1e-3)

    def _checked(self, check: Check, sent: Sent, now: float, *, refused: bool) -> float | None:
        """Note what became of a request in a check, and what follows from it once it is sure."""
        noise = check.answered(sent.at, refused=refused) if sent.at >= check.at else None
        if noise is None:
            return None
        self._check = None
        self._noise.empty()
        if noise:
            if not check.again or check.share > self._noise.share:  # what was cut was cut for noise
                self._grow_again(now)
            self._noise.found((check.share + check.seen) / 2, now)
            return None
        self._noise.refuted(check)
        if check.again:
            return None
        self._proved = self._found
        self._keep_below(now)
        return self._found.in_flight

    def _keep_below(self, now: float) -> None:
        if self._factor >= 1.0:  # else it is the same ceiling still
            self._rest = min(2 * self._rest, self.LONGEST_REST_SECONDS)
        self._load = self._found
        self._factor, self._step = self.BELOW, self.STEP
        self._next_at = now + self._rest

    def _grow_again(self, now: float) -> None:
        """Go back to the ceiling that was no noise; if it is refuted twice, there is none."""
        proved, self._proved = self._proved, Load()
        self._lift()
        if proved.rate < math.inf:
            self._load, self._factor, self._step, self._next_at = proved, self.BELOW, self.STEP, now

    def _lift(self) -> None:
        self._load, self._next_at = Load(), math.inf
        self._rest, self._factor = self.REST_SECONDS / 2, 1.0
