"""Outcomes -> objects -> receipt: when an object closes, and that nothing counts before its receipt is there."""

from __future__ import annotations

import csv
import json
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jobs
from pipeline import write
from pipeline.converse import Dead, Scored
from pipeline.encode import RowEncoder
from pipeline.errors import StorageFailed
from pipeline.forms import FORMS
from pipeline.ids import row_namer
from pipeline.ledger import Receipts
from pipeline.modelarts import ModelArts
from pipeline.pack import Block, Limits, pack
from pipeline.plan import Range, counting, subtract
from pipeline.status import Action, Fault
from pipeline.storage import Store
from pipeline.write import OBJECT_SECONDS, RangeWriter
from schemas.options import ModelArtsOptions
from schemas.plan import NO_END, Source, Work
from schemas.tables import Attempt

ROWS = 40
SOURCE = Source(3, "file:///data/a.parquet", "a.parquet", 1, "v1", ROWS)
OPEN = Source(3, "file:///data/a.csv", "a.csv", 1, "v1", None)
LISTING = Source(3, "plan/000000.parquet", "", 1, "v1", ROWS, listing=True)
MANIFEST = Source(3, "file:///data/m.txt", "m.txt", 1, "v1", ROWS)
URIS = pa.array([f"file:///images/{row}.jpg" for row in range(ROWS)])
START = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


class Clock:
    """Seconds that pass only when they are told to."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds

    def now(self):
        return START + timedelta(seconds=self.seconds)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "out"))


def kept():
    return pa.schema([jobs.flowers(1).schema.field("id")])


def writer(store, clock, source=SOURCE, **form):
    rows = Range(0, ROWS if source.rows is not None else NO_END)
    return RangeWriter(store, Work(source, *rows), rows, kept(), run="r1", clock=clock, now=clock.now, **form)


def chunks(rows, refused=(), uris=None):
    """Return 40 flowers in chunks of so many sent rows."""
    table = jobs.flowers(ROWS).to_batches()[0]
    encoded = RowEncoder(table.schema, jobs.SEND, rename={}).encode(table)
    encoded = encoded._replace(refused=dict.fromkeys(refused, "n is 'x', which is no int64"))
    block = Block(0, encoded, row_namer("iris", SOURCE.path)(0, ROWS), table.select(["id"]), {}, uris)
    return list(pack([block], Limits(12_000_000, rows), ModelArts(ModelArtsOptions()).frame))


def scored(chunk, attempts=1):
    answers = pa.array([json.dumps({"row": int(row)}) for row in chunk.source_rows], pa.string())
    return Scored(chunk, answers, attempts, 0.25, START, received=10)


def dead(chunk):
    attempt = Attempt(time=START.isoformat(), action="reject", status=400, code="MR.0105")
    return Dead(chunk, "rejected", Fault(Action.REJECT, 400, "MR.0105", "Recognition failed"), (attempt,))


def ranges(receipts):
    return [(one.start, one.stop) for one in receipts]


def test_an_object_closes_about_every_minute(store, clock, tmp_path):
    """One range becomes several objects, each with its receipt, that cover it without gap or overlap."""
    writing, found = writer(store, clock), []
    for chunk in chunks(4):
        clock.seconds += 25.0
        found.append(writing.add(chunk, [scored(chunk)]))
    found = [*filter(None, found), writing.close()]
    assert ranges(found) == [(0, 16), (16, 32), (32, 40)]
    assert [one.end for one in found] == [False, False, True]
    assert [one.seconds for one in found] == [75.0, 75.0, 25.0]
    assert found == sorted(Receipts(store).all(), key=lambda one: one.start)
    assert jobs.results(tmp_path / "out")["source_row"].to_pylist() == list(range(ROWS))
    assert jobs.results(tmp_path / "out")["prediction"][17].as_py() == '{"row": 17}'


def test_a_minute_is_not_over_before_it_is_over(store, clock):
    """At OBJECT_SECONDS sharp the object stays open: the bound is for more."""
    first, second, *_ = chunks(4)
    writing = writer(store, clock)
    assert writing.add(first, [scored(first)]) is None
    clock.seconds = OBJECT_SECONDS
    assert writing.add(second, [scored(second)]) is None
    writing.abandon()


def test_an_object_closes_when_it_is_large(store, clock, monkeypatch):
    """Bytes end an object too, whatever the time."""
    monkeypatch.setattr(write, "OBJECT_BYTES", 0)
    monkeypatch.setattr(write, "_GROUP_ROWS", 4)
    writing = writer(store, clock)
    found = [writing.add(chunk, [scored(chunk)]) for chunk in chunks(4)]
    assert len([one for one in found if one]) > 1
    last = writing.close()
    assert subtract(Range(0, ROWS), ranges([*filter(None, found), *filter(None, [last])])) == []


def test_nothing_is_visible_before_the_receipt(store, clock, tmp_path):
    """While an object is open there is a hidden draft at most; given up, nothing is left of it."""
    writing = writer(store, clock)
    chunk = chunks(ROWS)[0]
    writing.add(chunk, [scored(chunk)])
    assert Receipts(store).all() == []
    assert all("/.part-" in f"/{name}" for name in jobs.files(tmp_path / "out"))
    writing.abandon()
    assert jobs.files(tmp_path / "out") == []


def test_the_receipt_is_written_last(store, clock, tmp_path, monkeypatch):
    """A crash between object and receipt leaves an object that no receipt names, and so nothing that counts."""

    def crash(*_):
        raise StorageFailed("the disk went away")

    writing = writer(store, clock)
    chunk = chunks(ROWS)[0]
    writing.add(chunk, [scored(chunk)])
    monkeypatch.setattr(store, "write", crash)
    with pytest.raises(StorageFailed):
        writing.close()
    writing.abandon()
    left = jobs.files(tmp_path / "out")
    assert len(left) == 1
    assert left[0].startswith("results/000003-000000000000-000000000040-0-")


def test_results_and_dead_letters_of_one_request_go_to_one_receipt(store, clock, tmp_path):
    """Halves that differ, and rows that were refused unsent: each row once, with one receipt for all."""
    [chunk] = chunks(ROWS, refused=[7])
    frame = ModelArts(ModelArtsOptions()).frame
    good, bad = chunk.part(0, 30, frame), chunk.part(30, 39, frame)
    writing = writer(store, clock)
    writing.add(chunk, [scored(good, attempts=3), dead(bad)])
    receipt = writing.close()
    assert (receipt.scored, receipt.dead, receipt.requests) == (30, 10, 4)
    rows = jobs.results(tmp_path / "out")["source_row"].to_pylist()
    gone = jobs.letters(tmp_path / "out")
    assert sorted(rows + [one["source_row"] for one in gone]) == list(range(ROWS))
    assert {one["source_row"]: one["kind"] for one in gone} == {
        7: "unreadable",
        **dict.fromkeys(range(31, 40), "rejected"),
    }
    assert {one["request_uuid"] for one in gone} == {None, bad.uuid}
    assert jobs.results(tmp_path / "out")["request_row"].to_pylist() == list(range(30))
    assert gone[1]["history"] == [
        {"time": "2026-11-21T12:00:00+00:00", "action": "reject", "status": 400, "code": "MR.0105"}
    ]
    assert gone[1]["keep"] == {"id": "iris-00031"}


def test_only_dead_letters_make_no_results_object(store, clock, tmp_path):
    """A folder has an object only where there is something in it."""
    writing = writer(store, clock)
    for chunk in chunks(20):
        writing.add(chunk, [dead(chunk)])
    receipt = writing.close()
    assert (receipt.scored, receipt.dead, receipt.results) == (0, ROWS, None)
    assert not (tmp_path / "out" / "results").exists()
    assert len(jobs.letters(tmp_path / "out")) == ROWS


def test_rows_without_an_outcome_stay_undone(store, clock):
    """Where a request was broken off, what came before it is closed, and what comes after it is a range of its own."""
    first, second, third, *_ = chunks(4)
    writing = writer(store, clock)
    writing.add(first, [scored(first)])
    skipped = writing.skip(second.stop)
    writing.add(third, [scored(third)])
    assert ranges([skipped, writing.close()]) == [(0, 4), (8, 12)]


def test_an_empty_range_has_no_receipt(store, clock):
    """Where nothing was added there is nothing to close."""
    assert writer(store, clock).close() is None
    assert Receipts(store).all() == []


def test_two_attempts_at_one_range_never_share_a_name(store, clock):
    """Both are there, and every reader counts the same one of them."""
    chunk = chunks(ROWS)[0]
    for _ in range(2):
        writing = writer(store, clock)
        writing.add(chunk, [scored(chunk)])
        writing.close()
    found = Receipts(store).all()
    assert len({one.attempt for one in found}) == 2
    assert counting(found, {3: "v1"}) == [min(found, key=lambda one: one.attempt)]


@pytest.mark.parametrize("form", FORMS)
def test_every_object_is_whole_in_its_form(store, clock, tmp_path, form):
    """Each part can be read alone, whatever was written before it; dead letters are JSONL in every form."""
    writing = writer(store, clock, form=form)
    for chunk in chunks(10):
        clock.seconds += 40.0
        writing.add(chunk, [dead(chunk) if chunk.first == 20 else scored(chunk)])
    writing.close()
    paths = sorted((tmp_path / "out" / "results").iterdir())
    assert [path.suffix for path in paths] == [f".{form}"] * 2
    assert [path.suffix for path in (tmp_path / "out" / "errors").iterdir()] == [".jsonl"]
    found = [row for path in paths for row in rows_in(path)]
    assert [int(row["source_row"]) for row in found] == [*range(20), *range(30, 40)]
    assert [row["prediction"] for row in found] == [f'{{"row": {row["source_row"]}}}' for row in found]
    assert {row["id"] for row in found} == {f"iris-{int(row['source_row']):05d}" for row in found}


def rows_in(path):
    """Return the rows of a result object, as its form has them."""
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file)) if path.suffix == ".csv" else [json.loads(line) for line in file]


def test_a_writer_counts_what_it_was_given(store, clock):
    """Rows scored and dead so far, over all of its objects, closed or not: what a progress bar shows."""
    first, second, *_ = chunks(16, refused=[3, 20])
    writing = writer(store, clock)
    frame = ModelArts(ModelArtsOptions()).frame
    writing.add(first, [scored(first.part(0, 10, frame)), dead(first.part(10, 16, frame))])
    assert (writing.scored, writing.dead) == (10, 7)
    writing.close()
    writing.add(second, [scored(second)])
    assert (writing.scored, writing.dead) == (26, 8)
    writing.abandon()


def test_a_source_of_unknown_rows_ends_where_its_reader_says_so(store, clock):
    """No receipt marks its end but the one that is told to."""
    writing = writer(store, clock, OPEN)
    first, second, third, *_ = chunks(10)
    writing.add(first, [scored(first)])
    middle = writing.close()
    clock.seconds = 100.0
    writing.add(second, [scored(second)])
    clock.seconds += OBJECT_SECONDS + 1
    by_time = writing.add(third, [scored(third)])
    writing.add(chunks(10)[3], [scored(chunks(10)[3])])
    last = writing.close(end=True)
    assert ranges([middle, by_time, last]) == [(0, 10), (10, 30), (30, 40)]
    assert [one.end for one in (middle, by_time, last)] == [False, False, True]


@pytest.mark.parametrize("rows", [0, 10])
def test_a_source_of_unknown_rows_may_end_with_a_receipt_of_none(store, clock, tmp_path, rows):
    """An empty file, or one whose last object was just closed: its end is written down all the same, once."""
    writing = writer(store, clock, OPEN)
    for chunk in chunks(10)[: rows // 10]:
        writing.add(chunk, [scored(chunk)])
        writing.close()
    end = writing.close(end=True)
    assert (end.start, end.stop, end.end, end.scored, end.dead) == (rows, rows, True, 0, 0)
    assert (end.results, end.errors, end.requests, end.seconds) == (None, None, 0, 0.0)
    assert end in Receipts(store).all()
    assert len(Receipts(store).all()) == rows // 10 + 1
    assert len(counting(Receipts(store).all(), {3: "v1"})) == rows // 10 + 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == (
        ["receipts", "results"] if rows else ["receipts"]
    )


def test_a_source_of_known_rows_ends_at_its_last_row_and_nowhere_else(store, clock):
    """Whatever the writer is told: its rows were counted when it was planned."""
    first, *_, last = chunks(10)
    writing = writer(store, clock)
    writing.add(first, [scored(first)])
    assert writing.close(end=True).end is False
    assert writing.close(end=True) is None
    writing.skip(30)
    writing.add(last, [scored(last)])
    assert writing.close().end is True


def test_rows_that_are_files_speak_of_their_file(store, clock, tmp_path):
    """`source` is the file and `source_row` 0, in results and dead letters; a dead letter has the URI, never bytes."""
    [chunk] = chunks(ROWS, refused=[7], uris=URIS)
    frame = ModelArts(ModelArtsOptions()).frame
    writing = writer(store, clock, LISTING)
    writing.add(chunk, [scored(chunk.part(0, 30, frame)), dead(chunk.part(30, 39, frame))])
    receipt = writing.close()
    assert (receipt.start, receipt.stop) == (0, ROWS)
    found, gone = jobs.results(tmp_path / "out"), jobs.letters(tmp_path / "out")
    assert set(found["source_row"].to_pylist()) == {0} == {one["source_row"] for one in gone}
    assert found["source"].to_pylist() == [uri for row, uri in enumerate(URIS.to_pylist()) if row < 31 and row != 7]
    assert [one["source"] for one in gone] == [one["row"] for one in gone]
    assert [one["row"] for one in gone] == [URIS[row].as_py() for row in (7, *range(31, 40))]


def test_rows_of_a_manifest_are_its_lines(store, clock, tmp_path):
    """`source` is the manifest and `source_row` the line, but a dead letter shows the line's URI, never bytes."""
    [chunk] = chunks(ROWS, refused=[7], uris=URIS)
    frame = ModelArts(ModelArtsOptions()).frame
    writing = writer(store, clock, MANIFEST)
    writing.add(chunk, [scored(chunk.part(0, 30, frame)), dead(chunk.part(30, 39, frame))])
    writing.close()
    found, gone = jobs.results(tmp_path / "out"), jobs.letters(tmp_path / "out")
    assert found["source_row"].to_pylist() == [row for row in range(31) if row != 7]
    assert {*found["source"].to_pylist(), *(one["source"] for one in gone)} == {MANIFEST.uri}
    assert {one["source_row"]: one["row"] for one in gone} == {row: URIS[row].as_py() for row in (7, *range(31, 40))}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["scored", "dead", "skip"]), st.floats(0, 90)), min_size=10, max_size=10))
def test_receipts_cover_what_was_added_and_nothing_else(tmp_path_factory, course):
    """However long each request takes and however it ends: no row twice, none that was skipped."""
    clock, store = Clock(), Store(str(tmp_path_factory.mktemp("out")))
    writing, found, done = writer(store, clock), [], set()
    for chunk, (end, seconds) in zip(chunks(4), course, strict=True):
        clock.seconds += seconds
        if end == "skip":
            found.append(writing.skip(chunk.stop))
            continue
        found.append(writing.add(chunk, [scored(chunk) if end == "scored" else dead(chunk)]))
        done |= set(range(chunk.first, chunk.stop))
    found = [one for one in [*found, writing.close()] if one]
    covered = [row for one in found for row in range(one.start, one.stop)]
    assert sorted(covered) == sorted(done)
    assert sum(one.scored + one.dead for one in found) == len(done)
