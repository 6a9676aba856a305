"""Folders and objects: visible only when whole, listed as the pattern says, and failures in one line."""

from __future__ import annotations

import hashlib
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jobs
from pipeline import storage
from pipeline.errors import StorageFailed
from pipeline.read_parquet import look
from pipeline.storage import Draft, Store, storing

NAMES = [
    "with space",
    "数据",
    "per%20cent",
    "a#b",
    "a?b",
    "a+b&c",
    "D:",
    "back\\slash",
    "quote'\"",
    "tab\tand\nline",
    "-dash",
    "ü.é",
]


def contents(folder):
    return {name: (folder / name).read_bytes() for name in jobs.files(folder)}


def test_an_object_is_written_whole_over_the_one_that_was_there(tmp_path):
    """`write` makes the folders it needs, and leaves nothing beside the object."""
    store = Store(str(tmp_path / "out"))
    store.write("job.json", b"old")
    store.write("job.json", b"new")
    store.write("plan/000000.json", b"plan")
    assert contents(tmp_path / "out") == {"job.json": b"new", "plan/000000.json": b"plan"}
    assert (store.read("job.json"), store.exists("job.json"), store.exists("plan")) == (b"new", True, False)


def test_a_draft_that_is_kept_tells_what_was_written(tmp_path):
    """Its name, its size and its hash; before `keep` nobody finds it under its name."""
    store = Store(str(tmp_path))
    with store.create("results") as draft:
        draft.write(b"one ")
        draft.write(memoryview(b"two"))
        assert not store.exists("results/x")
        stored = draft.keep("results/x")
    assert (stored.name, stored.size, stored.sha256) == ("results/x", 7, hashlib.sha256(b"one two").hexdigest())
    assert contents(tmp_path) == {"results/x": b"one two"}


def test_a_draft_that_is_never_kept_leaves_nothing(tmp_path):
    """Neither when it is given up nor when an error comes in between."""
    store = Store(str(tmp_path))
    store.create("results").close()

    def fail():
        with store.create("results") as draft:
            draft.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert jobs.files(tmp_path) == []


def test_a_failed_write_leaves_the_old_object(tmp_path, monkeypatch):
    """A disk that fails at the last moment costs the new content, never the old one; and it is one line."""
    store = Store(str(tmp_path))
    store.write("job.json", b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFailed) as caught:
        store.write("job.json", b"new")
    assert str(caught.value) == (
        f"cannot write {tmp_path}/job.json: No space left on device; when that is mended, the same command resumes"
    )
    assert contents(tmp_path) == {"job.json": b"old"}


def test_a_parquet_file_can_be_written_to_a_draft(tmp_path):
    """A draft is a binary file as pyarrow wants it."""
    store = Store(str(tmp_path))
    with store.create("results") as draft:
        pq.write_table(jobs.flowers(5), draft)
        stored = draft.keep("results/x.parquet")
    assert pq.read_table(tmp_path / "results" / "x.parquet").equals(jobs.flowers(5))
    assert stored.size == (tmp_path / "results" / "x.parquet").stat().st_size


def test_only_an_empty_folder_is_deleted(tmp_path):
    """One with an object or a draft in it stays; one that is gone is no error."""
    store = Store(str(tmp_path))
    with store.create("errors") as draft:
        store.delete_empty("errors")
        draft.keep("errors/x")
    store.delete_empty("errors")
    assert store.names("errors") == ["x"]
    store.delete("errors/x")
    for _ in range(2):
        store.delete_empty("errors")
        assert not (tmp_path / "errors").exists()


def test_who_writes_is_not_disturbed_by_who_deletes_empty_folders(tmp_path, monkeypatch):
    """The folder goes between its making and the first draft in it."""
    store = Store(str(tmp_path))
    left = [1]

    def draft(*place):
        if left:
            left.pop()
            store.delete_empty("errors")
            assert not (tmp_path / "errors").exists()
        return Draft(*place)

    monkeypatch.setattr(storage, "Draft", draft)
    store.write("errors/x", b"x")
    assert contents(tmp_path) == {"errors/x": b"x"}


def test_names_are_those_of_a_folder_s_objects(tmp_path):
    """Sorted, without folders, and none where there is no folder."""
    store = Store(str(tmp_path))
    for name in ("results/b", "results/a", "results/deeper/c"):
        store.write(name, b"")
    assert store.names("results") == ["a", "b"]
    assert store.names("errors") == []


def test_a_folder_is_empty_until_something_without_a_dot_is_in_it(tmp_path):
    """A lock, or what a file manager leaves, makes no folder somebody's."""
    store = Store(str(tmp_path / "out"))
    assert store.is_empty()
    store.write(".lock", b"")
    assert store.is_empty()
    store.write("notes.txt", b"")
    assert not store.is_empty()


def test_deleting_what_is_gone_is_no_error(tmp_path):
    """Two that clean up at once do not trip over each other."""
    store = Store(str(tmp_path))
    store.write("results/x", b"")
    for _ in range(2):
        store.delete("results/x")
        store.delete_folder("results")
    assert jobs.files(tmp_path) == []


@pytest.mark.parametrize(
    ("action", "told"),
    [
        (lambda store: store.read("gone"), "cannot read "),
        (lambda store: store.open("gone"), "cannot read "),
        (lambda store: store.write("file/below", b""), "cannot write "),
        (lambda store: store.delete("folder"), "cannot delete "),
        (lambda store: store.delete_folder("file"), "cannot delete "),
    ],
)
def test_what_storage_refuses_is_one_line(tmp_path, action, told):
    """The action, the object and the reason; never a traceback, never silence."""
    store = Store(str(tmp_path))
    store.write("file", b"")
    store.write("folder/x", b"")
    with pytest.raises(StorageFailed) as caught:
        action(store)
    line = str(caught.value)
    assert line.startswith(told)
    assert tmp_path.as_uri() in line
    assert line.endswith("; when that is mended, the same command resumes")
    assert "\n" not in line
    assert caught.value.exit_code == 6


def test_the_errors_of_arrow_are_translated_too():
    """Object stores raise Arrow's own errors; only their first line is shown."""
    with (
        pytest.raises(StorageFailed, match=r"^cannot list s3://b/x: no such bucket; when") as caught,
        storing("list", "s3://b/x"),
    ):
        raise pa.ArrowInvalid("no such bucket\nDetail: a page of it")
    assert "Detail" not in str(caught.value)


def test_what_is_not_storage_is_not_translated():
    """A defect stays one."""
    with pytest.raises(ZeroDivisionError), storing("list", "x"):
        raise ZeroDivisionError


def test_a_store_s_uri_is_absolute(tmp_path, monkeypatch):
    """A relative path, an absolute one, one with a slash behind it and a URI are the same folder."""
    monkeypatch.chdir(tmp_path)
    places = ["out", str(tmp_path / "out"), f"{tmp_path}/out/", (tmp_path / "out").as_uri()]
    assert {Store(place).uri for place in places} == {(tmp_path / "out").as_uri()}
    assert {Store(place).local for place in places} == {tmp_path / "out"}


@pytest.mark.parametrize("name", NAMES)
def test_any_name_can_be_a_folder_s(tmp_path, name):
    """Spaces, Chinese, what URIs escape, and what other systems do not allow: the URI leads back to it."""
    store = Store(str(tmp_path / name))
    store.write("plan/x", b"found")
    assert Store(store.uri).read("plan/x") == b"found"
    assert contents(tmp_path / name) == {"plan/x": b"found"}
    assert store.names("plan") == ["x"]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_can_be_a_file_s(tmp_path, name):
    """A listed file has a URI that opens, and the path below the fixed folder as it is."""
    jobs.put(tmp_path / "in" / name / f"{name}.parquet", jobs.flowers(2))
    [found] = jobs.listed(f"{tmp_path}/in/**/*.parquet")
    assert found.path == f"{name}/{name}.parquet"
    assert found.uri == (tmp_path / "in" / name / f"{name}.parquet").as_uri()
    assert look(found.uri, None, {}).rows == 2


def test_listing_follows_the_pattern(tmp_path):
    """`*` stays in its folder, `**` crosses them, hidden names only match by name; sorted, with size and version."""
    for name in ("b.parquet", "a.parquet", "x/c.parquet", "x/y/d.parquet", ".hidden.parquet", ".h/e.parquet", "n.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"123")

    def paths(pattern):
        return [one.path for one in jobs.listed(f"{tmp_path}/{pattern}")]

    assert paths("*.parquet") == ["a.parquet", "b.parquet"]
    assert paths("*/*.parquet") == ["x/c.parquet"]
    assert paths("**/*.parquet") == ["a.parquet", "b.parquet", "x/c.parquet", "x/y/d.parquet"]
    assert paths("x/**") == ["c.parquet", "y/d.parquet"]
    assert paths("a.parquet") == ["a.parquet"]
    assert paths(".hidden.parquet") == [".hidden.parquet"]
    assert paths("gone/*.parquet") == paths("gone.parquet") == paths("x") == []
    [listed] = jobs.listed(f"{tmp_path}/a.parquet")
    stat = (tmp_path / "a.parquet").stat()
    assert (listed.size, listed.version) == (3, f"3-{stat.st_mtime_ns}")


def test_a_path_and_its_uri_list_the_same(tmp_path):
    """`file://` is a way of writing a path."""
    jobs.put(tmp_path / "in" / "a.parquet", jobs.flowers(1))
    assert jobs.listed(f"{tmp_path.as_uri()}/in/*.parquet") == jobs.listed(f"{tmp_path}/in/*.parquet") != []


def test_an_unknown_scheme_is_one_line():
    """No file system of that name: said before anything else is done."""
    with pytest.raises(StorageFailed, match=r"^cannot list floppy://a/\*\.parquet: .*floppy"):
        jobs.listed("floppy://a/*.parquet")
    with pytest.raises(StorageFailed, match=r"^cannot open floppy://a: .*floppy"):
        Store("floppy://a")


def test_a_drive_letter_is_a_path(tmp_path, monkeypatch):
    """`D:/out` has no scheme: two letters at least make one."""
    monkeypatch.chdir(tmp_path)
    Store("D:/out").write("x", b"1")
    assert contents(tmp_path) == {"D:/out/x": b"1"}


def test_a_new_object_never_takes_the_place_of_another(tmp_path):
    """Whoever comes second is told, and leaves nothing; what is there is whole."""
    store = Store(str(tmp_path))
    assert store.write_new("plan/000000.json", b"first")
    assert not store.write_new("plan/000000.json", b"second")
    assert contents(tmp_path) == {"plan/000000.json": b"first"}


def test_a_new_object_that_cannot_be_written_is_one_line(tmp_path):
    """As with any other."""
    store = Store(str(tmp_path))
    store.write("plan", b"")
    with pytest.raises(StorageFailed, match=r"^cannot write .*/plan: .*; when that is mended"):
        store.write_new("plan/000000.json", b"x")
