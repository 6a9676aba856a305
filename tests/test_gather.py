"""From folders to a plan: what is new or changed, what is to be scored again, and what planning refuses."""

from __future__ import annotations

import json
import os
import shutil
from itertools import count, pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from engine import examples, place
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

import jobs
from pipeline.errors import JobError
from pipeline.gather import draft
from pipeline.ledger import read_plans, write_plan
from pipeline.plan import NO_CHANGE, Changed, Range
from pipeline.read_files import read_listing
from pipeline.storage import Store
from schemas.plan import NO_END, Redo, Split

FORMATS = ["parquet", "csv", "jsonl", "files"]
RESCORE = Changed("rescore", generation=3)
EVERYTHING = Changed("rescore", ("service.version: was null, is 2",), generation=3)
MOVED = "was planned as .* and would now be .* with other row_uuids, because the patterns begin elsewhere"

_times = count(10**18)


class Folder:
    """An input folder of one format, the job over it, and its plans."""

    def __init__(self, folder, form="files"):
        self.folder, self.form = folder, form
        self.pattern = "in/**/*"
        self.store = Store(str(folder / "out"))

    def write(self, name, *values, keys=("x",)):
        """Write a file with a row for each value, under each key."""
        path = self.folder / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.form == "parquet":
            pq.write_table(pa.table({key: list(values) for key in keys}), path)
        elif self.form == "jsonl":
            path.write_text("".join(f"{json.dumps(dict.fromkeys(keys, one))}\n" for one in values))
        else:
            path.write_text("".join(f"{','.join([str(one)] * len(keys))}\n" for one in (",".join(keys), *values)))
        os.utime(path, ns=(0, next(_times)))
        return path

    def job(self, **keys):
        values = {
            "input": {"path": self.pattern, "format": self.form},
            "service": {"url": "http://127.0.0.1:9/"},
            **keys,
        }
        return jobs.loaded(jobs.job_file(self.folder, "", **values))

    @property
    def planned(self):
        return read_plans(self.store)

    def draft(self, changed=NO_CHANGE, **keys):
        return draft(self.job(**keys), self.store, self.planned, "r", changed)

    def plan(self, changed=NO_CHANGE, **keys):
        """Plan as a run does; returns what was written."""
        new = self.draft(changed, **keys)
        write_plan(self.store, new, self.planned.count)
        return new.plan

    def listing(self, number=0):
        return read_listing(self.store, self.planned.sources[number]).to_pylist()


@pytest.fixture(params=FORMATS)
def folder(request, tmp_path):
    return Folder(tmp_path, request.param)


@pytest.fixture
def files(tmp_path):
    return Folder(tmp_path)


# New files


def test_nothing_new_is_no_plan(folder):
    """Neither with nor without a word about changes, nor when files are gone."""
    folder.write("a", 1)
    folder.write("b", 2)
    folder.plan()
    for changed in (NO_CHANGE, RESCORE, Changed("keep")):
        assert folder.draft(changed) is None
    (folder.folder / "in" / "a").unlink()
    assert folder.draft() is None
    shutil.rmtree(folder.folder / "in")
    assert folder.draft() is None
    assert folder.draft(RESCORE) is None


def test_new_files_get_the_next_numbers(folder):
    """In the order of their names; what was planned is not in the new plan."""
    for name in "db":
        folder.write(name, 1)
    first = folder.plan()
    for name in "eca":
        folder.write(name, 1, 2)
    second = folder.plan()
    if folder.form == "files":
        assert [(one.number, one.rows) for one in (*first.sources, *second.sources)] == [(0, 2), (1, 3)]
        assert [row["path"] for row in folder.listing(1)] == ["a", "c", "e"]
    else:
        assert [(one.number, one.path) for one in first.sources] == [(0, "b"), (1, "d")]
        assert [(one.number, one.path) for one in second.sources] == [(2, "a"), (3, "c"), (4, "e")]
    assert second.redo == ()
    assert {split.source for split in second.splits} == {one.number for one in second.sources}


@pytest.mark.parametrize("at_once", [1, 2, 3, 100])
def test_files_looked_at_together_are_planned_as_one_by_one(folder, at_once, monkeypatch):
    """In order, with the columns of the first that has rows, however many are looked at at once."""
    monkeypatch.setattr("pipeline.gather._LOOKED_AT_ONCE", at_once)
    folder.write("f0")
    for number in range(1, 8):
        folder.write(f"f{number}", *range(number))
    plan = folder.plan()
    if folder.form != "files":
        assert [one.path for one in plan.sources] == [f"f{number}" for number in range(8)]
        assert plan.columns == {"x": "int64"}
        rows = [one.rows for one in plan.sources]
        assert rows == [0, *([None] * 7)] if folder.form == "csv" else rows == list(range(8))


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_types_are_those_of_the_first_plan(tmp_path, form):
    """Later files, and changed ones, are read as these; only if all is scored again are they found anew."""
    folder = Folder(tmp_path, form)
    folder.write("a", 1)
    assert folder.plan().columns == {"x": "int64"}
    folder.write("a", 1.5)
    folder.write("b", 2.5)
    assert folder.plan(RESCORE).columns == {"x": "int64"}
    assert folder.plan(EVERYTHING).columns == {"x": "double"}


def test_a_new_file_must_fit_the_plans_there_are(tmp_path):
    """Its columns and their types: another type would be another column of the output."""
    folder = Folder(tmp_path, "parquet")
    folder.write("a", 1)
    folder.plan()
    path = folder.write("b", 2.5)
    with pytest.raises(JobError, match=f"column 'x' is double in {path.as_uri()} and int64 in files before it"):
        folder.draft()
    folder.write("b", 2, keys=("x", "y"))
    with pytest.raises(JobError, match=f"{path.as_uri()} has a column 'y', unlike files before it"):
        folder.draft()
    folder.write("a", 1.5, keys=("x", "y"))
    folder.write("b", 2.5, keys=("x", "y"))
    with pytest.raises(JobError, match="unlike files before it"):
        folder.draft(RESCORE)
    assert folder.plan(EVERYTHING).columns == {"x": "double", "y": "double"}


def test_a_file_that_two_patterns_name_is_planned_once(folder):
    """Its path is what lies below the folder that both patterns share."""
    folder.write("x/a", 1)
    folder.write("y/b", 1)
    folder.pattern = ["in/x/*", "in/*/a", "in/y/*"]
    plan = folder.plan()
    rows = folder.listing() if folder.form == "files" else [{"path": one.path} for one in plan.sources]
    assert [row["path"] for row in rows] == ["x/a", "y/b"]


def test_patterns_that_begin_elsewhere_are_refused(folder):
    """The same file would have another row_uuid: also a pattern more can do that."""
    folder.write("x/a", 1)
    folder.pattern = "in/x/*"
    folder.plan()
    for pattern in ("in/*/a", ["in/x/*", "in/y/*"]):
        folder.write("y/b", 1)
        folder.pattern = pattern
        with pytest.raises(JobError, match=MOVED):
            folder.draft()


def test_an_input_that_moved_is_followed(folder):
    """Its paths are the same: there is nothing to do, and what is left is read where it is now."""
    folder.write("x/a", 1)
    folder.write("b", 1)
    folder.plan()
    shutil.move(folder.folder / "in", folder.folder / "new")
    folder.pattern = "new/**/*"
    planned = folder.planned
    new = draft(folder.job(), folder.store, planned, "r")
    there = [(folder.folder / "new" / name).as_uri() for name in ("b", "x/a")]
    if folder.form == "files":
        assert [row["uri"] for row in new.listings[new.plan.sources[0].uri].to_pylist()] == there
        assert (new.plan.sources[0].version, new.plan.redo) == (planned.sources[0].version, ())
    else:
        assert sorted(one.uri for one in new.plan.sources) == there
        assert {(one.number, one.path, one.version) for one in new.plan.sources} == {
            (one.number, one.path, one.version) for one in planned.sources.values()
        }
        assert sorted(new.plan.splits, key=str) == sorted(planned.splits, key=str)


def test_an_input_that_moved_is_known_by_its_new_place(folder):
    """Patterns that begin elsewhere name the files where they are now: they are refused, not scored twice."""
    folder.write("a", 1)
    folder.plan()
    shutil.move(folder.folder / "in", folder.folder / "new")
    folder.pattern = "new/**/*"
    folder.plan()
    assert folder.draft() is None
    folder.write("b", 1)
    folder.pattern = ["new/**/*", "in/**/*"]
    with pytest.raises(JobError, match=MOVED):
        folder.draft()


def test_a_kept_file_that_moves_is_still_kept(tmp_path):
    """Its accepted version goes with it."""
    folder = Folder(tmp_path, "csv")
    folder.write("a", 1)
    folder.plan()
    folder.write("a", 2)
    [kept] = folder.plan(Changed("keep")).sources
    shutil.move(folder.folder / "in", folder.folder / "new")
    folder.pattern = "new/**/*"
    [moved] = folder.plan().sources
    assert moved == structs.replace(kept, uri=(folder.folder / "new" / "a").as_uri())
    assert folder.draft() is None


@pytest.mark.parametrize("name", ["a", "*"])
def test_an_input_may_be_a_uri_with_percent_signs(folder, name):
    """In folder and name they are those that a local URI has; the rows are those of the path."""
    paths = [folder.write("per cent/a b%20", 1), folder.write("100%25/é", 1)]
    below = [path.relative_to(folder.folder / "in").as_posix() for path in paths]
    if name == "a":
        folder.pattern = [path.as_uri() for path in paths]
    else:
        folder.pattern = [f"{path.parent.as_uri()}/*" for path in paths]
    plan = folder.plan()
    found = folder.listing() if folder.form == "files" else [structs.asdict(one) for one in plan.sources]
    assert sorted((one["uri"], one["path"]) for one in found) == sorted(
        (path.as_uri(), place) for path, place in zip(paths, below, strict=True)
    )
    folder.pattern = [str(path) for path in paths]
    assert folder.draft() is None


# Changed files


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
def test_a_changed_file_is_planned_again_under_its_number(tmp_path, form):
    """With its new version and splits; no receipt of the older generations counts for it."""
    folder = Folder(tmp_path, form)
    for name in "abc":
        folder.write(name, 1, 2)
    before = folder.plan()
    folder.write("b", 1, 2, 3)
    plan = folder.plan(RESCORE)
    [source] = plan.sources
    assert (source.number, source.path) == (1, "b")
    assert source.version not in {one.version for one in before.sources}
    rows = None if form == "csv" else 3
    assert (source.rows, plan.splits, plan.redo) == (rows, (Split(1, 0, rows),), (Redo(1, 3),))
    assert [split.source for split in folder.planned.splits] == [0, 2, 1]


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
def test_a_kept_file_stays_as_it_was_planned(tmp_path, form):
    """But for the version that is accepted: rows, splits and receipts are those of the old one."""
    folder = Folder(tmp_path, form)
    folder.write("a", 1, 2)
    first = folder.plan()
    path = folder.write("a", 1, 2, 3)
    plan = folder.plan(Changed("keep"))
    [old], [new] = first.sources, plan.sources
    assert (new.version, new.rows, plan.splits, plan.redo) == (old.version, old.rows, first.splits, ())
    assert new.accepted == f"{path.stat().st_size}-{path.stat().st_mtime_ns}"
    assert folder.draft() is None
    folder.write("a", 1)
    with pytest.raises(JobError, match=path.as_uri()):
        folder.draft()


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
def test_a_file_that_is_not_done_cannot_be_kept(tmp_path, form):
    """Only those are named of which rows are left."""
    folder = Folder(tmp_path, form)
    for name in "ab":
        folder.write(name, 1)
    folder.plan()
    done, undone = folder.write("a", 2), folder.write("b", 2)
    with pytest.raises(JobError) as told:
        folder.draft(Changed("keep", left={1: [Range(0, 1)]}))
    assert undone.as_uri() in str(told.value)
    assert done.as_uri() not in str(told.value)


def test_if_everything_is_scored_again_nothing_may_be_gone(folder):
    """The file that is missing is named, and the plan has an order for each source."""
    folder.write("a", 1)
    folder.plan()
    folder.write("b", 1)
    folder.plan()
    plan = folder.draft(EVERYTHING).plan
    assert plan.redo == (Redo(0, 3), Redo(1, 3))
    assert {split.source for split in plan.splits} == {0, 1}
    path = folder.folder / "in" / "b"
    path.unlink()
    with pytest.raises(JobError, match=f"{path.as_uri()} is gone, so that it cannot be scored again"):
        folder.draft(EVERYTHING)


@examples(0.5)
@given(st.lists(st.sampled_from(["same", "changed", "gone"]), min_size=1, max_size=12), st.integers(0, 3))
def test_the_files_of_a_listing_that_changed_are_scored_again(states, fresh):
    """They, and no other; those that are gone stay in the frozen listing, and new ones come into one of their own."""
    with place() as path:
        folder = Folder(path)
        names = [f"f{number:02d}" for number in range(len(states))]
        for name in names:
            folder.write(name, 1)
        first = folder.plan()
        before = folder.listing()
        for name, state in zip(names, states, strict=True):
            if state == "changed":
                folder.write(name, 1)
            elif state == "gone":
                (path / "in" / name).unlink()
        for number in range(fresh):
            folder.write(f"e{number}", 1)
        changed = {row for row, state in enumerate(states) if state == "changed"}
        if not changed and not fresh:
            assert folder.draft(RESCORE) is None
            return
        plan = folder.plan(RESCORE)
        assert {row for order in plan.redo for row in range(order.start, order.stop)} == changed
        assert {(order.source, order.generation) for order in plan.redo} <= {(0, 3)}
        assert all(order.stop + 1 <= after.start for order, after in pairwise(plan.redo))
        now = folder.listing()
        assert [row for row in range(len(now)) if now[row] != before[row]] == sorted(changed)
        assert [row["path"] for row in now] == names
        assert [one.version for one in plan.sources if one.number == 0] == [first.sources[0].version] * bool(changed)
        assert sorted(split.source for split in folder.planned.splits) == [0] + [1] * bool(fresh)
        if fresh:
            assert [row["path"] for row in folder.listing(1)] == [f"e{number}" for number in range(fresh)]
        assert folder.draft() is None


def test_a_listing_is_never_written_over(files):
    """The old one is there until the new plan is."""
    files.write("a", 1)
    names = [files.plan().sources[0].uri]
    for _ in range(3):
        files.write("a", 1)
        files.write(f"b{len(names)}", 1)
        names += [one.uri for one in files.plan(RESCORE).sources]
    assert len(names) == len(set(names)) == 7
    assert all(files.store.exists(name) for name in names)


def test_kept_files_of_a_listing_are_accepted_as_they_are(files):
    """The frozen listing has their new versions, and no row is to be done again."""
    for name in "abc":
        files.write(name, 1)
    first = files.plan()
    path = files.write("b", 2)
    plan = files.plan(Changed("keep", left={0: [Range(0, 1), Range(2, 3)]}))
    assert (plan.redo, plan.splits) == ((), first.splits)
    assert files.listing()[1]["version"] == f"{path.stat().st_size}-{path.stat().st_mtime_ns}"
    assert files.draft() is None


@pytest.mark.parametrize("left", [Range(0, NO_END), Range(1, 2), Range(0, 2)])
def test_a_file_of_a_listing_that_is_not_done_cannot_be_kept(files, left):
    """Only those are named of which rows are left."""
    for name in "abc":
        files.write(name, 1)
    files.plan()
    paths = [files.write(name, 2) for name in "bc"]
    with pytest.raises(JobError) as told:
        files.draft(Changed("keep", left={0: [left]}))
    named = [path.as_uri() in str(told.value) for path in paths]
    assert named == [True, left.stop > 2]


def test_a_file_that_comes_back_is_the_one_that_was_planned(folder):
    """As it was: nothing to do. As another one: it changed."""
    folder.write("a", 1)
    path = folder.write("b", 1)
    folder.plan()
    shutil.move(path, folder.folder / "b")
    assert folder.draft() is None
    shutil.move(folder.folder / "b", path)
    assert folder.draft() is None
    folder.write("b", 1)
    with pytest.raises(JobError, match=f"{path.as_uri()}.* changed since planned"):
        folder.draft()
