"""Lists of files: a line is a row, whatever it says; a URI that is there twice is two rows."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import lines, read_files
from pipeline.errors import JobError
from pipeline.pieces import Mark, Wanted
from pipeline.read_files import SCHEMA, URI
from pipeline.read_manifest import look, pieces, row_of
from schemas.job import Input
from schemas.plan import Source

ALL = ("content", "uri", "name", "size")
BEGIN = Mark(0, 0)
FOLDER = "file:///lists/of%20files"


def found(path):
    return look(path.as_uri(), Input(path=("x",)), {})


def read(path, columns=ALL, start=0, mark=BEGIN):
    source = Source(0, path.as_uri(), path.name, 0, "", None)
    return list(pieces(source, Wanted(Input(path=("x",)), columns, {}), start, mark))


@pytest.mark.parametrize(
    ("line", "uri"),
    [
        ("/images/a.jpg", "file:///images/a.jpg"),
        ("/images/100% é?.jpg", "file:///images/100%25%20%C3%A9%3F.jpg"),
        ("a.jpg", "file:///lists/of%20files/a.jpg"),
        ("./a b/../c.jpg", "file:///lists/of%20files/c.jpg"),
        ("../a.jpg", "file:///lists/a.jpg"),
        ("  a.jpg \t", "file:///lists/of%20files/a.jpg"),
        ("file:///a%20b.jpg", "file:///a%20b.jpg"),
        ("file:///a b#c.jpg", "file:///a%20b%23c.jpg"),
        ("FILE://localhost/a.jpg", "file:///a.jpg"),
        ("s3://bucket/a b%20.jpg", "s3://bucket/a b%20.jpg"),
        ("OBS://Bucket/A.jpg", "obs://Bucket/A.jpg"),
        ('{"source": "s3://bucket/a.jpg", "usage": "TRAIN", "id": "0"}', "s3://bucket/a.jpg"),
        ('{"source":"a.jpg","annotation":[{"name":"cat"}]}', "file:///lists/of%20files/a.jpg"),
        ("[1].jpg", "file:///lists/of%20files/%5B1%5D.jpg"),
    ],
)
def test_a_line_names_a_file(line, uri):
    """As a URI, as a path, or as a line of a ModelArts manifest; local ones are written as URIs are."""
    row = row_of(line.encode(), FOLDER)
    assert (row.uri, row.broken, row.path, row.version) == (uri, None, None, None)


@pytest.mark.parametrize(("line", "uri"), [("a b.jpg", "s3://b/x/a b.jpg"), ("../a.jpg", "s3://b/a.jpg")])
def test_a_line_of_a_list_in_a_store_is_relative_to_its_folder(line, uri):
    """There, names are not written with percent signs."""
    assert row_of(line.encode(), "s3://b/x").uri == uri
    assert row_of(b"/local.jpg", "s3://b/x").uri == "file:///local.jpg"


@pytest.mark.parametrize(
    "line",
    [b'{"src": "a.jpg"}', b'{"source": 1}', b'{"source": ""}', b"{broken", b"   ", b"a\xff.jpg", b"a\x00b.jpg", b"{}"],
)
def test_a_line_that_names_no_file_is_a_broken_row(line):
    """The dead letter shows it as it is."""
    row = row_of(line, FOLDER)
    shown = json.dumps(line.decode(errors="replace"), ensure_ascii=False)
    assert row.broken is not None
    assert (row.uri, row.broken.kind, row.broken.message) == (None, "unreadable", "the line names no file")
    assert json.loads(row.broken.row) == json.loads(shown)


@pytest.mark.parametrize("uri", ["https://host/a.jpg", "content://some text", "file://host/a.jpg", "file://a.jpg"])
def test_a_uri_that_cannot_be_read_is_a_broken_row(uri):
    """The message names it and says what is allowed."""
    row = row_of(uri.encode(), FOLDER)
    assert row.broken is not None
    assert (row.uri, row.broken.kind, json.loads(row.broken.row)) == (uri, "unreadable", uri)
    assert row.broken.message.startswith(f"{uri} is on ")
    assert "; allowed: " in row.broken.message


@settings(max_examples=60)
@given(st.binary(max_size=40))
def test_any_line_is_a_row(line):
    """With a file or with a reason, never an error."""
    row = row_of(line, FOLDER)
    assert (row.uri is None) <= (row.broken is not None)
    if row.broken:
        json.loads(row.broken.row)


def listed(folder, *, packed):
    """Write files, and a list of them with blank lines, doubles and odd lines."""
    (folder / "a.bin").write_bytes(b"first")
    (folder / "b.bin").write_bytes(b"second")
    text = "a.bin\n\nb.bin\r\n" + "a.bin\n" * 20 + "gone.bin\n{}\n" + json.dumps({"source": f"{folder}/b.bin"})
    path = folder / ("list.txt.gz" if packed else "list.txt")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    return path


@pytest.mark.parametrize("packed", [False, True])
def test_every_line_is_a_row_of_its_own(tmp_path, packed):
    """The same URI twenty times is twenty rows; blank lines are none."""
    path = listed(tmp_path, packed=packed)
    [piece] = read(path)
    assert piece.data["content"].to_pylist() == [b"first", b"second", *[b"first"] * 20, None, None, b"second"]
    assert piece.data["size"].to_pylist() == [5, 6, *[5] * 20, None, None, 6]
    assert piece.data["name"].to_pylist()[:2] == ["a.bin", "b.bin"]
    assert piece.data.schema.names == [*ALL, URI]
    gone = (tmp_path / "gone.bin").as_uri()
    assert {at: why.message for at, why in piece.broken.items()} == {
        22: f"{gone} does not exist",
        23: "the line names no file",
    }


def test_any_row_can_be_the_first(tmp_path):
    """With a mark or without."""
    path = listed(tmp_path, packed=False)
    for start in range(25):
        numbers = [piece.first + at for piece in read(path, start=start) for at in range(piece.data.num_rows)]
        assert numbers == [*range(start, 25)]
    [piece] = read(path, start=2, mark=Mark(1, 7))
    assert (piece.first, piece.data["name"][0].as_py()) == (2, "a.bin")


def test_planning_counts_lines_and_opens_no_file(tmp_path, monkeypatch):
    """A compressed list tells its rows only at its end."""
    monkeypatch.setattr(lines, "BLOCK", 64)
    plain, packed = found(listed(tmp_path, packed=False)), found(listed(tmp_path, packed=True))
    assert (plain.schema, plain.rows, plain.empty) == (SCHEMA, 25, False)
    assert (packed.schema, packed.rows, packed.marks, packed.empty) == (SCHEMA, None, (), False)


@pytest.mark.parametrize("name", ["list.txt", "list.txt.gz"])
def test_a_list_without_lines_is_empty(tmp_path, name):
    """Blank ones do not count."""
    content = b"\n\r\n\n"
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert (found(tmp_path / name).rows, found(tmp_path / name).empty) == (0, True)
    assert read(tmp_path / name) == []


def test_only_the_content_and_the_size_look_at_files(tmp_path, monkeypatch):
    """A name and a URI need no file."""
    path = listed(tmp_path, packed=False)
    seen = []
    place = read_files.open_source
    monkeypatch.setattr(read_files, "open_source", lambda uri: seen.append(uri) or place(uri))
    [piece] = read(path, ("uri", "name"))
    assert (seen, list(piece.broken)) == ([], [23])
    [piece] = read(path, ("size",))
    assert (len(seen), list(piece.broken)) == (24, [22, 23])
    assert piece.data["size"].to_pylist()[:3] == [5, 6, 5]


def test_a_list_that_cannot_be_read_is_named(tmp_path):
    """One that is gone, or is not compressed as its name says."""
    (tmp_path / "list.txt.gz").write_bytes(b"a.bin\n" * 100)
    for name in ("gone.txt", "list.txt.gz"):
        with pytest.raises(JobError, match=rf"{name} is not a readable list of files: .*; replace it or leave it out"):
            found(tmp_path / name)
