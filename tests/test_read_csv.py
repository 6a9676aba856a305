"""CSV: every record has its row and its number, whatever is in it; what cannot be read has one clear line."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import random
import re
from encodings.aliases import aliases

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline import read_csv, records
from pipeline.errors import JobError
from pipeline.pieces import Mark, Wanted
from pipeline.read_csv import look, pieces
from schemas.job import Csv, Input
from schemas.plan import Source

WRAPS = {
    ".csv": lambda content: content,
    ".csv.gz": gzip.compress,
    ".csv.bz2": bz2.compress,
    ".csv.zst": lambda content: pa.Codec("zstd").compress(content, asbytes=True),
    ".csv.lz4": lambda content: pa.Codec("lz4").compress(content, asbytes=True),
}
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def given_as(columns=None, **form):
    """Return `input` of a job file with this `input.csv`."""
    return Input(path=("x",), format="csv", columns=columns or {}, csv=Csv(**form))


def put(folder, content, suffix=".csv"):
    """Write bytes, or text as UTF-8, to a file and return its URI."""
    path = folder / f"table{suffix}"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path.as_uri()


def pieces_of(uri, columns, *, start=0, given=None, types=None):
    """Yield the pieces of a file."""
    source = Source(0, uri, "table.csv", 1, "1-1", None)
    return pieces(source, Wanted(given or given_as(), tuple(columns), types or {}), start, Mark(0, 0))


def rows_of(uri, columns, **how):
    """Return all rows by number: a tuple of values, or the message of a broken one."""
    found = {}
    for piece in pieces_of(uri, columns, **how):
        assert piece.data.num_rows == 0 or all(kind == pa.string() for kind in piece.data.schema.types)
        for position, row in enumerate(piece.data.to_pylist()):
            assert piece.first + position not in found
            broken = piece.broken.get(position)
            found[piece.first + position] = broken.message if broken else tuple(row.values())
    return found


def read_until_it_fails(uri, columns, **how):
    """Return the rows that were yielded, and the error behind them."""
    found = []
    try:
        for piece in pieces_of(uri, columns, **how):
            assert piece.first == len(found)
            found.extend(tuple(row.values()) for row in piece.data.to_pylist())
    except (JobError, OSError) as error:
        return found, error
    return found, None


def types_of(content, folder, *, known=None, given=None):
    """Return what planning learns of the columns, as text."""
    found = look(put(folder, content), given or given_as(), known or {})
    return {field.name: str(field.type) for field in found.schema}


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few bytes: everything happens at their borders."""
    monkeypatch.setattr(records, "BLOCK", 7)
    monkeypatch.setattr(read_csv, "BATCH_ROWS", 3)


# What is in the fields


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ('a,b\n"say ""x""",2\n', [('say "x"', "2")]),
        ('a,b\n"1,5",2\n', [("1,5", "2")]),
        ("a,b\r\n1,2\r\n3,4\r\n", [("1", "2"), ("3", "4")]),
        ("a,b\r1,2\r3,4", [("1", "2"), ("3", "4")]),
        ('a,b\n"two\nlines","cr\r\nlf"\n', [("two\nlines", "cr\r\nlf")]),
        ("\ufeffa,b\n1,2\n", [("1", "2")]),
        ('\ufeff"a",b\n1,2\n', [("1", "2")]),
        ("a,b\n1,2", [("1", "2")]),
        ('a,b\n1,"2"', [("1", "2")]),
        ("\n\na,b\n\n1,2\n\r\n\n3,4\n\n", [("1", "2"), ("3", "4")]),
        ("a,b\n 1 , 2\n", [(" 1 ", " 2")]),
        ('a,b\n1"2,x"y"z\n"1"2,3\n', [('1"2', 'x"y"z'), ("12", "3")]),
        ("a,b\n00001,1e400\n", [("00001", "1e400")]),
        ("a,b\n,\n", [(None, None)]),
        ('a,b\n"",x\n', [("", "x")]),
        ("a,b\nNA,null\n", [("NA", "null")]),
        ("a,b\n\u00e9,\U0001f600\n", [("\u00e9", "\U0001f600")]),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 7, 1 << 20])
def test_fields_are_what_excel_means(tmp_path, monkeypatch, content, rows, size):
    """Quotes, separators, line ends, byte order marks, blank lines and a last line without end: the usual rules."""
    monkeypatch.setattr(records, "BLOCK", size)

    assert rows_of(put(tmp_path, content), ["a", "b"]) == dict(enumerate(rows))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("delimiter", [";", "\t", "|", "^", "]", "\\", " "])
def test_any_character_may_be_the_delimiter(tmp_path, delimiter):
    """Also one that means something in a pattern."""
    content = 'a,b\n"1,5",2\n3,4\n'.replace(",", delimiter)

    found = rows_of(put(tmp_path, content), ["b", "a"], given=given_as(delimiter=delimiter))

    assert found == {0: ("2", f"1{delimiter}5"), 1: ("4", "3")}


@pytest.mark.usefixtures("small_blocks")
def test_another_quote_and_no_quote(tmp_path):
    """`quote` says what a quote is; with none, quotes are text."""
    content = "a,b\n'1,5',\"2\"\n"

    assert rows_of(put(tmp_path, content), "ab", given=given_as(quote="'")) == {0: ("1,5", '"2"')}
    assert rows_of(put(tmp_path, content), "ab", given=given_as(quote="")) == {0: "row has 3 fields, the header has 2"}
    assert rows_of(put(tmp_path, 'a,b\n"1,2"\n'), "ab", given=given_as(quote="")) == {0: ('"1', '2"')}


def test_null_values_are_null_unless_they_are_quoted(tmp_path):
    """So is an empty field, whatever the null values are."""
    content = 'a,b\nNA,"NA"\n-,""\n,x\n'

    found = rows_of(put(tmp_path, content), "ab", given=given_as(null_values=("NA", "-")))

    assert found == {0: (None, "NA"), 1: (None, ""), 2: (None, "x")}


def test_an_empty_text_is_null_in_a_column_that_is_no_text(tmp_path):
    """Programs that put quotes around everything write an unknown number as `""`."""
    uri = put(tmp_path, 'a,b\n"",""\n"1","x"\n')

    found = rows_of(uri, "ab", types={"a": pa.int64(), "b": pa.string()})

    assert found == {0: (None, ""), 1: ("1", "x")}


@pytest.mark.usefixtures("small_blocks")
def test_a_table_of_one_column_has_no_rows_in_blank_lines(tmp_path):
    """An empty text in quotes is a row."""
    assert rows_of(put(tmp_path, 'a\n1\n\n""\n\n2'), "a") == {0: ("1",), 1: ("",), 2: ("2",)}


# Columns


def test_columns_come_in_the_order_wanted(tmp_path):
    """Only these, and only once."""
    assert rows_of(put(tmp_path, "a,b,c\n1,2,3\n"), ["c", "a"]) == {0: ("3", "1")}


@pytest.mark.usefixtures("small_blocks")
def test_names_stay_as_they_are(tmp_path):
    """Spaces, quotes, line ends and commas in a header are part of the name."""
    uri = put(tmp_path, '" a","b ""x""","c\nd",e f,"g,h"\n1,2,3,4,5\n')
    names = [" a", 'b "x"', "c\nd", "e f", "g,h"]

    assert look(uri, given_as(), {}).schema.names == names
    assert rows_of(uri, names) == {0: ("1", "2", "3", "4", "5")}
    with pytest.raises(JobError, match=r"it has:  a, b \"x\", 'c\\nd', e f, g,h$"):
        rows_of(uri, ["x"])


def test_names_that_look_like_values_are_names(tmp_path):
    """A header of dates, numbers, truths and nothing."""
    uri = put(tmp_path, "2020-01-01,1,true,\n1,2,3,4\n")

    assert look(uri, given_as(), {}).schema.names == ["2020-01-01", "1", "true", ""]
    assert rows_of(uri, ["true", ""]) == {0: ("3", "4")}


def test_a_name_that_is_there_twice_is_reported_twice(tmp_path):
    """Other columns can be read all the same."""
    uri = put(tmp_path, "x,a,x,b\n1,2,3,4\n")

    assert look(uri, given_as(), {}).schema.names == ["x", "a", "x", "b"]
    assert rows_of(uri, ["b", "a"]) == {0: ("4", "2")}


def test_a_column_that_the_file_does_not_have_is_an_error_of_the_job(tmp_path):
    """The line says which one are there; folders give columns too."""
    folder = tmp_path / "dt=2026-11-21"
    folder.mkdir()
    uri = put(folder, "a,b\n1,2\n")

    assert rows_of(uri, ["a", "dt"]) == {0: ("1",)}
    assert [piece.data.num_rows for piece in pieces_of(uri, ["dt"])] == [1]
    with pytest.raises(JobError, match=r"^input\.path: file://\S+ has no column 'x'; it has: a, b$"):
        rows_of(uri, ["a", "x"])


@pytest.mark.usefixtures("small_blocks")
def test_without_a_header_declared_names_come_first(tmp_path):
    """Columns beyond are named by their position."""
    given = given_as({"id": "string", "x": "double"}, header=False)
    uri = put(tmp_path, "1,2,3,4\n5,6,7\n8,9,10,11\n")

    assert look(uri, given, {}).schema.names == ["id", "x", "f2", "f3"]
    assert rows_of(uri, ["f3", "id"], given=given) == {
        0: ("4", "1"),
        1: "row has 3 fields, the first row has 4",
        2: ("11", "8"),
    }


def test_without_a_header_more_names_than_fields_leave_names_over(tmp_path):
    """What is not in the file is missing from it."""
    given = given_as({"a": "string", "b": "string"}, header=False)
    uri = put(tmp_path, "1\n2\n")

    assert look(uri, given, {}).schema.names == ["a"]
    with pytest.raises(JobError, match="has no column 'b'; it has: a"):
        rows_of(uri, ["b"], given=given)


# Rows that cannot be read


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ("a,b\n1\n2,3\n", ["row has 1 field, the header has 2", ("2", "3")]),
        ("a,b\n2,3\n1,2,3", [("2", "3"), "row has 3 fields, the header has 2"]),
        ("a,b\n1\n1\n\n1\n", ["row has 1 field, the header has 2"] * 3),
        ('a,b\n"x\ny"\n4,5\n', ["row has 1 field, the header has 2", ("4", "5")]),
        (
            "a,b\n1,2\n3\n\n4,5,6\n7,8\n9",
            [
                ("1", "2"),
                "row has 1 field, the header has 2",
                "row has 3 fields, the header has 2",
                ("7", "8"),
                "row has 1 field, the header has 2",
            ],
        ),
    ],
)
@pytest.mark.parametrize("size", [1, 5, 1 << 20])
def test_a_ragged_row_costs_that_row(tmp_path, monkeypatch, content, rows, size):
    """At the beginning, at the end, in a row, alone: it has its own number."""
    monkeypatch.setattr(records, "BLOCK", size)

    assert rows_of(put(tmp_path, content), "ab") == dict(enumerate(rows))


def test_a_ragged_row_is_shown_as_it_is_in_the_file(tmp_path):
    """Its dead letter has the raw text; what is no text is marked."""
    uri = put(tmp_path, b'a,b\n1,2\n"x\n""y",\xff,3\n')

    [piece] = pieces_of(uri, "ab")

    assert {position: broken.kind for position, broken in piece.broken.items()} == {1: "unreadable"}
    assert json.loads(piece.broken[1].row) == '"x\n""y",\ufffd,3'
    assert piece.data.to_pylist()[1] == {"a": None, "b": None}


@pytest.mark.parametrize("size", [1, 5, 1 << 20])
def test_bytes_that_are_no_text_cost_that_row(tmp_path, monkeypatch, size):
    """Only where a column that is wanted has them."""
    monkeypatch.setattr(records, "BLOCK", size)
    uri = put(tmp_path, b"a,b\n1,caf\xe9\n2,\xc3\xa9\n\xff\xfe,\n4,\xed\xa0\x80\n")

    assert rows_of(uri, "ab") == {
        0: "b is not text in utf-8",
        1: ("2", "\u00e9"),
        2: "a is not text in utf-8",
        3: "b is not text in utf-8",
    }
    assert rows_of(uri, "a")[0] == ("1",)


def test_a_row_that_is_no_text_shows_what_is(tmp_path):
    """Its dead letter has the wanted columns, with the usual sign for what cannot be read."""
    [piece] = pieces_of(put(tmp_path, b"a,b,c\ncaf\xe9,,3\n"), "ab")

    assert json.loads(piece.broken[0].row) == {"a": "caf\ufffd", "b": None}


@pytest.mark.parametrize("tail", ['3,"x', '3,"x\n4,5\n6,7\n', '"', '"3,4\n5,6\n', '3,4"\n"5,6', '1,2,3,"\n'])
@pytest.mark.parametrize("size", [3, 1 << 20])
def test_a_quote_that_is_never_closed_is_told(tmp_path, monkeypatch, tail, size):
    """It would take all rows behind it for one field; those before it were yielded."""
    monkeypatch.setattr(records, "BLOCK", size)
    whole = 3 if tail.startswith("3,4") else 2

    found, error = read_until_it_fails(put(tmp_path, "a,b\n1,2\n2,3\n" + tail), "ab")

    assert re.match(
        rf"input\.path: file://\S+: source row {whole} is over 16 MB, or a quote in it is never", str(error)
    )
    assert found == [("1", "2"), ("2", "3"), ("3", '4"')][:whole]


def test_a_row_may_be_long_but_not_endless(tmp_path, monkeypatch):
    """Rows up to the limit are read, however small blocks are; the line for others says where they begin."""
    monkeypatch.setattr(records, "BLOCK", 10)
    monkeypatch.setattr(records, "LONGEST", 1000)
    good, long = f'1,"{"x" * 900}"\n', '2,"' + "x\n" * 3000 + '"\n'

    assert rows_of(put(tmp_path, f"a,b\n{good}3,4\n"), "ab") == {0: ("1", "x" * 900), 1: ("3", "4")}
    with pytest.raises(JobError, match=r"source row 2 is over .* MB, or a quote in it is never closed; mend the file"):
        rows_of(put(tmp_path, f"a,b\n{good}3,4\n{long}5,6\n"), "ab")
    with pytest.raises(JobError, match="its first row is over"):
        look(put(tmp_path, '"a' + "x\n" * 3000), given_as(), {})


def test_memory_is_bounded_by_a_block():
    """A file is not read ahead of its rows."""
    read = []

    class File(io.BytesIO):
        def read(self, size=-1):
            read.append(size)
            return super().read(size)

    blocks = records.blocks(File(b"1,2\n" * 5_000_000).read, "utf-8", ",", '"')

    assert [len(next(blocks)) >> 10 for _ in range(3)] == [1024] * 3
    assert sum(read) < 4 << 20


# Encodings


@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", "\ufeff"),
        ("utf-8-sig", ""),
        ("utf-16-le", ""),
        ("utf-16-le", "\ufeff"),
        ("utf-16-be", "\ufeff"),
        ("utf-32-le", ""),
        ("utf-32-be", "\ufeff"),
        ("utf-7", ""),
        ("gb18030", ""),
    ],
)
@pytest.mark.parametrize("size", [1, 6, 1 << 20])
def test_any_encoding_is_read(tmp_path, monkeypatch, encoding, mark, size):
    """With and without a byte order mark, by its own name and by the common one."""
    monkeypatch.setattr(records, "BLOCK", size)
    uri = put(tmp_path, f'{mark}"a\u00e9",b\r\n\u00e9\u4e2d,"\U0001f600\n,x"\r\n1,2'.encode(encoding))
    common = encoding.removesuffix("-be" if mark else "-le") if encoding.startswith(("utf-16", "utf-32")) else encoding

    for name in {encoding, common}:
        assert look(uri, given_as(encoding=name), {}).schema.names == ["a\u00e9", "b"]
        assert rows_of(uri, ["a\u00e9", "b"], given=given_as(encoding=name)) == {
            0: ("\u00e9\u4e2d", "\U0001f600\n,x"),
            1: ("1", "2"),
        }


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("encoding", "content", "rows"),
    [
        ("ascii", b"a,b\n1,\xc3\xa9\n2,3\n", {0: "b is not text in ascii", 1: ("2", "3")}),
        ("cp1252", b"a,b\n\xe9,\x81\n2,3\n", {0: "b is not text in cp1252", 1: ("2", "3")}),
        ("utf-16", "a,b\n1,2\n3,4".encode("utf-16") + b"\x00", {0: ("1", "2"), 1: "b is not text in utf-16"}),
        (
            "utf-16-le",
            "a,b\n1,".encode("utf-16-le") + b"\x00\xdc" + "\n3,4".encode("utf-16-le"),
            {0: "b is not text in utf-16-le", 1: ("3", "4")},
        ),
        ("shift_jis", b"a,b\n1,\x82\xa0\n2,\x80\n", {0: ("1", "\u3042"), 1: "b is not text in shift_jis"}),
    ],
)
def test_what_is_no_text_in_its_encoding_costs_its_row(tmp_path, encoding, content, rows):
    """As in UTF-8."""
    assert rows_of(put(tmp_path, content), "ab", given=given_as(encoding=encoding)) == rows


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        ("n\u00e4me,b\n1,2\n".encode("latin-1"), "utf-8"),
        ("a,b\n1,2\n".encode("utf-16"), "utf-8"),
        ("a,b\n1,2\n".encode("utf-16-le"), "utf-8"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "utf-8"),
        (b"PK\x03\x04\x14\x00\x00\x00", "iso8859-1"),
    ],
)
def test_a_file_that_does_not_begin_with_text_is_told(tmp_path, content, encoding):
    """One line with the encoding to mend."""
    line = rf"^input\.csv\.encoding: file://\S+ is not readable as {encoding}: it does not begin with text"
    with pytest.raises(JobError, match=line):
        look(put(tmp_path, content), given_as(encoding=encoding), {})


@settings(UNHURRIED, max_examples=300)
@given(
    content=st.one_of(st.binary(max_size=60), st.text('a",;\n\r\u00e9\ufeff1', max_size=40).map(str.encode)),
    encoding=st.sampled_from(sorted({*aliases.values(), "idna", "punycode", "undefined", "utf-8-sig"})),
    header=st.booleans(),
    size=st.integers(1, 40),
)
def test_no_bytes_in_any_encoding_are_more_than_one_line(tmp_path, content, encoding, header, size):
    """Whatever a file has in it: rows, or a JobError."""
    try:
        form = given_as(encoding=encoding, header=header)
    except ValueError:  # an encoding of bytes, not of text
        return
    uri = put(tmp_path, content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "BLOCK", size)
        try:
            names = look(uri, form, {}).schema.names
        except JobError as error:
            line = str(error)
        else:
            line = str(read_until_it_fails(uri, names[:1], given=form)[1])
    assert line.isprintable()


# Compressed


@pytest.mark.parametrize("suffix", WRAPS)
def test_compressed_files_are_unpacked(tmp_path, suffix):
    """By their suffix; files joined together are one."""
    uri = put(tmp_path, WRAPS[suffix](b"a,b\n1,2\n") + WRAPS[suffix](b"3,4\n5,"), suffix)

    found = look(uri, given_as(), {})

    assert (found.schema.names, found.size) == (["a", "b"], (tmp_path / f"table{suffix}").stat().st_size)
    assert rows_of(uri, "ab") == {0: ("1", "2"), 1: ("3", "4"), 2: ("5", None)}


def test_a_truncated_file_fails_behind_its_good_rows(tmp_path):
    """Storage's own error is for the reader to explain."""
    chance = random.Random(0)
    content = "".join(f"{row},{chance.random()}\n" for row in range(200_000))
    uri = put(tmp_path, gzip.compress(f"a,b\n{content}".encode())[:-1000], ".csv.gz")

    found, error = read_until_it_fails(uri, "a")

    assert isinstance(error, OSError)
    assert len(found) > 100_000
    assert found == [(str(row),) for row in range(len(found))]


def test_a_file_that_cannot_be_unpacked_is_told_at_planning(tmp_path):
    """So is one that is not there."""
    uri = put(tmp_path, gzip.compress(b"a,b\n1,2\n" * 100)[:-9], ".csv.gz")
    line = r"^input\.path: file://\S+ is not readable as CSV: .*; replace it or leave it out$"

    for bad in (uri, put(tmp_path, "a,b\n1,2\n", ".csv.gz"), f"{uri}.not-there"):
        with pytest.raises(JobError, match=line):
            look(bad, given_as(), {})


# What planning learns


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "-2", "00001"], "int64"),
        (["1", "", "3"], "int64"),
        (['"1"', '""', '"3"'], "int64"),
        (["9223372036854775807"], "int64"),
        (["9223372036854775808"], "double"),
        (["1", "2.5", "1e5", "nan", "-inf"], "double"),
        (["true", "FALSE", "True"], "bool"),
        (["true", "1"], "string"),
        (["0", "1"], "int64"),
        (["1", "x"], "string"),
        (["0x1F"], "string"),
        ([" 1"], "string"),
        (["2026-11-21", "2026-11-22"], "string"),
        (["2026-11-21T00:00:00"], "string"),
        (["12:00"], "string"),
        (["", ""], "string"),
        (['""'], "string"),
        (["1,5"], "int64"),
    ],
)
def test_types_are_inferred_from_the_first_values(tmp_path, values, kind):
    """int64, double, bool, or else string; what is null says nothing, and a ragged row neither."""
    rows = "".join(f"{value},x\n" for value in values)

    assert types_of(f"a,b\n{rows}1\n", tmp_path)["a"] == (kind if values != ["1,5"] else "string")


def test_inferred_types_fit_the_values(tmp_path):
    """What planning infers, the reader can cast to."""
    content = "a,b,c\n00001,1,true\n-5,.5,FALSE\n,1e3,\n"
    uri = put(tmp_path, content)
    found = look(uri, given_as(), {})

    [piece] = pieces_of(uri, "abc")

    cast = [column.cast(field.type).to_pylist() for column, field in zip(piece.data.columns, found.schema, strict=True)]
    assert cast == [[1, -5, None], [1.0, 0.5, 1000.0], [True, False, None]]


def test_values_that_are_no_text_say_nothing_of_a_type(tmp_path):
    """One bad byte costs its row, not the column's type."""
    assert types_of(b"a,b\n1,2\n\xff,3\n", tmp_path) == {"a": "int64", "b": "int64"}


def test_known_types_are_taken_as_they_are(tmp_path):
    """No value is parsed for them."""
    known = {"a": pa.string(), "b": pa.timestamp("us"), "not there": pa.int64()}

    assert types_of("b,a\nx,1\n", tmp_path, known=known) == {"b": "timestamp[us]", "a": "string"}
    assert types_of("a,b,c\n00001,x,2\n", tmp_path, known=known) == {"a": "string", "b": "timestamp[us]", "c": "int64"}


def test_a_short_read_is_not_the_end():
    """Object stores may give less than they are asked for."""
    content = io.BytesIO("a,b\n1,\u00e9\n2,3".encode())

    assert list(records.blocks(lambda size: content.read(min(size, 3)), "utf-8", ",", '"')) == [
        "a,b\n1,\u00e9\n2,3\n".encode()
    ]


@pytest.mark.usefixtures("small_blocks")
def test_only_the_first_block_is_looked_at(tmp_path):
    """A record that the block does not have whole is not in it."""
    assert types_of("name\n1\n2\n3\n4\n5.5\n", tmp_path) == {"name": "int64"}
    assert types_of("name\n1\n22.555\n", tmp_path) == {"name": "int64"}


def test_a_last_value_without_a_newline_counts(tmp_path):
    """A file that is looked at to its end is looked at whole."""
    assert types_of("a\n1\n2.5", tmp_path) == {"a": "double"}


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("content", ["", "\n", "\n\r\n\n", "\ufeff", "\ufeff\n"])
def test_a_file_with_nothing_in_it_is_a_file_without_rows(tmp_path, content, header):
    """No names, no types, no error."""
    uri = put(tmp_path, content)
    given = given_as(header=header)

    found = look(uri, given, {})

    assert (found.schema, found.rows, found.empty) == (pa.schema([]), 0, True)
    assert found.size == len(content.encode())
    assert rows_of(uri, ["a"], given=given) == {}


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("content", ["a,b", "a,b\n", "a,b\r\n\r\n\n"])
def test_a_header_alone_is_a_file_without_rows(tmp_path, content):
    """Its names are known; no column is missing where no row has it."""
    uri = put(tmp_path, content)

    found = look(uri, given_as(), {"b": pa.int64()})

    assert (found.schema, found.rows, found.empty) == (
        pa.schema([("a", pa.string()), ("b", pa.int64())]),
        0,
        True,
    )
    assert rows_of(uri, ["c"]) == {}


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("content", ["a,b\n1,2\n", "a,b\n\n\n\n\n\n\n\n\n\n1", "a,b\n1"])
def test_a_file_with_a_row_is_not_empty(tmp_path, content):
    """Be it far behind the header, or broken."""
    found = look(put(tmp_path, content), given_as(), {})

    assert (found.rows, found.empty) == (None, False)


# Any table


def test_rows_before_the_start_are_not_yielded_in_vain(tmp_path, monkeypatch):
    """Pieces begin with the block that the row is in; numbers are those of the file."""
    monkeypatch.setattr(records, "BLOCK", 16)
    uri = put(tmp_path, "a\n" + "".join(f"{row}\n" for row in range(100)))

    found = rows_of(uri, "a", start=50)

    assert found == {row: (str(row),) for row in range(min(found), 100)}
    assert 40 < min(found) <= 50


def test_pieces_are_of_some_thousand_rows(tmp_path):
    """Broken rows keep their place in them."""
    uri = put(tmp_path, "a\n" + "".join("1\n" if row % 9999 else "1,2\n" for row in range(25_000)))

    found = list(pieces_of(uri, "a"))

    assert [(piece.first, piece.data.num_rows) for piece in found] == [(0, 10_000), (10_000, 10_000), (20_000, 5_000)]
    assert [list(piece.broken) for piece in found] == [[0, 9999], [9998], []]


def written(value, null, *, always, delimiter):
    """Return a field as CSV has it, by the rules of this product."""
    if value is None:
        return null
    plain = value not in {"", null} and not set(value) & {'"', "\n", "\r", delimiter}
    return value if plain and not always else '"' + value.replace('"', '""') + '"'


WILD = st.text(
    st.one_of(st.sampled_from('",;\n\r |NULL'), st.characters(exclude_categories=["Cs"])), max_size=8
).filter(lambda text: records.UNDECODABLE not in text)


@settings(UNHURRIED, max_examples=200)
@given(
    table=st.integers(1, 4).flatmap(
        lambda width: st.lists(
            st.one_of(
                st.lists(st.one_of(st.none(), WILD), min_size=width, max_size=width),
                st.integers(1, 6).filter(lambda count: count != width),
            ),
            min_size=1,
            max_size=30,
        ).map(lambda rows: (width, rows))
    ),
    delimiter=st.sampled_from(",;|"),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
    always=st.booleans(),
    last=st.booleans(),
    size=st.integers(1, 50),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32-be", "gb18030"]),
)
def test_any_table_is_read_as_it_was_written(tmp_path, table, delimiter, newline, always, last, size, encoding):
    """Values, nulls and numbers of rows are those of the table, with ragged rows (here: numbers of fields) anywhere."""
    width, rows = table
    lines = [delimiter.join(f"c{index}" for index in range(width))]
    for row in rows:
        fields = ["x"] * row if isinstance(row, int) else row
        lines.append(delimiter.join(written(value, "NULL", always=always, delimiter=delimiter) for value in fields))
    uri = put(tmp_path, (newline.join(lines) + newline * last).encode(encoding))
    form = given_as(delimiter=delimiter, encoding=encoding, null_values=("NULL",))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "BLOCK", size)
        patch.setattr(read_csv, "BATCH_ROWS", 4)
        found = rows_of(uri, [f"c{index}" for index in range(width)], given=form)

    assert found == {
        number: f"row has {row} field{'s' * (row != 1)}, the header has {width}" if isinstance(row, int) else tuple(row)
        for number, row in enumerate(rows)
    }


def slowly(text):
    """Parse a CSV text the slow way: its records, and whether the last one ends."""
    rows = [row for row in csv.reader(io.StringIO(f"{text}\nend", newline="")) if row]
    return rows[:-1], rows[-1] == ["end"]


@settings(UNHURRIED, max_examples=500)
@given(text=st.text('a",\n\r b', max_size=60), size=st.integers(1, 70))
@example(text='a"b,"\n"c', size=3)
@example(text='"a""b"c"d,\n', size=1)
@example(text='"a"\r"\n"', size=4)
def test_any_text_has_the_records_that_a_slow_parser_finds(tmp_path, text, size):
    """Stray quotes, blanks and line ends anywhere: the same records, or the line that one does not end."""
    rows, ends = slowly(text)
    form = given_as(header=False)
    uri = put(tmp_path, text)
    found = {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "BLOCK", size)
        try:
            for piece in pieces_of(uri, ["f0"], given=form):
                for position, row in enumerate(piece.data.to_pylist()):
                    found[piece.first + position] = "ragged" if position in piece.broken else row["f0"] or ""
        except JobError:
            assert not ends
        else:
            assert ends

    assert found == {number: row[0] if len(row) == len(rows[0]) else "ragged" for number, row in enumerate(rows)}
