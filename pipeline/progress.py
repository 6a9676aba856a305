"""What a run has done so far: counters that workers in this process share with the line on the terminal."""

from __future__ import annotations

import threading
from typing import Final

NAMES: Final = ("answered", "rows", "dead", "requests", "retries", "in_flight", "receipts")
"""Rows are `answered` before they are written, and so in `rows`, which is done in order."""


class Progress:
    """Counters by name, added to from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(NAMES, 0)

    def add(self, **counts: int) -> None:
        """Add to counters of NAMES."""
        with self._lock:
            for name, count in counts.items():
                self._counts[name] += count

    def read(self) -> dict[str, int]:
        """Return all counters as they are now."""
        with self._lock:
            return dict(self._counts)
