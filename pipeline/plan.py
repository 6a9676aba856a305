"""Pure planning: listing -> splits, and what is left = the plan's rows - the receipts that count."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec import structs

from schemas.plan import Split, Work

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from schemas.plan import Source
    from schemas.receipt import Receipt

SPLITS_PER_WORKER: Final = 20
MIN_SPLIT_BYTES: Final = 32_000_000
MIN_SPLIT_ROWS: Final = 10_000
LARGE_ROWS: Final = 10_000
MERGED_ROWS: Final = 1_000_000


class Range(NamedTuple):
    """Rows `[start, stop)`."""

    start: int
    stop: int


def cut(sources: Iterable[Source], *, workers: int, row_bytes: int) -> Iterator[Split]:
    """Cut sources into splits: at least SPLITS_PER_WORKER a worker where there are rows enough to be worth it.

    `row_bytes` is what an average row weighs. A split is the unit of parallelism and nothing else, so it may be coarse:
    it is never cut smaller than about two full requests.
    """
    found = list(sources)
    total = sum(source.rows for source in found)
    worth = max(1, min(MIN_SPLIT_ROWS, MIN_SPLIT_BYTES // max(1, row_bytes)))
    rows = max(worth, total // (SPLITS_PER_WORKER * workers))
    for source in found:
        count = -(-source.rows // rows)
        for index in range(count):
            yield Split(source.number, source.rows * index // count, source.rows * (index + 1) // count)


def counting(receipts: Iterable[Receipt], versions: Mapping[int, str]) -> list[Receipt]:
    """Return the receipts that count: of the current version, newest generation first, none overlapping another.

    The order is total, so every reader takes the same ones, whatever attempts ran at once. `versions` is by source
    number; a receipt of a source that is not in it does not count.
    """
    current = (one for one in receipts if versions.get(one.source) == one.version)
    taken: dict[int, list[Receipt]] = {}
    for receipt in sorted(current, key=lambda one: (one.source, -one.generation, one.start, one.stop, one.attempt)):
        others = taken.setdefault(receipt.source, [])  # sorted by start, no two of them overlap
        place = bisect_left(others, receipt.start, key=lambda one: one.start)
        if all(_apart(receipt, other) for other in others[max(0, place - 1) : place + 1]):
            others.insert(place, receipt)
    return [receipt for others in taken.values() for receipt in others]


def _apart(one: Receipt, other: Receipt) -> bool:
    return one.stop <= other.start or other.stop <= one.start


def subtract(whole: Range, done: Iterable[Range]) -> list[Range]:
    """Return what is left of a range, in order, without empty pieces."""
    left, position = [], whole.start
    for start, stop in (*sorted(done), (whole.stop, whole.stop)):
        if position < min(start, whole.stop):
            left.append(Range(position, min(start, whole.stop)))
        position = max(position, stop)
    return left


def remaining(sources: Mapping[int, Source], splits: Iterable[Split], counted: Iterable[Receipt]) -> list[Work]:
    """Return the work that is left: each split minus the receipts that count."""
    done: dict[int, list[Range]] = {}
    for receipt in counted:
        done.setdefault(receipt.source, []).append(Range(receipt.start, receipt.stop))
    return [
        Work(sources[split.source], *piece)
        for split in splits
        for piece in subtract(Range(split.start, split.stop), done.get(split.source, ()))
    ]


def merged(work: Iterable[Work]) -> list[Work]:
    """Join large neighbours, up to MERGED_ROWS, for a runner whose one worker would do them one after the other.

    Each range has its price (files opened and synced, a window that drains), and what a crash costs does not depend on
    it. Small ones stay as they are: many of those are worked on at once.
    """
    joined: list[Work] = []
    for one in work:
        last = joined[-1] if joined else None
        if last and _joins(last, one):
            joined[-1] = structs.replace(last, stop=one.stop)
        else:
            joined.append(one)
    return joined


def _joins(one: Work, following: Work) -> bool:
    neighbours = (one.source, one.stop, one.generation) == (following.source, following.start, following.generation)
    large = min(one.stop - one.start, following.stop - following.start) >= LARGE_ROWS
    return neighbours and large and following.stop - one.start <= MERGED_ROWS
