from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.plan import (
    LARGE_ROWS,
    MERGED_ROWS,
    MIN_SPLIT_ROWS,
    SPLITS_PER_WORKER,
    Range,
    counting,
    cut,
    merged,
    remaining,
    subtract,
)
from schemas.plan import Source, Split, Work
from schemas.receipt import Receipt

edges = st.integers(0, 12)
ranges = st.tuples(edges, edges).filter(lambda pair: pair[0] < pair[1]).map(lambda pair: Range(*pair))


def receipt(source, rows, generation=0, attempt="a", version="v1"):
    return Receipt(
        source=source,
        start=rows[0],
        stop=rows[1],
        generation=generation,
        attempt=attempt,
        version=version,
        scored=rows[1] - rows[0],
        dead=0,
        run="run",
    )


receipts = st.builds(
    receipt,
    st.integers(0, 1),
    ranges,
    st.integers(0, 2),
    st.sampled_from(["a", "b"]),
    st.sampled_from(["v1", "v2"]),
)


def source(number, rows):
    return Source(number=number, uri=f"file:///in/{number}", path=str(number), size=rows, version="v1", rows=rows)


def name(one):
    return (one.source, one.start, one.stop, one.generation, one.attempt)


def rows_of(one):
    return {(one.source, row) for row in range(one.start, one.stop)}


def slow_counting(found, versions):
    """The contract, word by word: by generation (newest first), from, to, attempt; taken if it overlaps nothing."""
    taken = []
    current = [one for one in found if versions.get(one.source) == one.version]
    for one in sorted(current, key=lambda one: (-one.generation, one.start, one.stop, one.attempt)):
        if all(rows_of(one).isdisjoint(rows_of(other)) for other in taken):
            taken.append(one)
    return {name(one) for one in taken}


@given(st.lists(receipts, max_size=12), st.dictionaries(st.integers(0, 1), st.sampled_from(["v1", "v2"])))
def test_the_receipts_that_count_are_those_of_the_contract(found, versions):
    """Any ranges, generations, attempts and versions: those of a brute-force reading, none overlapping another."""
    counted = counting(found, versions)
    assert {name(one) for one in counted} == slow_counting(found, versions)
    assert sum(len(rows_of(one)) for one in counted) == len(set().union(*map(rows_of, counted)))
    assert all(versions[one.source] == one.version for one in counted)


@given(st.lists(receipts, max_size=12).flatmap(lambda found: st.tuples(st.just(found), st.permutations(found))))
def test_every_reader_counts_the_same_receipts(lists):
    """The order in which receipts are listed does not matter."""
    versions = {0: "v1", 1: "v2"}
    first, second = ([name(one) for one in counting(found, versions)] for found in lists)
    assert first == second


def test_a_new_generation_takes_the_place_of_the_old_rows():
    """A newer receipt wins over each older one that it overlaps, which counts no more, even for its other rows."""
    old, new = receipt(0, (0, 10)), receipt(0, (4, 6), generation=1)
    assert counting([old, new], {0: "v1"}) == [new]


def test_of_two_attempts_at_once_one_counts():
    """Both workers finished the same range: every reader takes the same one."""
    first, second = receipt(0, (0, 10), attempt="a"), receipt(0, (0, 10), attempt="b")
    assert counting([second, first], {0: "v1"}) == [first]


@given(ranges, st.lists(ranges, max_size=6))
def test_what_is_left_is_the_whole_minus_what_is_done(whole, done):
    """Exactly the rows in no done range, as few unbroken pieces in order, whatever overlaps or reaches beyond."""
    left = subtract(whole, done)
    rows = [row for piece in left for row in range(*piece)]
    covered = {row for piece in done for row in range(*piece)}
    assert rows == [row for row in range(*whole) if row not in covered]
    assert all(piece.start < piece.stop for piece in left)
    assert all(before.stop < after.start for before, after in pairwise(left))


def test_nothing_is_left_of_an_empty_range():
    """An empty range has no pieces."""
    assert subtract(Range(5, 5), [Range(0, 3)]) == []
    assert subtract(Range(5, 5), []) == []


@given(
    st.lists(st.integers(0, 200_000), max_size=6),
    st.integers(1, 40),
    st.integers(0, 100_000_000),
)
def test_splits_cover_every_row_once_and_are_enough(sizes, workers, row_bytes):
    """No row twice or never, none empty, in order; at least 20 a worker where all are worth it."""
    splits = list(
        cut([source(number, rows) for number, rows in enumerate(sizes)], workers=workers, row_bytes=row_bytes, marks={})
    )
    for number, rows in enumerate(sizes):
        own = [(split.start, split.stop) for split in splits if split.source == number]
        assert all(start < stop for start, stop in own)
        assert [row for start, stop in own for row in (start, stop)][1:-1] == [
            row for _, border in own[:-1] for row in (border, border)
        ]
        assert (own[0][0], own[-1][1]) == (0, rows) if rows else own == []
    worth = max(1, min(MIN_SPLIT_ROWS, 32_000_000 // max(1, row_bytes)))
    wanted = SPLITS_PER_WORKER * workers
    assert len(splits) >= min(wanted, sum(sizes) // worth)
    assert len(splits) <= max(2 * wanted, sum(sizes) // worth) + len(sizes)


@pytest.mark.parametrize(
    ("rows", "workers", "row_bytes"), [(200_000, 1, 100), (2561, 4, 1_000_000), (10_000_001, 8, 0), (31, 1, 10**9)]
)
def test_a_large_source_is_cut_for_every_worker(rows, workers, row_bytes):
    """One file alone gives each worker its twenty splits, of nearly equal size; a few large rows are enough."""
    splits = list(cut([source(0, rows)], workers=workers, row_bytes=row_bytes, marks={}))
    assert len(splits) >= SPLITS_PER_WORKER * workers
    sizes = {split.stop - split.start for split in splits}
    assert max(sizes) - min(sizes) <= 1


def test_a_small_source_is_one_split():
    """150 rows are not worth cutting."""
    assert list(cut([source(3, 150)], workers=8, row_bytes=40, marks={})) == [Split(3, 0, 150)]


@given(st.lists(st.integers(0, 12), min_size=1, max_size=2), st.lists(receipts, max_size=8), st.integers(1, 4))
def test_the_work_that_remains_and_the_receipts_that_count_are_the_plan(sizes, found, width):
    """Resume is subtraction: work and receipts together cover each planned row exactly once, within the splits."""
    sources = {number: source(number, rows) for number, rows in enumerate(sizes)}
    splits = [Split(n, at, min(at + width, one.rows)) for n, one in sources.items() for at in range(0, one.rows, width)]
    counted = counting(found, dict.fromkeys(sources, "v1"))
    done = set().union(*map(rows_of, counted))
    work = remaining(sources, splits, counted)
    rows = [(one.source.number, row) for one in work for row in range(one.start, one.stop)]
    assert sorted(rows) == [(n, row) for n, one in sources.items() for row in range(one.rows) if (n, row) not in done]
    assert all(one.source is sources[one.source.number] for one in work)
    assert all(one.stop - one.start <= width for one in work)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 40_000), st.booleans()), max_size=40))
def test_merged_work_is_the_same_rows_in_the_same_order(pieces):
    """Neighbours are joined only where both are large, and never to more than a million rows."""
    work, position = [], 0
    for number, rows, gap in pieces:
        position += 5 if gap else 0
        work.append(Work(Source(number, "u", "p", 1, "v", 10**9), position, position + rows))
        position += rows

    joined = merged(work)

    def rows_of(works):
        edges = []
        for one in works:
            if edges and edges[-1][0] == one.source.number and edges[-1][2] == one.start:
                edges[-1] = (one.source.number, edges[-1][1], one.stop)
            else:
                edges.append((one.source.number, one.start, one.stop))
        return edges

    assert rows_of(joined) == rows_of(work)
    assert all(one in work or one.stop - one.start >= 2 * LARGE_ROWS for one in joined)
    assert all(one.stop - one.start <= MERGED_ROWS for one in joined)


def test_the_splits_of_a_million_rows_are_one_piece_of_work_for_one_worker():
    """They are twenty for many."""
    source = Source(0, "u", "p", 1, "v", 1_000_000)
    splits = list(cut([source], workers=1, row_bytes=32, marks={}))
    todo = remaining({0: source}, splits, [])

    assert len(todo) == 20
    assert merged(todo) == [Work(source, 0, 1_000_000)]
