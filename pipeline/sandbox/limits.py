"""How much the service takes: requests per second, and executions at once."""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Bucket:
    """Lets `rate` requests per second through, and as many at once as one second holds (at least one)."""

    def __init__(self, rate: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._size = max(1.0, rate or 0.0)
        self._clock = clock
        self._level, self._filled_at = self._size, clock()

    def take(self) -> bool:
        """Return whether one more request is let through now."""
        if self._rate is None:
            return True
        now = self._clock()
        self._level = min(self._size, self._level + (now - self._filled_at) * self._rate)
        self._filled_at = now
        if self._level < 1.0:
            return False
        self._level -= 1.0
        return True


def execution_slots(number: int | None) -> AbstractAsyncContextManager[None]:
    """Return what is held during an execution: at most `number` at once, the rest queue in order; None is no bound."""
    return nullcontext() if number is None else asyncio.Semaphore(number)
