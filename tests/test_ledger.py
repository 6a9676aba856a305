"""Plans and receipts as files: what is read, how often, how old a listing may be, and what counts as there."""

from __future__ import annotations

import json
import threading

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from pipeline import storage
from pipeline.errors import Held, Incomplete, JobError, Refused, StorageFailed
from pipeline.ledger import NewPlan, Planned, Receipts, objects, read_plans, read_stop, write_plan, write_stop
from pipeline.listing import LISTING
from pipeline.read_files import read_listing
from pipeline.storage import Store
from schemas.plan import NO_END, Plan, Redo, Source, Split, Work
from schemas.receipt import Receipt, StoredObject, object_name

SECOND_LISTING = 20
"""A listing is used for so many times as long as it took."""


def source(number, **keys):
    return Source(number, f"file:///in/{number}", str(number), 1, "v1", 100, **keys)


def receipt(number, start, stop, generation=0, attempt="abc123"):
    name = object_name(number, start, stop, generation, attempt)
    return Receipt(
        source=number,
        start=start,
        stop=stop,
        generation=generation,
        attempt=attempt,
        version="v1",
        scored=stop - start,
        dead=0,
        run="r1",
        results=StoredObject(f"results/{name}.parquet", 1, "") if stop > start else None,
        errors=StoredObject(f"errors/{name}.jsonl", 1, "") if generation == 1 else None,
        end=start == stop,
    )


class Seen(Store):
    """A store that notes what is read, and whose listings take `seconds` of its own clock."""

    def __init__(self, folder):
        super().__init__(str(folder))
        self.read_names, self.listings, self.now, self.seconds = [], 0, 1000.0, 0.0

    def read(self, name):
        self.read_names.append(name.removeprefix("receipts/"))
        return super().read(name)

    def names(self, folder):
        self.listings += folder == "receipts"
        self.now += self.seconds
        return super().names(folder)

    def clock(self):
        return self.now

    def put(self, *receipts):
        """Write receipts, and before them the objects that they name."""
        for one in receipts:
            for name in objects(one):
                self.write(name, b"x")
            self.write(f"receipts/{one.name}.json", msgspec.json.encode(one))


@pytest.fixture
def store(tmp_path):
    return Seen(tmp_path)


def of(receipts, number, start, stop):
    return [(one.start, one.stop) for one in receipts.of(Work(source(number), start, stop))]


# Receipts


def test_only_receipts_that_touch_the_work_are_opened(store):
    """Their names tell, by source and range; one of no rows at its beginning may tell that its source ends there."""
    store.put(*(receipt(number, start, start + 10) for number in range(3) for start in range(0, 50, 10)))
    store.put(receipt(1, 50, 50))
    receipts = Receipts(store, store.clock)
    assert of(receipts, 1, 20, 35) == [(10, 20), (20, 30), (30, 40)]
    assert [name[:32] for name in store.read_names] == [
        f"000001-{start:012d}-{start + 10:012d}" for start in (10, 20, 30)
    ]
    assert of(receipts, 1, 45, NO_END) == [(40, 50), (50, 50)]
    assert of(receipts, 7, 0, NO_END) == []


@given(
    st.sets(st.tuples(st.integers(0, 2), st.integers(0, 9), st.integers(0, 9)).filter(lambda one: one[1] <= one[2])),
    st.integers(0, 2),
    st.tuples(st.integers(0, 9), st.integers(1, 10) | st.just(NO_END)),
)
def test_whatever_overlaps_the_work_is_found(tmp_path_factory, ranges, number, rows):
    """Whichever ranges there are: all with a row of the work, and no source's but its own."""
    store = Seen(tmp_path_factory.mktemp("out"))
    store.put(*(receipt(*one) for one in ranges))
    found = of(Receipts(store, store.clock), number, *rows)
    own = {(start, stop) for one, start, stop in ranges if one == number}
    touching = {one for one in own if set(range(*one)) & set(range(rows[0], min(rows[1], 10)))}
    assert touching <= set(found) <= own
    assert len(found) == len(set(found)) == len(store.read_names)


def test_every_receipt_is_read_once(store):
    """However often all of them are asked for; new ones are noticed, and those that went are forgotten."""
    first, second = receipt(0, 0, 10), receipt(0, 10, 20)
    store.put(first)
    receipts = Receipts(store, store.clock)
    assert receipts.all() == receipts.all() == [first]
    store.put(second)
    assert receipts.all() == receipts.valid() == [first, second]
    assert store.read_names == [f"{first.name}.json", f"{second.name}.json"]
    store.delete(f"receipts/{first.name}.json")
    assert receipts.all() == [second]
    assert len(store.read_names) == 2


def test_a_receipt_whose_object_is_missing_is_not_valid(store):
    """Results or dead letters: a late attempt may write its receipt after its objects were swept."""
    whole, hollow, half, empty = receipt(0, 0, 10), receipt(0, 10, 20), receipt(0, 20, 30, 1), receipt(0, 30, 30)
    store.put(whole, hollow, half, empty)
    store.delete(hollow.results.name)
    store.delete(half.errors.name)
    receipts = Receipts(store, store.clock)
    assert receipts.all() == [whole, hollow, half, empty]
    assert receipts.valid() == [whole, empty]
    assert receipts.of(Work(source(0), 0, NO_END)) == [whole, empty]


def test_a_listing_is_used_for_a_time_that_its_own_length_decides(store):
    """Twenty times as long as it took: a worker with thousands of splits does not list for each of them."""
    store.seconds = 2.0
    receipts = Receipts(store, store.clock)
    assert of(receipts, 0, 0, 100) == []
    store.put(receipt(0, 0, 10))
    store.now += SECOND_LISTING * 2.0 - 0.1
    assert of(receipts, 0, 0, 100) == []
    assert store.listings == 1
    store.now += 0.1
    assert of(receipts, 0, 0, 100) == [(0, 10)]
    assert store.listings == 2


def test_what_this_process_has_written_is_known_without_a_listing(store):
    """A bundle that a runner gives to the same worker twice does not wait for a listing to grow old."""
    store.seconds = 5.0
    receipts = Receipts(store, store.clock)
    assert of(receipts, 0, 0, 100) == []
    for one in (receipt(0, 10, 20), receipt(0, 0, 10), receipt(1, 0, 10)):
        store.put(one)
        receipts.add(one)
    assert of(receipts, 0, 0, 100) == [(0, 10), (10, 20)]
    assert store.listings == 1


def test_an_old_listing_may_name_what_is_gone(store):
    """Another run has removed it meanwhile: then it is none."""
    one = receipt(0, 0, 10)
    store.put(one)
    store.seconds = 5.0
    receipts = Receipts(store, store.clock)
    of(receipts, 0, 50, 60)
    store.delete(f"receipts/{one.name}.json")
    assert of(receipts, 0, 0, 100) == []


def test_what_another_run_removes_while_all_are_read_is_none(store):
    """It is listed, and gone before it is opened."""
    first, second = receipt(0, 0, 10), receipt(0, 10, 20)
    store.put(first, second)

    class Sweeping(Seen):
        def names(self, folder):
            found = super().names(folder)
            self.delete(f"receipts/{first.name}.json")
            return found

    assert Receipts(Sweeping(store.local)).all() == [second]


@pytest.mark.parametrize("change", [{"from": 3}, {"to": 9}, {"generation": 1}, {"source": 7}, {"attempt": "def"}])
def test_a_receipt_that_is_not_what_its_name_says_is_told(store, change):
    """Renamed, or written into: one line with the file and the mend."""
    one = receipt(0, 0, 10)
    store.put(one)
    name = f"receipts/{one.name}.json"
    store.write(name, json.dumps({**json.loads(store.read(name)), **change}).encode())
    with pytest.raises(JobError, match=f"{name} is not as bulkscore wrote it: it speaks of .*; put it back, or delete"):
        Receipts(store).all()
    with pytest.raises(JobError, match="it speaks of"):
        of(Receipts(store), 0, 0, 10)


def test_a_receipt_that_goes_backwards_is_told(store):
    """Such rows nobody can count."""
    one = receipt(0, 9, 5)
    store.put(one)
    with pytest.raises(JobError, match="is not as bulkscore wrote it"):
        Receipts(store).all()


def test_many_splits_ask_at_once(store):
    """Threads share one listing, and each sees what is its own."""
    store.put(*(receipt(number, 0, 10) for number in range(20)))
    store.seconds = 1.0
    receipts = Receipts(store, store.clock)
    found = {}
    threads = [
        threading.Thread(target=lambda number=number: found.update({number: of(receipts, number, 0, 10)}))
        for number in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [(0, 10)] for number in range(20)}
    assert store.listings == 1


@pytest.mark.parametrize(
    "name", ["notes.json", "000000-1-2-0-a.json", ".part-0", "000000-000000000000-000000000001-0-a"]
)
def test_what_has_no_receipt_s_name_is_none(store, name):
    """Somebody's notes, and what a crash left."""
    store.write(f"receipts/{name}", b"not for us")
    receipts = Receipts(store, store.clock)
    assert receipts.all() == receipts.valid() == receipts.of(Work(source(0), 0, 10)) == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"source": 0}', b"\xff"])
def test_a_damaged_receipt_is_told_by_its_name(store, content):
    """One line, and what to do."""
    name = f"{receipt(0, 0, 10).name}.json"
    store.write(f"receipts/{name}", content)
    with pytest.raises(JobError, match=f"receipts/{name} is not as bulkscore wrote it: .*; put it back, or take a new"):
        Receipts(store, store.clock).all()


def test_sources_beyond_a_million_are_in_order(store):
    """Six digits are no limit."""
    store.put(receipt(1_000_000, 0, 10), receipt(100_000, 0, 10), receipt(999_999, 0, 10))
    receipts = Receipts(store, store.clock)
    assert [of(receipts, number, 0, 10) for number in (100_000, 999_999, 1_000_000)] == [[(0, 10)]] * 3
    assert len(receipts.all()) == 3


# Plans


def plan(*sources, splits=(), redo=(), columns=None):
    return Plan("r1", {"x": "double"} if columns is None else columns, sources, tuple(splits), tuple(redo))


def test_plans_are_read_as_they_were_written(store):
    """In their order; drafts and listings are no plans."""
    plans = [
        plan(source(0), splits=[Split(0, 0, 100)]),
        plan(source(1), splits=[Split(1, 0, None)], redo=[Redo(0, 1), Redo(0, 2, 3, 4)]),
    ]
    for number, one in enumerate(plans):
        write_plan(store, NewPlan(one), number)
    store.write("plan/.part-1", b"{")
    store.write("plan/000002-000007.parquet", b"")
    assert vars(read_plans(store)) == vars(Planned(plans))
    assert read_plans(store).count == 2
    assert json.loads(store.read("plan/000001.json"))["redo"][1] == {
        "source": 0,
        "generation": 2,
        "start": 3,
        "stop": 4,
    }


def test_an_output_without_plans_has_nothing(store):
    """Neither sources nor splits; the first source's number is 0."""
    planned = read_plans(store)
    assert (planned.count, planned.next_source, planned.sources, planned.splits, planned.columns) == (0, 0, {}, [], {})


def test_a_source_that_is_planned_again_takes_the_place_of_the_old_one():
    """Splits and all; the columns of the newest plan hold, unless it has none."""
    first = plan(source(0), source(1), splits=[Split(0, 0, 50), Split(0, 50, 100), Split(1, 0, 100)])
    again = structs.replace(source(0), version="v2", rows=7)
    planned = Planned([first, plan(again, splits=[Split(0, 0, 7)], redo=[Redo(0, 1)], columns={"y": "int64"})])
    assert planned.sources == {0: again, 1: source(1)}
    assert planned.splits == [Split(1, 0, 100), Split(0, 0, 7)]
    assert planned.versions == {0: "v2", 1: "v1"}
    assert (planned.next_source, planned.columns) == (2, {"y": "int64"})
    planned.add(plan(columns={}))
    assert planned.columns == {"y": "int64"}
    assert [(work.source.version, work.stop, work.generation) for work in planned.remaining([])] == [
        ("v1", 100, 0),
        ("v2", 7, 1),
    ]


def test_a_listing_is_there_before_its_plan(store, monkeypatch):
    """A plan that names a listing that is not there would be the end of its output."""
    rows = [{"uri": "file:///in/a", "path": "a", "size": 1, "version": "1-1"}]
    listing = pa.Table.from_pylist(rows, schema=LISTING)
    name = "plan/000000-000000.parquet"
    listed = Source(0, name, "", 1, "1-x", 1, listing=True)

    def crash(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write_new", crash)
        with pytest.raises(KeyboardInterrupt):
            write_plan(store, NewPlan(plan(listed), {name: listing}), 0)
    assert read_plans(store).count == 0
    assert read_listing(store, listed).to_pylist() == rows
    write_plan(store, NewPlan(plan(listed), {name: listing}), 0)
    assert read_plans(store).sources == {0: listed}


def test_a_plan_with_splits_of_no_source_is_told(store):
    """One line, and what to do."""
    store.write("plan/000000.json", msgspec.json.encode(plan(source(0), splits=[Split(0, 0, 9), Split(4, 0, 9)])))
    with pytest.raises(JobError, match="/plan is not as bulkscore wrote it: there is no source 4; put it back, or"):
        read_plans(store)


def by(run, number=0):
    """Return the plan of a run."""
    return structs.replace(plan(source(number), splits=[Split(number, 0, 100)]), run=run)


def remote(monkeypatch, folder):
    """Open a folder as a bucket, as on an object store: nothing is renamed there, and no name is taken once."""

    class Opened:
        @staticmethod
        def from_uri(_):
            return SubTreeFileSystem(str(folder), LocalFileSystem()), "bucket"

    monkeypatch.setattr(storage, "FileSystem", Opened)
    monkeypatch.setattr(storage, "_store", storage._store.__wrapped__)
    return Store("s3://bucket/out")


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_of_two_that_plan_at_once_the_second_stands_back(tmp_path, monkeypatch, kind):
    """Neither knew of the other: the first one's plan is as it was, and the second one leaves none."""
    store = Store(str(tmp_path)) if kind == "local" else remote(monkeypatch, tmp_path)
    write_plan(store, NewPlan(by("r1")), 0)
    before = {name: store.read(f"plan/{name}") for name in store.names("plan")}
    with pytest.raises(Held, match=r"another run has just planned .*; run again when it is over"):
        write_plan(store, NewPlan(by("r2", 5)), 0)
    assert {name: store.read(f"plan/{name}") for name in store.names("plan")} == before
    assert read_plans(store).sources == {0: source(0)}
    write_plan(store, NewPlan(by("r2", 5)), 1)
    assert list(read_plans(store).sources) == [0, 5]
    assert read_plans(store).count == 2


def test_two_that_see_each_other_s_plans_on_a_store_both_stand_back(tmp_path, monkeypatch):
    """Both have written before either looks: each keeps away from the other's, and from its own."""
    store = remote(monkeypatch, tmp_path)
    ready, ended = threading.Barrier(2, timeout=20), {}
    real = Store.names

    def both_there(self, folder):
        ready.wait()
        found = real(self, folder)
        ready.wait()
        return found

    def write(run):
        try:
            write_plan(store, NewPlan(by(run)), 0)
        except Held as held:
            ended[run] = held

    monkeypatch.setattr(Store, "names", both_there)
    threads = [threading.Thread(target=write, args=(run,)) for run in ("r1", "r2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(ended) == {"r1", "r2"}
    assert real(store, "plan") == []


def test_a_large_plan_is_written_without_spaces(store):
    """A small one is for people to read."""
    small, large = plan(source(0)), plan(*(source(number) for number in range(20_000)))
    write_plan(store, NewPlan(small), 0)
    write_plan(store, NewPlan(large), 1)
    assert b"\n" in store.read("plan/000000.json")
    assert b"\n" not in store.read("plan/000001.json")
    assert len(read_plans(store).sources) == 20_000


# Stop


@pytest.mark.parametrize("error", [JobError, Incomplete, Refused, Held, StorageFailed])
def test_why_a_run_stops_is_told_to_its_workers(store, error):
    """The same kind of error with the same words; a run of another name is not concerned."""
    assert read_stop(store, "r1") is None
    write_stop(store, "r1", error("what happened; what to do"))
    read = read_stop(store, "r1")
    assert (type(read), str(read)) == (error, "what happened; what to do")
    assert read_stop(store, "r2") is None
