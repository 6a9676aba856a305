"""Whether a service answers anybody at all, and when to ask while it does not: pure arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable


class Outage:
    """Notes what comes back; while nothing does, lets one request at a time through, with pauses that double.

    Guarded by its owner. One that was on its way when the first one failed may still succeed: only those sent later
    tell that nobody does.
    """

    AFTER: Final = 3
    AFTER_SECONDS: Final = 5.0
    FIRST_PAUSE: Final = 1.0
    LONGEST_PAUSE: Final = 30.0

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since: float | None = None
        self._in_vain = 0
        self._pause = self.FIRST_PAUSE
        self._next = float("-inf")
        self._probe: float | None = None

    def __bool__(self) -> bool:
        """Whether nobody is answered."""
        return self._in_vain >= self.AFTER and self.seconds >= self.AFTER_SECONDS

    @property
    def seconds(self) -> float:
        """For how long requests have failed and none has been answered."""
        return 0.0 if self._since is None else self._clock() - self._since

    def answered(self) -> None:
        """Note that the service answered a request, be it with a refusal of its rows."""
        self._since, self._in_vain, self._pause, self._next = None, 0, self.FIRST_PAUSE, float("-inf")

    def failed(self, sent: float, *, by_the_model: bool = False) -> None:
        """Note that a request sent at that time failed.

        Where the model itself says so the service is there, and needs no sparing, though nothing succeeds.
        """
        if self._since is None:
            self._since = self._clock()
        elif sent > self._since and not by_the_model:
            self._in_vain += 1

    def wait(self) -> float:
        """Return the seconds until one more request may be sent, as far as can be told now."""
        if not self:
            return 0.0
        return self.LONGEST_PAUSE if self._probe is not None else max(0.0, self._next - self._clock())

    def send(self) -> float | None:
        """Note that a request goes out; while nobody is answered it is a probe, and this its name."""
        if not self:
            return None
        self._probe = self._clock()
        return self._probe

    def back(self, probe: float | None) -> None:
        """Note that a request's place is free again."""
        if probe is None or probe != self._probe:
            return
        self._probe = None
        if self:
            self._next = self._clock() + self._pause
            self._pause = min(2 * self._pause, self.LONGEST_PAUSE)
