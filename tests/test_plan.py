from __future__ import annotations

from itertools import chain, pairwise
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from pipeline import plan
from pipeline.pieces import Mark
from pipeline.plan import (
    LARGE_ROWS,
    MERGED_ROWS,
    MIN_SPLIT_ROWS,
    MOST_ELEMENTS,
    SPLITS_PER_WORKER,
    Changed,
    Range,
    counting,
    cut,
    grouped,
    merged,
    remaining,
    shares,
    subtract,
    tally,
    weight,
)
from schemas.plan import NO_END, Redo, Source, Split, Work
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


@given(st.lists(st.integers(0, 50_000), max_size=40), st.integers(1, 9))
def test_every_worker_has_about_as_many_rows(sizes, workers):
    """All work once and in order, no worker without any; none has more than its part by more than one piece."""
    work = [Work(source(number, rows), 0, rows) for number, rows in enumerate(sizes)]
    found = shares(work, workers)
    assert list(chain.from_iterable(found)) == work
    assert all(found)
    part, piece = sum(map(weight, work)) / workers, max(map(weight, work), default=0)
    assert all(sum(map(weight, share)) <= part + piece for share in found)
    assert len(found) <= workers
    if len(work) >= workers and len(set(sizes)) == 1:
        assert len(found) == workers


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


# Sources that are entered at marks


@st.composite
def marked(draw):
    """Return a number of rows and marks in them; between two marks there may be no row, as in blank lines."""
    steps = draw(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 1000)), max_size=15))
    marks = [Mark(0, 0)]
    for rows, size in steps:
        marks.append(Mark(marks[-1].row + rows, marks[-1].offset + size))
    return max(1, marks[-1].row + draw(st.integers(0, 40))), tuple(marks)


@given(marked(), st.integers(1, 5), st.integers(1, 50))
def test_splits_begin_at_marks_where_there_are_any(found, workers, worth):
    """Every row once and in order, each split from the last mark before its first row on; as even as marks allow."""
    rows, marks = found
    with mock.patch.object(plan, "MIN_SPLIT_ROWS", worth):
        splits = list(cut([source(7, rows)], workers=workers, row_bytes=1, marks={7: marks}))
        free = list(cut([source(7, rows)], workers=workers, row_bytes=1, marks={}))
    assert list(chain(*(range(one.start, one.stop) for one in splits))) == list(range(rows))
    offsets = {mark.row: mark.offset for mark in marks}  # of marks at one row, the last is nearest to it
    assert all(one.start < one.stop and one.offset == offsets[one.start] for one in splits)
    asked = [max(mark.row for mark in marks if mark.row <= one.start) for one in free]
    assert [one.start for one in splits] == sorted(set(asked))


def test_a_source_whose_rows_are_not_known_is_one_split():
    """Nobody can enter it in the middle; it counts for nothing when the others are cut."""
    unknown, known = Source(0, "u", "p", 10**9, "v1", None), source(1, 40_000)
    splits = list(cut([unknown, known], workers=1, row_bytes=1, marks={}))
    assert splits[0] == Split(0, 0, None)
    assert len(splits) == 1 + 4


# Rows that are scored again, and ends that only reading can tell

ROWS = 8
"""Rows of each source of these examples, whether its plan knows it or not."""

spans = st.tuples(st.integers(0, ROWS), st.integers(0, ROWS)).filter(lambda pair: pair[0] < pair[1])


@st.composite
def ledgers(draw):
    """Return sources, receipts and orders: a source's last receipt tells its end, be it one of no rows."""
    sources = {number: source(number, draw(st.sampled_from([ROWS, None]))) for number in range(2)}
    found = []
    for _ in range(draw(st.integers(0, 10))):
        number = draw(st.integers(0, 1))
        rows = draw(spans | st.just((ROWS, ROWS)))
        one = receipt(number, rows, draw(st.integers(0, 2)), draw(st.sampled_from("ab")))
        last = rows[1] == ROWS and (rows[0] == ROWS or draw(st.booleans()))
        found.append(structs.replace(one, end=last, dead=one.scored // 2, scored=one.scored - one.scored // 2))
    orders = []
    for _ in range(draw(st.integers(0, 3))):
        start, stop = draw(spans | st.just((0, NO_END)))
        orders.append(Redo(draw(st.integers(0, 1)), draw(st.integers(1, 3)), start, stop))
    return sources, found, orders


def outdated(one, orders):
    """The contract: no receipt of an earlier generation counts for rows that must be scored again."""
    rows = range(one.start, one.stop)
    return any(
        order.source == one.source
        and one.generation < order.generation
        and (order.stop == NO_END or any(order.start <= row < order.stop for row in rows))
        for order in orders
    )


@given(ledgers())
def test_receipts_older_than_an_order_do_not_count(ledger):
    """Those that count are those that would count, were the outdated ones not there."""
    sources, found, orders = ledger
    versions = dict.fromkeys(sources, "v1")
    fresh = [one for one in found if not outdated(one, orders)]
    assert counting(found, versions, orders) == counting(fresh, versions)
    filled = [one for one in fresh if one.start < one.stop]
    assert {name(one) for one in counting(filled, versions)} == slow_counting(filled, versions)


@given(ledgers(), st.integers(1, ROWS))
def test_what_remains_of_known_and_unknown_rows(ledger, width):
    """Each row that no counting receipt covers, once, as a newer generation; without an end, all there may be."""
    sources, found, orders = ledger
    splits = list(
        chain(
            *(
                [Split(number, 0, None)]
                if one.rows is None
                else [Split(number, at, min(at + width, ROWS), 100 + at) for at in range(0, ROWS, width)]
                for number, one in sources.items()
            )
        )
    )
    counted = counting(found, dict.fromkeys(sources, "v1"), orders)
    work = remaining(sources, splits, counted, orders)
    done = set().union(*map(rows_of, counted))
    ended = {number for number, one in sources.items() if one.rows} | {one.source for one in counted if one.end}
    left = [(one.source.number, row) for one in work for row in range(one.start, min(one.stop, ROWS))]
    assert left == [(number, row) for number in sources for row in range(ROWS) if (number, row) not in done]
    assert [one.source.number for one in work if one.stop > ROWS] == [one for one in sources if one not in ended]
    assert all(one.stop in range(ROWS + 1) or one.stop == NO_END for one in work)
    for one in work:
        newest = max((order.generation for order in orders if order.source == one.source.number), default=0)
        assert one.generation == newest
        [split] = [
            split
            for split in splits
            if split.source == one.source.number and split.start <= one.start < (split.stop or NO_END)
        ]
        assert one.mark == (split.start, split.offset)
        assert one.stop <= (split.stop or NO_END)


@given(ledgers())
def test_a_tally_counts_rows_that_are_known(ledger):
    """Planned are the rows of sources that are known to their end, and of the others those that are done."""
    sources, found, orders = ledger
    counted = counting(found, dict.fromkeys(sources, "v1"), orders)
    ended = {number for number, one in sources.items() if one.rows} | {one.source for one in counted if one.end}
    done = [row for one in counted for row in rows_of(one)]
    counts = tally(sources.values(), counted)
    assert counts.planned == sum(ROWS if n in ended else sum(row[0] == n for row in done) for n in sources)
    assert counts.unread == len(sources) - len(ended)
    assert counts.scored + counts.dead == len(done)
    assert counts.left == sum(ROWS - sum(row[0] == number for row in done) for number in ended)


def test_an_order_over_a_whole_source_outdates_its_end_too():
    """A receipt of no rows tells of the end of the file that was; the next one may have more rows."""
    unknown = Source(0, "u", "p", 1, "v1", None)
    end = structs.replace(receipt(0, (0, 0)), end=True)
    assert remaining({0: unknown}, [Split(0, 0, None)], [end]) == []
    assert counting([end], {0: "v1"}, [Redo(0, 1)]) == []


def test_a_change_of_keys_is_one_of_everything_if_it_is_to_be_scored_again():
    """Neither without a word about it, nor where what is done is kept, nor where no key changed."""
    keys = ("service.version: was null, is 2",)
    assert Changed("rescore", keys).everything
    assert not any(one.everything for one in (Changed(None, keys), Changed("keep", keys), Changed("rescore")))


# Work for engines

works = st.lists(
    st.builds(
        lambda size, start, rows: Work(
            Source(0, "u", "p", size, "v", None if rows is None else start + rows),
            start,
            NO_END if rows is None else start + rows,
        ),
        st.integers(0, 10**7),
        st.integers(0, 10),
        st.none() | st.integers(1, 10**6),
    ),
    max_size=60,
)


@given(works, st.integers(1, 20))
def test_groups_are_all_the_work_in_order_and_not_many(work, most):
    """Nothing lost or doubled, none empty, about as many as engines want; what is few stays apart."""
    with mock.patch.object(plan, "MOST_ELEMENTS", most):
        groups = grouped(work)
    assert list(chain(*groups)) == work
    assert all(groups)
    assert len(groups) <= most + 1
    if len(work) <= most:
        assert groups == [(one,) for one in work]
    else:
        share = sum(map(weight, work)) / most
        assert all(sum(map(weight, group[:-1])) < share for group in groups)


def test_many_small_files_are_a_thousand_elements():
    """Each of about as many rows."""
    work = [Work(source(number, 3), 0, 3) for number in range(10_000)]
    groups = grouped(work)
    assert len(groups) == MOST_ELEMENTS
    assert {len(group) for group in groups} == {10}


@pytest.mark.parametrize(
    ("size", "start", "stop", "rows"), [(1, 5, 9, 4), (100_000, 0, NO_END, 1_000), (0, 0, NO_END, 1), (9, 3, NO_END, 1)]
)
def test_work_weighs_its_rows(size, start, stop, rows):
    """They are guessed from the file's size where nobody knows them, and never none."""
    assert weight(Work(Source(0, "u", "p", size, "v", None), start, stop)) == rows
