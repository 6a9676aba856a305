"""Counters of what the service saw, so that a test can believe the server and not the client."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class Stats:
    """Totals since the start. Every request that arrived ends in `by_status`, or in `dropped`, or is in flight."""

    requests: int = 0
    ok: int = 0
    dropped: int = 0  # no whole answer was sent: a fault of the schedule, or the client left
    by_status: Counter[str] = field(default_factory=Counter)
    by_fault: Counter[str] = field(default_factory=Counter)  # of the schedule, by name
    rows_received: int = 0  # by the model
    rows_answered: int = 0  # in whole answers
    bytes_received: int = 0
    max_body: int = 0  # bytes, refused bodies included
    bodies_over_limit: int = 0
    websockets: int = 0  # handshakes that were accepted
    in_flight: int = 0
    peak_in_flight: int = 0

    @contextmanager
    def flight(self) -> Iterator[None]:
        """Count a request from its arrival to its end."""
        self.requests += 1
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        try:
            yield
        finally:
            self.in_flight -= 1

    def received(self, size: int, *, declared: int = 0) -> None:
        """Count the bytes of a body: those that came, and those that were announced."""
        self.bytes_received += size
        self.max_body = max(self.max_body, size, declared)

    def answered(self, status: int, rows: int) -> None:
        """Count a whole answer."""
        self.by_status[str(status)] += 1
        self.ok += status == 200  # noqa: PLR2004 -- the status has no better name
        self.rows_answered += rows

    def snapshot(self) -> dict[str, Any]:
        """Return all counters."""
        return {**vars(self), "by_status": dict(self.by_status), "by_fault": dict(self.by_fault)}
