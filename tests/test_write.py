"""Outcomes -> objects -> receipt: when an object closes, and that nothing counts before its receipt is there."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jobs
from pipeline import write
from pipeline.converse import Dead, Scored
from pipeline.encode import RowEncoder
from pipeline.errors import StorageFailed
from pipeline.ids import row_namer
from pipeline.ledger import read_receipts
from pipeline.modelarts import ModelArts
from pipeline.pack import Block, Limits, pack
from pipeline.plan import Range, counting, subtract
from pipeline.status import Action, Fault
from pipeline.storage import Store
from pipeline.write import OBJECT_SECONDS, RangeWriter
from schemas.job import ModelArtsOptions
from schemas.plan import Source, Work
from schemas.tables import Attempt

ROWS = 40
SOURCE = Source(3, "file:///data/a.parquet", "a.parquet", 1, "v1", ROWS)
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


def writer(store, clock):
    rows = Range(0, ROWS)
    return RangeWriter(store, Work(SOURCE, *rows), rows, kept(), run="r1", clock=clock, now=clock.now)


def chunks(rows, refused=()):
    """Return 40 flowers in chunks of so many sent rows."""
    table = jobs.flowers(ROWS).to_batches()[0]
    encoded = RowEncoder(table.schema, jobs.SEND, rename={}).encode(table)
    encoded = encoded._replace(refused=dict.fromkeys(refused, "n is 'x', which is no int64"))
    block = Block(0, encoded, row_namer("iris", SOURCE.path)(0, ROWS), table.select(["id"]))
    return list(pack([block], Limits(12_000_000, rows), ModelArts(ModelArtsOptions()).frame))


def scored(chunk, attempts=1):
    answers = pa.array([json.dumps({"row": int(row)}) for row in chunk.source_rows], pa.string())
    return Scored(chunk, answers, attempts, 0.25, START, **({"received": 10} if "received" in Scored._fields else {}))


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
    assert found == sorted(read_receipts(store), key=lambda one: one.start)
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
    assert read_receipts(store) == []
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
    assert read_receipts(store) == []


def test_two_attempts_at_one_range_never_share_a_name(store, clock):
    """Both are there, and every reader counts the same one of them."""
    chunk = chunks(ROWS)[0]
    for _ in range(2):
        writing = writer(store, clock)
        writing.add(chunk, [scored(chunk)])
        writing.close()
    found = read_receipts(store)
    assert len({one.attempt for one in found}) == 2
    assert counting(found, {3: "v1"}) == [min(found, key=lambda one: one.attempt)]


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
