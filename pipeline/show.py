"""Progress on stderr: a live bar on a terminal, a line every 30 s otherwise."""

from __future__ import annotations

import math
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pipeline.progress import Progress

LINE_SECONDS: Final = 30.0
STILL_SECONDS: Final = 10.0
"""How long nothing may be answered while a guess of the end, made from what was, still says something."""

_BAR_SECONDS: Final = 0.2
_LOOK_SECONDS: Final = 1.0


@contextmanager
def showing(progress: Progress, total: int, *, quiet: bool) -> Iterator[None]:
    """Show how far a run is, from another thread, until the block ends."""
    if quiet or total == 0:
        yield
        return
    over = threading.Event()
    target = _bar if sys.stderr.isatty() else _lines
    thread = threading.Thread(target=target, args=(progress, total, over), name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class Pace:
    """How a run of `total` rows gets on, by counters that are looked at now and then; `total` may be a guess.

    What was counted before is not of this run's rows. A row counts when it is answered: it may be written much later,
    where an earlier one has no answer yet.
    """

    def __init__(self, total: int, counts: Mapping[str, int], now: float) -> None:
        self._guess = total
        self._before = counts
        self._began = self._moved = now
        self.answered = 0

    @property
    def total(self) -> int:
        """The rows that there are, at the least."""
        return max(self._guess, self.answered)

    def told(self, counts: Mapping[str, int], now: float) -> str:
        """Say how it gets on."""
        written = counts["rows"] - self._before["rows"]
        answered = max(written, counts["answered"] - self._before["answered"])
        if answered != self.answered:
            self.answered, self._moved = answered, now
        rate = answered / (now - self._began) if now > self._began else 0.0
        waiting = f"{answered - written} of them not yet written, " if answered > written else ""
        return (
            f"{waiting}{rate:.0f} rows/s, {self._outlook(counts, rate, now)}, {counts['in_flight']} in flight, "
            f"{counts['retries']} retries, {counts['dead']} dead letters"
        )

    def _outlook(self, counts: Mapping[str, int], rate: float, now: float) -> str:
        left, still = self._guess - self.answered, now - self._moved
        if left == 0 and not counts["in_flight"]:  # the total may be a guess
            return "all answered"
        if still >= STILL_SECONDS and (counts["requests"] or counts["in_flight"]):  # workers elsewhere count nothing
            return f"none answered for {still:.0f} s"
        return f"{max(1, math.ceil(left / rate))} s left" if left > 0 and rate else "no end in sight yet"


def _lines(progress: Progress, total: int, over: threading.Event) -> None:
    shown = time.monotonic()
    pace = Pace(total, progress.read(), shown)
    while not over.wait(min(LINE_SECONDS, _LOOK_SECONDS)):
        now = time.monotonic()
        told = pace.told(progress.read(), now)
        if now - shown >= LINE_SECONDS:
            shown = now
            print(f"* {pace.answered}/{pace.total} rows, {told}", file=sys.stderr, flush=True)


def _bar(progress: Progress, total: int, over: threading.Event) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[detail]}"))
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("rows", total=total, detail="")
        pace = Pace(total, progress.read(), time.monotonic())
        while not over.wait(_BAR_SECONDS):
            told = pace.told(progress.read(), time.monotonic())
            bar.update(task, completed=pace.answered, total=pace.total, detail=told)
