"""Progress on stderr: a live bar on a terminal, a line every 30 s otherwise."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.progress import Progress

LINE_SECONDS: Final = 30.0
_BAR_SECONDS: Final = 0.2


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


def line(counts: dict[str, int], total: int, seconds: float) -> str:
    """Say in one line how far a run is; `total` may be a guess, which turns out to be too low."""
    rows = counts["rows"]
    total = max(total, rows)
    rate = rows / seconds if seconds else 0.0
    left = f"{(total - rows) / rate:.0f} s left" if rate else "no end in sight yet"
    return (
        f"* {rows}/{total} rows, {rate:.0f} rows/s, {left}, {counts['in_flight']} in flight, "
        f"{counts['retries']} retries, {counts['dead']} dead letters"
    )


def _lines(progress: Progress, total: int, over: threading.Event) -> None:
    started = time.monotonic()
    while not over.wait(LINE_SECONDS):
        print(line(progress.read(), total, time.monotonic() - started), file=sys.stderr, flush=True)


def _bar(progress: Progress, total: int, over: threading.Event) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[detail]}"), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("rows", total=total, detail="")
        started = time.monotonic()
        while not over.wait(_BAR_SECONDS):
            counts = progress.read()
            rate = counts["rows"] / (time.monotonic() - started)
            detail = (
                f"{rate:.0f} rows/s, {counts['in_flight']} in flight, {counts['retries']} retries, "
                f"{counts['dead']} dead letters"
            )
            bar.update(task, completed=counts["rows"], detail=detail)
