"""What a service takes without refusing: learned from its refusals, where there are any."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.window import Sent


class Ceiling:
    """What a service takes without refusing, learned from refusals (429, 503).

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

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._successes: deque[float] = deque(maxlen=self.SAMPLES)
        self._cut_at = float("-inf")
        self._rest = self.REST_SECONDS / 2
        self._rate = self._in_flight = float("inf")
        self._factor = self._step = 1.0
        self._next_at = float("inf")

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self._rate * self._factor

    @property
    def in_flight(self) -> float:
        """Requests at once."""
        return self._in_flight * max(1.0, self._factor)

    def success(self, sent: Sent) -> None:
        """Note one; where its time has come, grow."""
        now = self._clock()
        if sent.at >= self._cut_at:
            self._successes.append(now)
        if now >= self._next_at:
            self._factor += self._step
            self._step = min(2 * self._step, self.LONGEST_STEP)
            self._next_at = now + 1.0
            if self._factor > 2.0:  # noqa: PLR2004 - it is no bound any more
                self._rate = self._in_flight = self._next_at = float("inf")
                self._rest = self.REST_SECONDS / 2

    def pressure(self, sent: Sent, seconds: float) -> bool:
        """Note a refusal; return whether it is news: requests sent before the last cut only tell the same again."""
        if sent.at < self._cut_at:
            return False
        last, now = self._cut_at, self._clock()
        self._cut_at = now
        if len(self._successes) > 1:  # where nothing succeeds it is an outage, which tells nothing about a rate
            self._rest = min(2 * self._rest, self.LONGEST_REST_SECONDS)
            delivered = (len(self._successes) - 1) / max(now - self._successes[0], 1e-3)
            again = now - last < 2 * self.REST_SECONDS
            self._rate = max(delivered, self.CUT * self.rate) if again else min(self.rate, sent.in_flight / seconds)
            self._in_flight = max(1.0, sent.in_flight - 1.0)
            self._factor, self._step = self.BELOW, self.STEP
            self._next_at = now + self._rest
            self._successes.clear()
        return True
