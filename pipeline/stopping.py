"""How a worker is told to stop, and why: by a signal, by a refusal that concerns the whole job, by failed storage."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.errors import BulkscoreError


class Stopped(Exception):
    """A conversation ends because the run does; its rows stay undone."""


class Stopping:
    """Set once, seen by everybody. `reason` is None while a signal alone asks for the end."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.RLock()  # a signal's handler may come while its thread has it
        self.reason: BulkscoreError | None = None

    def __bool__(self) -> bool:
        return self._event.is_set()

    def stop(self, reason: BulkscoreError | None = None) -> None:
        """Ask everybody to stop sending; the first reason stays."""
        with self._lock:
            self.reason = self.reason or reason
        self._event.set()

    def check(self) -> None:
        """Raise Stopped once the end was asked for."""
        if self._event.is_set():
            raise Stopped

    def wait(self, seconds: float) -> None:
        """Sleep, but no longer than until the end is asked for; then raise Stopped."""
        if self._event.wait(seconds):
            raise Stopped
