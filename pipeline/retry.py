"""When to try again, and when to give up: tenacity's strategies, fed with our clock and our randomness."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final, cast

from tenacity import RetryCallState, stop_after_attempt, stop_any, stop_before_delay, wait_exponential

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from random import Random

    from schemas.job import Retry

_BACKOFF: Final = wait_exponential(multiplier=0.5, max=30)
MAX_RETRY_AFTER: Final = 300.0
"""A gateway that asks for more (or for a date in another year) is asked again after five minutes."""


class Patience:
    """The retry budget of one request: attempts and seconds, whichever ends first.

    Delays grow exponentially from half a second to 30 s with equal jitter, and are never shorter than the service's
    `Retry-After`. `failures` before the first attempt count for the delays, not for the budget.
    """

    def __init__(self, retry: Retry, *, clock: Callable[[], float], rng: Random, failures: int = 0) -> None:
        self._clock = clock
        self._rng = rng
        self._stop = stop_any(stop_after_attempt(retry.attempts), stop_before_delay(retry.seconds))
        self._state = RetryCallState(retry_object=cast("Any", None), fn=None, args=(), kwargs={})
        self._began = False
        self._failures = self._forgiven = failures

    def failed(self, retry_after: float | None) -> tuple[float, bool]:
        """Record a failed attempt; return (seconds to wait before the next one, whether the budget is spent)."""
        if not self._began:  # what went before, such as the wait for a place, was not its trouble
            self._began = True
            self._state.start_time = self._clock()
        self._failures += 1
        self._state.attempt_number = self._failures
        self._state.outcome_timestamp = self._clock()
        base = _BACKOFF(self._state)
        self._state.upcoming_sleep = max(base / 2 + self._rng.uniform(0, base / 2), retry_after or 0.0)
        self._state.attempt_number -= self._forgiven
        return self._state.upcoming_sleep, self._stop(self._state)

    def forgive(self) -> None:
        """Begin the budget anew, because the failures so far were not the request's own trouble; delays stay long."""
        self._forgiven = self._failures
        self._state.start_time = self._clock()


def retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Return the seconds that a `Retry-After` header asks for (seconds or a date), at most MAX_RETRY_AFTER."""
    value = headers.get("Retry-After", "")
    with suppress(ValueError):
        return _bounded(float(value))
    with suppress(ValueError, OverflowError):
        when = parsedate_to_datetime(value)
        return _bounded(((when if when.tzinfo else when.replace(tzinfo=UTC)) - now).total_seconds())
    return None


def _bounded(seconds: float) -> float:
    return min(max(0.0, seconds), MAX_RETRY_AFTER)
