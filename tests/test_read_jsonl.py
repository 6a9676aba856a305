"""JSONL files: types fixed once, every line its row, and a clear word on what is none."""

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs import listed
from pipeline import lines
from pipeline.errors import JobError
from pipeline.pieces import Wanted
from pipeline.read_jsonl import look, pieces
from schemas.job import Input
from schemas.plan import Source

DOUBLE, INT, TEXT, BOOL = pa.float64(), pa.int64(), pa.string(), pa.bool_()
GZIP = {"": bytes, ".gz": gzip.compress}


def put(path, *rows, pack=bytes):
    """Write lines, given as text, bytes or objects; return the URI."""
    texts = [
        row if isinstance(row, bytes) else row.encode() if isinstance(row, str) else json.dumps(row).encode()
        for row in rows
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pack(b"\n".join(texts)))
    return path.as_uri()


def input_of(**keys):
    return Input(path=("x.jsonl",), **keys)


def looked(uri, known=None, **keys):
    """Look at a first file; return its columns with their types."""
    found = look(uri, input_of(**keys), known or {})
    return {field.name: field.type for field in found.schema}


def rows_of(uri, types, start=0, mark=lines.START, columns=None):
    """Read a file; return the values by row, the broken rows, and the size of each piece."""
    [one] = listed(uri)
    source = Source(0, one.uri, one.path, one.size, one.version, None)
    values, broken, sizes = {}, {}, []
    for piece in pieces(source, Wanted(input_of(), columns or tuple(types), types), start, mark):
        values |= enumerate(piece.data.to_pylist(), piece.first)
        broken |= {piece.first + at: why for at, why in piece.broken.items()}
        sizes.append(piece.data.num_rows)
    return values, broken, sizes


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "-2", "null"], INT),
        (["9223372036854775807", "-9223372036854775808"], INT),
        (["1", "9223372036854775808"], DOUBLE),
        (["-99999999999999999999999"], DOUBLE),
        (["1", "2.0"], DOUBLE),
        (["1e3"], DOUBLE),
        (["true", "false", "null"], BOOL),
        (["true", "1"], TEXT),
        (['"1"', "1"], TEXT),
        (["null", "null"], TEXT),
        (["[1]"], TEXT),
        (['{"a": 1}'], TEXT),
        (['"2024-01-01"'], TEXT),
        (["1e400", "1"], DOUBLE),
    ],
)
def test_types_come_from_all_values(tmp_path, values, kind):
    """Integers within 64 bits, numbers, booleans, else text; nulls, absent keys and broken lines have no say."""
    uri = put(tmp_path / "a.jsonl", "broken", *[f'{{"x": {value}}}' for value in values], '{"y": 1}', '{"x": "cut')
    assert looked(uri) == {"x": kind, "y": INT}


def test_columns_are_in_order_of_their_appearance(tmp_path):
    """The first line's keys come first, then those that later ones add."""
    uri = put(tmp_path / "a.jsonl", {"b": 1, "a": 2}, {"c": "x", "a": 1.5}, {"": True})
    assert list(looked(uri).items()) == [("b", INT), ("a", DOUBLE), ("c", TEXT), ("", BOOL)]


def test_declared_types_are_kept_and_their_columns_are_there(tmp_path):
    """A declared column has its type, also where the first lines lack it; the others are inferred."""
    uri = put(tmp_path / "a.jsonl", {"x": 1, "y": 2})
    known = {"z": pa.date32(), "x": TEXT}
    assert looked(uri, known, columns={"z": "date32", "x": "string"}) == {"x": TEXT, "y": INT, "z": pa.date32()}


@pytest.mark.parametrize("suffix", sorted(GZIP))
def test_a_later_file_has_the_columns_that_are_fixed(tmp_path, suffix):
    """Its values are not looked at: whatever is in it has no say in the types."""
    uri = put(tmp_path / f"b.jsonl{suffix}", {"x": "text", "new": 1}, "broken", pack=GZIP[suffix])
    found = look(uri, input_of(columns={"x": "int64"}), {"x": INT, "y": DOUBLE})
    assert found.schema == pa.schema({"x": INT, "y": DOUBLE})
    assert found.rows == (None if suffix else 2)
    assert not found.empty


def test_only_the_first_mib_is_looked_at(tmp_path):
    """A value behind it does not change the type; it will be a row that does not fit."""
    row = json.dumps({"x": 1, "pad": "p" * 1000})
    uri = put(tmp_path / "a.jsonl", *[row] * 1100, {"x": "text"})
    assert looked(uri) == {"x": INT, "pad": TEXT}
    _, broken, _ = rows_of(uri, {"x": INT})
    assert list(broken) == [1100]


def test_a_first_line_longer_than_the_first_mib_is_looked_at(tmp_path):
    """There is at least one line to look at."""
    assert looked(put(tmp_path / "a.jsonl", {"pad": "p" * 3_000_000, "x": 1}, {"y": 1})) == {"pad": TEXT, "x": INT}


def test_a_plain_file_is_counted_and_marked(tmp_path):
    """Planning learns its rows, its bytes, and where it can be entered; a compressed one only its bytes."""
    rows = [json.dumps({"n": number, "pad": "p" * 400}) for number in range(12_000)]
    plain = put(tmp_path / "a.jsonl", *rows)
    found = look(plain, input_of(), {})
    assert (found.rows, found.size, found.empty) == (12_000, len("\n".join(rows)), False)
    assert [mark.row for mark in found.marks] == sorted({0, *(mark.row for mark in found.marks)})
    assert len(found.marks) == 2
    packed = look(put(tmp_path / "a.jsonl.gz", *rows, pack=gzip.compress), input_of(), {})
    assert (packed.rows, packed.size, packed.marks, packed.empty) == (
        None,
        (tmp_path / "a.jsonl.gz").stat().st_size,
        (),
        False,
    )


@pytest.mark.parametrize("suffix", sorted(GZIP))
@pytest.mark.parametrize("content", [b"", b"\n\r\n\n", b"\xef\xbb\xbf"])
def test_a_file_without_rows_is_empty(tmp_path, suffix, content):
    """It says that its columns mean nothing."""
    found = look(put(tmp_path / f"a.jsonl{suffix}", content, pack=GZIP[suffix]), input_of(), {})
    assert found.empty
    assert found.schema.names == []


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.jsonl", b"id,x\n1,2\n", "'id,x'"),
        ("a.jsonl", b'[\n  {"a": 1},\n  {"a": 2}\n]\n', r"'\['"),
        ("a.jsonl", b"PAR1\x15\x04\xff\xfe", r"'PAR1\\x15\\x04"),
        ("a.jsonl", '{"a": 1}\n'.encode("utf-16"), "begins with"),
        ("a.jsonl", b'"' + b"x" * 1000, f"'\"{'x' * 59}'"),
    ],
)
def test_what_is_not_jsonl_is_an_error_of_the_job(tmp_path, name, content, found):
    """One line: which file, what it begins with, and what to do."""
    with pytest.raises(
        JobError, match=rf"^input\.path: file://.*{name} is not JSONL: .*{found}.*; give its form"
    ) as raised:
        looked(put(tmp_path / name, content))
    assert "\n" not in str(raised.value)


def test_what_cannot_be_unpacked_is_an_error_of_the_job(tmp_path):
    """A name that promises gzip, and plain text in it."""
    with pytest.raises(JobError, match=r"^input\.path: .*a\.jsonl\.gz is not readable as JSONL: zlib.*; replace it"):
        looked(put(tmp_path / "a.jsonl.gz", {"a": 1}))


def test_a_cut_file_is_looked_at_as_far_as_it_goes(tmp_path):
    """Planning sees the rows before the cut; reading them to it is an OSError, after those rows."""
    rows = [{"n": number} for number in range(50_000)]
    uri = put(tmp_path / "a.jsonl.gz", *rows, pack=lambda data: gzip.compress(data)[:-2000])
    assert looked(uri) == {"n": INT}
    [one] = listed(uri)
    source = Source(0, one.uri, one.path, one.size, one.version, None)
    reading = pieces(source, Wanted(input_of(), ("n",), {"n": INT}), 0, lines.START)
    found = []
    with pytest.raises(OSError, match="Truncated"):
        found.extend(piece.data.column("n").to_pylist() for piece in reading)
    numbers = [number for some in found for number in some]
    assert len(numbers) > 40_000
    assert numbers == list(range(len(numbers)))


def test_a_type_that_json_is_not_read_as_is_an_error_of_the_job(tmp_path):
    """It is named by its key."""
    with pytest.raises(JobError, match=r"^input\.columns\.x: JSON is not read as month_day_nano_interval; declare"):
        looked(put(tmp_path / "a.jsonl", {"x": 1}), {"x": pa.month_day_nano_interval()}, columns={"x": "x"})


def test_a_folder_column_is_not_the_files(tmp_path):
    """A declared column that is a folder of the file is left to it, in planning and in reading."""
    uri = put(tmp_path / "dt=2024-01-01" / "a.jsonl", {"x": 1})
    assert looked(uri, {"dt": pa.date32()}, columns={"dt": "date32"}) == {"x": INT}
    assert rows_of(uri, {"dt": pa.date32(), "x": INT})[0] == {0: {"x": 1}}


def test_a_column_named_like_a_folder_is_an_error_where_all_are_sent(tmp_path):
    """Nobody could say which of the two is meant; where `send` names others it does not matter."""
    uri = put(tmp_path / "dt=1" / "a.jsonl", {"x": 1, "dt": 2})
    with pytest.raises(JobError, match=r"'dt' is a column of file://.* and one of its folders"):
        looked(uri)
    assert looked(uri, send=["x"]) == {"x": INT, "dt": INT}


def test_a_line_that_does_not_fit_costs_itself(tmp_path):
    """It becomes `unreadable` with the reason and the line as it stands; its neighbours are read."""
    uri = put(tmp_path / "a.jsonl", {"x": 1}, "", '{"x": "one"}', b'{"x": \xff\xfe"}\r', "[]", {"x": 2, "y": "z"})
    values, broken, _ = rows_of(uri, {"x": INT})
    assert [values[row]["x"] for row in range(5)] == [1, None, None, None, 2]
    assert {why.kind for why in broken.values()} == {"unreadable"}
    assert {row: json.loads(why.row) for row, why in broken.items()} == {
        1: '{"x": "one"}',
        2: '{"x": \ufffd\ufffd"}',
        3: "[]",
    }
    assert broken[1].message == 'x is "one", which is no int64'


def test_only_wanted_columns_are_read_in_their_order(tmp_path):
    """What is not wanted is not judged either; what is absent is null."""
    uri = put(tmp_path / "a.jsonl", {"x": "no number", "y": 1}, {"z": 2})
    types = {"x": INT, "y": INT, "z": DOUBLE}
    values, broken, _ = rows_of(uri, types, columns=("z", "y"))
    assert [list(values[row].items()) for row in (0, 1)] == [[("z", None), ("y", 1)], [("z", 2.0), ("y", None)]]
    assert broken == {}


def test_pieces_are_small(tmp_path):
    """At most about 10,000 rows or 4 MB at a time."""
    few = put(tmp_path / "few.jsonl", *[{"n": number} for number in range(25_000)])
    assert rows_of(few, {"n": INT})[2] == [10_000, 10_000, 5_000]
    heavy = put(tmp_path / "heavy.jsonl", *[{"n": "x" * 1_000_000}] * 10)
    assert max(rows_of(heavy, {"n": TEXT})[2]) <= 5


LINES = st.sampled_from(['{"n": 1}', '{"n": "x"}', "", "\r", "{", "7", '{"n": 2, "m": [1]}\r'])


@settings(max_examples=100)
@given(st.lists(LINES, max_size=40), st.integers(0, 45), st.sampled_from(sorted(GZIP)), st.integers(1, 60))
def test_rows_have_their_numbers_from_any_start(tmp_path_factory, texts, start, suffix, block):
    """From any start, by any mark before it: the same rows, the same values, the same broken ones."""
    path = tmp_path_factory.getbasetemp() / f"any.jsonl{suffix}"
    uri = put(path, *texts, pack=GZIP[suffix])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK", block)
        marks = [lines.START] if suffix else lines.index(uri)[1]
    mark = max(mark for mark in marks if mark.row <= start)
    full = [text.removesuffix("\r") for text in texts if text.removesuffix("\r")]
    expected = [json.loads(text) if text not in {"{", "7"} else {} for text in full]
    values, broken, _ = rows_of(uri, {"n": INT}, start, mark)
    assert {row: found["n"] for row, found in values.items() if row >= start} == {
        row: one.get("n") if one.get("n") != "x" else None for row, one in enumerate(expected) if row >= start
    }
    assert {row for row in broken if row >= start} == {
        row for row, text in enumerate(full) if row >= start and text in {"{", "7", '{"n": "x"}'}
    }
