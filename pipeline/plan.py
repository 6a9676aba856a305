"""Pure planning: listing -> splits, and what is left = the plan's rows - the receipts that count."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import accumulate, groupby, pairwise
from operator import itemgetter
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from msgspec import structs

from schemas.plan import NO_END, Heal, Split, Work

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pipeline.pieces import Mark
    from schemas.plan import Redo, Source
    from schemas.receipt import Receipt

SPLITS_PER_WORKER: Final = 20
MIN_SPLIT_BYTES: Final = 32_000_000
MIN_SPLIT_ROWS: Final = 10_000
LARGE_ROWS: Final = 10_000
MERGED_ROWS: Final = 1_000_000
MOST_ELEMENTS: Final = 1_000
_GUESSED_ROW_BYTES: Final = 100


class Range(NamedTuple):
    """Rows `[start, stop)`."""

    start: int
    stop: int


How = Literal["rescore", "keep"]


class Changed(NamedTuple):
    """What to do about planned files, and keys, that changed.

    `how` is what the user says: score again, or keep what is done. `keys` are the keys that changed answers, in words.
    `left` are the rows that are not done, and `done` those of each receipt that counts, by source number; `generation`
    is newer than all there are.
    """

    how: How | None = None
    keys: tuple[str, ...] = ()
    left: Mapping[int, Sequence[Range]] = {}
    done: Mapping[int, Sequence[Range]] = {}
    generation: int = 1

    @property
    def everything(self) -> bool:
        """Whether all that is done is to be scored again."""
        return bool(self.keys) and self.how == "rescore"


NO_CHANGE: Final = Changed()


def cut(
    sources: Iterable[Source], *, workers: int, row_bytes: int, marks: Mapping[int, Sequence[Mark]]
) -> Iterator[Split]:
    """Cut sources into splits: at least SPLITS_PER_WORKER a worker where there are rows enough to be worth it.

    `row_bytes` is what an average row weighs. A split is the unit of parallelism and nothing else, so it may be coarse:
    it is never cut smaller than about two full requests. `marks`, by source number, are where a source made of lines
    may be entered: its splits begin there. A source whose rows are not known is one split.
    """
    found = list(sources)
    total = sum(source.rows or 0 for source in found)
    worth = max(1, min(MIN_SPLIT_ROWS, MIN_SPLIT_BYTES // max(1, row_bytes)))
    rows = max(worth, total // (SPLITS_PER_WORKER * workers))
    for source in found:
        if source.rows is None:
            yield Split(source.number, 0, None)
        else:
            yield from _cut(source, source.rows, -(-source.rows // rows), marks.get(source.number, ()))


def _cut(source: Source, rows: int, count: int, marks: Sequence[Mark]) -> Iterator[Split]:
    borders = [(rows * index // count, 0) for index in range(count)]
    if marks:
        places = [bisect_right(marks, row, key=lambda mark: mark.row) - 1 for row, _ in borders]
        borders = [(marks[place].row, marks[place].offset) for place in dict.fromkeys(places)]
    for (start, offset), (stop, _) in pairwise([*borders, (rows, 0)]):
        yield Split(source.number, start, stop, offset)


def counting(receipts: Iterable[Receipt], versions: Mapping[int, str], redo: Iterable[Redo] = ()) -> list[Receipt]:
    """Return the receipts that count: of the current version, newest generation first, none overlapping another.

    The order is total, so every reader takes the same ones, whatever attempts ran at once. `versions` is by source
    number; a receipt of a source that is not in it does not count, nor one that `redo` has outdated.
    """
    orders = _by_generation(redo)
    current = (
        one
        for one in receipts
        if versions.get(one.source) == one.version and not _outdated(one, orders.get(one.source, {}))
    )
    taken: dict[int, list[Receipt]] = {}
    for receipt in sorted(current, key=lambda one: (one.source, -one.generation, one.start, one.stop, one.attempt)):
        others = taken.setdefault(receipt.source, [])  # sorted by start, no two of them overlap
        place = bisect_left(others, (receipt.start, receipt.stop), key=lambda one: (one.start, one.stop))
        if all(_apart(receipt, other) for other in others[max(0, place - 1) : place + 1]):
            others.insert(place, receipt)
    return [receipt for others in taken.values() for receipt in others]


class _Orders(NamedTuple):
    """Ranges to be scored again: where they start, in order, and how far they reach with all before them."""

    starts: Sequence[int]
    reach: Sequence[int]


def _by_generation(redo: Iterable[Redo]) -> dict[int, dict[int, _Orders]]:
    """Sort orders by source and generation."""
    sorted_ = sorted(redo, key=lambda one: (one.source, one.generation, one.start))
    found: dict[int, dict[int, _Orders]] = {}
    for (source, generation), same in groupby(sorted_, key=lambda one: (one.source, one.generation)):
        orders = list(same)
        reach = accumulate((one.stop for one in orders), max)
        found.setdefault(source, {})[generation] = _Orders([one.start for one in orders], list(reach))
    return found


def _outdated(receipt: Receipt, orders: Mapping[int, _Orders]) -> bool:
    """Whether an order of a later generation takes in rows of a receipt, or its source to the very end."""
    for generation, (starts, reach) in orders.items():
        before = bisect_left(starts, receipt.stop)  # orders that start before the receipt stops
        taken_in = before and receipt.start < min(reach[before - 1], receipt.stop)
        if receipt.generation < generation and (taken_in or reach[-1] == NO_END):
            return True
    return False


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


def remaining(
    sources: Mapping[int, Source], splits: Iterable[Split], counted: Iterable[Receipt], redo: Iterable[Redo] = ()
) -> list[Work]:
    """Return the work that is left: each split minus the receipts that count."""
    done: dict[int, list[Range]] = {}
    ends: dict[int, int] = {}
    for receipt in counted:
        done.setdefault(receipt.source, []).append(Range(receipt.start, receipt.stop))
        if receipt.end:
            ends[receipt.source] = receipt.stop
    generations: dict[int, int] = {}
    for order in redo:
        generations[order.source] = max(order.generation, generations.get(order.source, 0))
    return [
        Work(sources[split.source], *piece, generations.get(split.source, 0), (split.start, split.offset))
        for split in splits
        for piece in subtract(
            Range(split.start, ends.get(split.source, NO_END) if split.stop is None else split.stop),
            done.get(split.source, ()),
        )
    ]


def healing(
    sources: Mapping[int, Source], splits: Iterable[Split], receipts: Iterable[Receipt], kinds: Iterable[str] = ()
) -> list[Work]:
    """Return the work of rewriting receipts, each as a whole and a generation newer, so that it wins when it is there.

    `kinds` are those of the dead letters that are asked again; without any, all are.
    """
    marks: dict[int, list[tuple[int, int]]] = {}
    for split in splits:
        marks.setdefault(split.source, [(0, 0)]).append((split.start, split.offset))
    for places in marks.values():
        places.sort()
    return [
        Work(
            sources[one.source],
            one.start,
            one.stop,
            one.generation + 1,
            marks[one.source][bisect_right(marks[one.source], one.start, key=lambda mark: mark[0]) - 1],
            Heal(one, tuple(kinds)),
        )
        for one in receipts
    ]


class Tally(NamedTuple):
    """The rows of an output: planned, scored, dead, and how many sources were not yet read to their end.

    Of those only the rows that are done are counted among the planned ones.
    """

    planned: int
    scored: int
    dead: int
    unread: int

    @property
    def left(self) -> int:
        """Planned rows that are not done."""
        return self.planned - self.scored - self.dead


def tally(sources: Iterable[Source], counted: Sequence[Receipt]) -> Tally:
    """Count the rows of an output by its plan and the receipts that count."""
    ends = {receipt.source: receipt.stop for receipt in counted if receipt.end}
    done: dict[int, int] = {}
    for receipt in counted:
        done[receipt.source] = done.get(receipt.source, 0) + receipt.scored + receipt.dead
    planned = unread = 0
    for source in sources:
        rows = ends.get(source.number) if source.rows is None else source.rows
        planned += done.get(source.number, 0) if rows is None else rows
        unread += rows is None
    return Tally(planned, sum(one.scored for one in counted), sum(one.dead for one in counted), unread)


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


def shares(work: Sequence[Work], count: int) -> list[list[Work]]:
    """Divide work among so many workers: neighbours together, about as many rows each; none gets nothing."""
    sizes = [weight(one) for one in work]
    ends, total = accumulate(sizes), sum(sizes)
    middles = (2 * end - size for end, size in zip(ends, sizes, strict=True))  # of each piece, in half rows
    places = [(middle * count // (2 * total), one) for middle, one in zip(middles, work, strict=True)]
    return [[one for _, one in same] for _, same in groupby(places, key=itemgetter(0))]


def grouped(work: Sequence[Work]) -> list[tuple[Work, ...]]:
    """Put neighbours together, so that there are about MOST_ELEMENTS groups at the most: engines want few elements."""
    if len(work) <= MOST_ELEMENTS:
        return [(one,) for one in work]
    least = sum(map(weight, work)) / MOST_ELEMENTS
    groups: list[tuple[Work, ...]] = []
    group: list[Work] = []
    size = 0
    for one in work:
        group.append(one)
        size += weight(one)
        if size >= least:
            groups.append(tuple(group))
            group, size = [], 0
    return [*groups, tuple(group)] if group else groups


def weight(work: Work) -> int:
    """Return the rows of a piece of work, guessed from the file's size where they are not known; at least one."""
    return max(1, work.stop - work.start if work.stop < NO_END else work.source.size // _GUESSED_ROW_BYTES)


def asked(work: Work) -> int:
    """Return how many rows a piece of work asks the service at the most, guessed as their weight is."""
    return work.heal.receipt.dead if work.heal else weight(work)


def _joins(one: Work, following: Work) -> bool:
    if one.heal or following.heal:
        return False
    neighbours = (one.source, one.stop, one.generation) == (following.source, following.start, following.generation)
    large = min(one.stop - one.start, following.stop - following.start) >= LARGE_ROWS
    return neighbours and large and following.stop - one.start <= MERGED_ROWS
