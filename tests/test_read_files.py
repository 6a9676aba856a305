"""Whole files as rows: only what is wanted is opened, and what cannot be read costs its own row."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from pipeline import read_files, storage
from pipeline.listing import listing_table
from pipeline.pieces import Mark, Wanted
from pipeline.read_files import PATH, SCHEMA, URI, Row, look, pieces, pieces_of, read_listing
from pipeline.storage import Store
from schemas.job import Input
from schemas.plan import Source

ALL = ("content", "uri", "name", "size")
BEGIN = Mark(0, 0)


def put(folder, contents):
    """Write files by name."""
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def listed(folder, **keys):
    """Freeze a listing of the folder, as a plan does, and return it as a source."""
    table = listing_table([f"{folder}/in/**"], f"{folder}/in")
    path = folder / "plan.parquet"
    pq.write_table(table, path, **keys)
    return Source(0, path.as_uri(), "", 0, "", table.num_rows, listing=True)


def wanted(columns=ALL, **keys):
    return Wanted(Input(path=("x",)), columns, {}, **keys)


def read(source, columns=ALL, start=0, **keys):
    return list(pieces(source, wanted(columns, **keys), start, BEGIN))


def opened(monkeypatch):
    """Watch the files that are opened."""
    seen = []
    place = read_files.open_source
    monkeypatch.setattr(read_files, "open_source", lambda uri: seen.append(uri) or place(uri))
    return seen


@settings(max_examples=50)
@given(
    st.lists(st.integers(0, 30), max_size=12),
    st.integers(0, 14),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 40),
)
def test_any_range_is_read_as_it_is_listed(tmp_path_factory, sizes, start, group, most, largest):
    """Each file from there, once, in order, in pieces that are not too large, whatever the listing's row groups."""
    folder = tmp_path_factory.mktemp("out")
    files = {f"in/{number:02d}/x y": bytes([number]) * size for number, size in enumerate(sizes)}
    (folder / "in").mkdir()
    put(folder, files)
    table = listing_table([f"{folder}/in/**"], f"{folder}/in", may_be_gone=True)
    pq.write_table(table, folder / "plan.parquet", row_group_size=group)
    source = Source(0, (folder / "plan.parquet").as_uri(), "", 0, "", len(sizes), listing=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read_files, "BATCH_FILES", most)
        patch.setattr(read_files, "BATCH_BYTES", largest)
        found = read(source, start=start)
    names = list(files)
    rows = [(piece.first + at, row) for piece in found for at, row in enumerate(piece.data.to_pylist())]
    assert [number for number, _ in rows] == [*range(start, len(sizes))]
    for number, row in rows:
        path = folder / names[number]
        assert row == {
            "content": files[names[number]],
            "uri": path.as_uri(),
            "name": "x y",
            "size": sizes[number],
            URI: path.as_uri(),
            PATH: f"{number:02d}/x y",
        }
    for piece in found:
        assert 0 < piece.data.num_rows <= most
        assert piece.data.num_rows == 1 or sum(piece.data["size"].to_pylist()) <= largest


def test_the_columns_are_the_same_for_all_files(tmp_path):
    """Any file is a row of whole files."""
    found = look((tmp_path / "any").as_uri(), Input(path=("x",)), {})
    assert (found.schema, found.rows) == (SCHEMA, 1)


def test_only_the_content_opens_files(tmp_path, monkeypatch):
    """All else is in the listing; pieces are longer then."""
    put(tmp_path, {f"in/{number:03d}": b"abc" for number in range(300)})
    seen = opened(monkeypatch)
    [piece] = read(listed(tmp_path), ("size", "name", "folder"))
    assert piece.data.schema.names == ["size", "name", URI, PATH]
    assert (piece.data["size"].to_pylist(), piece.data["name"][7].as_py()) == ([3] * 300, "007")
    assert (seen, len(piece.broken)) == ([], 0)
    first, second = read(listed(tmp_path), ("content",))
    assert (first.data.num_rows, second.first, len(seen)) == (250, 250, 300)


def test_files_before_the_start_are_not_opened(tmp_path, monkeypatch):
    """Whatever row group the listing is entered at."""
    put(tmp_path, {f"in/{number}": b"abc" for number in range(9)})
    seen = opened(monkeypatch)
    [piece] = read(listed(tmp_path), start=6)
    assert (piece.first, seen) == (6, piece.data["uri"].to_pylist())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (Path.unlink, "is gone since it was planned"),
        (lambda path: path.write_bytes(b"another size"), "changed after it was planned"),
        (lambda path: os.utime(path, ns=(5, 5)), "changed after it was planned"),
        (lambda path: path.unlink() or path.mkdir(), "is a folder"),
        (lambda path: path.unlink() or os.mkfifo(path), "is not a file"),
        (lambda path: path.unlink() or path.symlink_to(path), "is gone since it was planned"),
    ],
)
def test_a_file_that_is_not_as_planned_costs_its_row(tmp_path, spoil, message):
    """It is a dead letter with its URI; the others are read."""
    put(tmp_path, {"in/a": b"abc", "in/b é": b"abc", "in/c": b"abc"})
    source = listed(tmp_path)
    spoil(tmp_path / "in/b é")
    [piece] = read(source)
    uri = (tmp_path / "in/b é").as_uri()
    assert dict(piece.broken) == {1: ("unreadable", f"{uri} {message}", json.dumps(uri).encode())}
    assert piece.data["content"].to_pylist() == [b"abc", None, b"abc"]
    assert piece.data[PATH].to_pylist() == ["a", "b é", "c"]


def test_a_file_that_is_too_large_to_send_is_not_read(tmp_path):
    """The message says how large it is, and what the limit is."""
    put(tmp_path, {"in/a": b"x" * 100, "in/b": b"x" * 101})
    [piece] = read(listed(tmp_path), largest=100)
    uri = (tmp_path / "in/b").as_uri()
    assert dict(piece.broken) == {1: ("too_large", f"{uri} is 101 bytes; the limit is 100", json.dumps(uri).encode())}
    assert (piece.data["content"][1].as_py(), piece.data["size"][1].as_py()) == (None, 101)


class Failing(LocalFileSystem):
    """A file system whose files cannot be opened."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def open_input_file(self, _path):
        raise OSError(self.number, os.strerror(self.number))


def local_path(uri):
    return unquote(uri.removeprefix("file://"))


def test_a_file_that_cannot_be_read_costs_its_row(tmp_path, monkeypatch):
    """With the reason that the system gives."""
    put(tmp_path, {"in/a": b"abc"})
    monkeypatch.setattr(read_files, "open_source", lambda uri: (Failing(errno.EACCES), local_path(uri)))
    [piece] = read(listed(tmp_path))
    assert piece.broken[0].message.endswith("/in/a cannot be read: Permission denied")


@pytest.mark.parametrize("error", [pa.ArrowNotImplementedError, pa.ArrowSerializationError, pa.ArrowException])
@pytest.mark.parametrize("where", ["open_source", "open_input_file"])
def test_what_arrow_says_of_a_store_costs_the_row(tmp_path, monkeypatch, error, where):
    """Its errors are no errors of the system: some stores have no other ones."""
    put(tmp_path, {"in/a": b"abc"})
    source = listed(tmp_path)

    def refuse(*_):
        raise error("no such store here")

    if where == "open_source":
        monkeypatch.setattr(read_files, "open_source", refuse)
    else:
        store = type("Refusing", (LocalFileSystem,), {"open_input_file": refuse})()
        monkeypatch.setattr(read_files, "open_source", lambda uri: (store, local_path(uri)))
    [piece] = read(source)
    assert piece.broken[0].kind == "unreadable"
    assert piece.broken[0].message.endswith("/in/a cannot be read: no such store here")


def test_what_this_process_lacks_is_not_the_files_fault(tmp_path, monkeypatch):
    """Without a file descriptor to spare, no file can be opened: the run ends, no row is lost."""
    put(tmp_path, {"in/a": b"abc"})
    source = listed(tmp_path)
    monkeypatch.setattr(read_files, "open_source", lambda uri: (Failing(errno.EMFILE), local_path(uri)))
    with pytest.raises(OSError, match="Too many open files"):
        read(source)


def test_a_file_that_is_written_while_it_is_read_costs_its_row(tmp_path, monkeypatch):
    """What was read is no longer what was planned."""
    put(tmp_path, {"in/a": b"abc"})

    class Growing(LocalFileSystem):
        def open_input_file(self, path):
            Path(path).write_bytes(b"something else")
            return super().open_input_file(path)

    source = listed(tmp_path)
    monkeypatch.setattr(read_files, "open_source", lambda uri: (Growing(), local_path(uri)))
    [piece] = read(source)
    assert piece.broken[0].message.endswith("/in/a changed while it was read")


def test_a_listing_is_read_back_as_it_was_frozen(tmp_path):
    """By its name in the output."""
    put(tmp_path, {"in/a": b"abc", "in/b": b""})
    listed(tmp_path)
    source = Source(0, "plan.parquet", "", 0, "", 2, listing=True)
    assert read_listing(Store(str(tmp_path)), source).equals(listing_table([f"{tmp_path}/in/*"], f"{tmp_path}/in"))


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A bucket that is a folder, opened by URIs like any other store."""
    storage._store.cache_clear()
    roots = []

    class Opened:
        @staticmethod
        def from_uri(uri):
            roots.append(uri)
            return SubTreeFileSystem(str(tmp_path), LocalFileSystem()), "bucket"

    monkeypatch.setattr(storage, "FileSystem", Opened)
    yield roots
    storage._store.cache_clear()


def test_files_of_a_store_are_read_ahead_in_order_over_one_connection(tmp_path, bucket):
    """Names are used as they are: only local URIs are written with percent signs."""
    names = [f"x/{number} %20.bin" for number in range(40)]
    put(tmp_path / "bucket", {name: name.encode() for name in names})
    found = list(pieces_of([Row(f"s3://bucket/{name}") for name in names], wanted(), 7))
    assert [piece.first for piece in found] == [7]
    assert found[0].data["content"].to_pylist() == [name.encode() for name in names]
    assert found[0].data["name"][3].as_py() == "3 %20.bin"
    assert PATH not in found[0].data.schema.names
    assert set(bucket) == {"s3://bucket"}
    assert len(bucket) <= read_files._READERS, "it is opened for each file"


@pytest.mark.usefixtures("bucket")
def test_reading_can_be_given_up_in_the_middle(tmp_path):
    """What was read ahead is dropped, and nobody waits for what was not begun."""
    put(tmp_path / "bucket", {f"{number}": b"x" for number in range(100)})
    asked = []

    def rows():
        for number in range(100):
            asked.append(number)
            yield Row(f"s3://bucket/{number}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read_files, "BATCH_FILES", 2)
        found = pieces_of(rows(), wanted(), 0)
        assert next(found).data.num_rows == 2
        found.close()
    assert len(asked) < 20


def test_a_store_that_cannot_be_opened_costs_its_rows():
    """Arrow knows no such store; the message names the file."""
    storage._store.cache_clear()
    [piece] = pieces_of([Row("obs://bucket/a.jpg"), Row(None)], wanted(), 0)
    assert list(piece.broken) == [0]
    assert piece.broken[0].kind == "unreadable"
    assert piece.broken[0].message.startswith("obs://bucket/a.jpg cannot be read: ")
    assert piece.data[URI].to_pylist() == ["obs://bucket/a.jpg", None]
    assert piece.data.schema.field("content").type == pa.binary()
