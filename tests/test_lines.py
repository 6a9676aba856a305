"""Files of lines: each row once, at one number, whichever bytes, blocks and marks there are."""

from __future__ import annotations

import bz2
import gzip

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import lines
from pipeline.errors import JobError
from pipeline.lines import START, index, read
from pipeline.pieces import Mark

BOM = b"\xef\xbb\xbf"
PACKERS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
    ".lz4": lambda data: pa.Codec("lz4").compress(data, asbytes=True),
}
BYTES = st.lists(st.sampled_from([b"\n", b"\r", b"\r\n", b"a", b"bc" * 9, BOM, b"\xef", b"\0"]), max_size=30).map(
    b"".join
)


def slow_rows(data):
    """Return the rows of a file's content, byte by byte."""
    rows, line = [], b""
    for one in data.removeprefix(BOM) + b"\n":
        if one == ord("\n"):
            line = line[:-1] if line[-1:] == b"\r" else line
            rows += [line] if line else []
            line = b""
        else:
            line += bytes([one])
    return rows


def put(path, data):
    path.write_bytes(data)
    return path.as_uri()


def rows_from(uri, mark=START, **options):
    """Read to the end; return (number, row) of each."""
    return [(number, row) for first, rows in read(uri, mark, **options) for number, row in enumerate(rows, first)]


@settings(max_examples=300)
@given(BYTES, st.integers(1, 12), st.integers(1, 12))
def test_a_row_has_one_number_wherever_reading_begins(tmp_path_factory, data, indexed, block):
    """Any bytes, any block size, any mark: the rows and numbers of a slow reader."""
    uri = put(tmp_path_factory.getbasetemp() / "any.txt", data)
    expected = list(enumerate(slow_rows(data)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK", indexed)
        rows, marks = index(uri)
    assert rows == len(expected)
    assert marks[0] == START
    assert list(marks) == sorted(set(marks))
    for mark in marks:
        assert rows_from(uri, mark, block=block) == expected[mark.row :]


@settings(max_examples=60)
@given(BYTES, st.integers(1, 12), st.sampled_from(sorted(PACKERS)))
def test_a_compressed_file_has_the_same_rows(tmp_path_factory, data, block, suffix):
    """It is read from its beginning, whatever the mark."""
    uri = put(tmp_path_factory.getbasetemp() / f"any{suffix}", PACKERS[suffix](data) if data else b"")
    assert rows_from(uri, Mark(3, 7), block=block) == list(enumerate(slow_rows(data)))


def test_marks_are_a_block_apart(tmp_path):
    """A large file has a mark for each block, at the number that its row has."""
    rows = [b"%d %s" % (number, b"x" * (number % 3000)) for number in range(8_000)]
    uri = put(tmp_path / "large.txt", b"\n".join(rows))
    count, marks = index(uri)
    assert count == 8_000
    assert [mark.offset // lines.BLOCK for mark in marks] == [0, 1, 2]
    for mark in marks:
        assert next(iter(read(uri, mark)))[1][0] == rows[mark.row]


def test_a_line_may_be_longer_than_a_block(tmp_path):
    """A line of three blocks is one row, and so are its neighbours."""
    long = b"x" * (3 * lines.BLOCK)
    uri = put(tmp_path / "long.txt", b"a\n" + long + b"\nb")
    count, marks = index(uri)
    assert (count, [mark.row for mark in marks]) == (3, [0, 2])
    assert rows_from(uri) == [(0, b"a"), (1, long), (2, b"b")]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_line_that_memory_would_not_take_is_an_error(tmp_path, monkeypatch, suffix):
    """It says which file, and what is allowed; the rows before it are there."""
    monkeypatch.setattr(lines, "LONGEST", 10_000)
    data = b"a\n" * 100 + b"x" * 50_000
    uri = put(tmp_path / f"long.txt{suffix}", PACKERS.get(suffix, bytes)(data))
    found = read(uri, block=100)
    assert next(found)[0] == 0
    with pytest.raises(JobError, match=r"long\.txt.* has a line of more than 10000 bytes"):
        list(found)


@pytest.mark.parametrize("suffix", sorted(PACKERS))
def test_several_compressed_members_are_one_file(tmp_path, suffix):
    """Concatenated parts are read one after the other, also where a part ends within a line."""
    rows = [b'{"n": %d}' % number for number in range(20_000)]
    data = b"\n".join(rows)
    uri = put(tmp_path / f"many{suffix}", PACKERS[suffix](data[:99_999]) + PACKERS[suffix](data[99_999:]))
    assert [row for _, row in rows_from(uri)] == rows


def test_the_rows_before_a_cut_come_out(tmp_path):
    """Of a truncated gzip file the rows before that place are read, whole ones only; then it is an OSError."""
    rows = [b'{"n": %d}' % number for number in range(50_000)]
    packed = gzip.compress(b"\n".join(rows))
    reading = read(put(tmp_path / "cut.gz", packed[: len(packed) // 2]))
    _, found = next(reading)
    with pytest.raises(OSError, match="Truncated"):
        next(reading)
    assert len(found) > 15_000
    assert found == rows[: len(found)]
