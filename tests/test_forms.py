"""Result objects in every form: what is written is the rows by their rules, and what is read back is who they are."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import ipc
from service import recording

import jobs
from pipeline import forms
from pipeline.encode import RowEncoder
from pipeline.errors import JobError
from pipeline.forms import FORMS, PLACE, Unreadable, check_form, places
from pipeline.storage import Store

WHO = {"source": "file:///data/a.csv", "source_row": 7, "row_uuid": "c7810f72-4c65-5379-8f95-ebdb0e88a278"}
TEXTS = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(['"', "\n", '",\n"', "\r\n", ",", ""])


def table_of(columns, rows=1):
    """Return a table with these columns, and behind them where its rows are from."""
    who = {name: pa.array([value] * rows, PLACE.field(name).type) for name, value in WHO.items()}
    return pa.table({**columns, **who})


def written(form, *tables):
    """Return the bytes of an object that holds these tables."""
    sink = io.BytesIO()
    writer = FORMS[form].writer(sink, tables[0].schema)
    for table in tables:
        writer.write_table(table)
    writer.close()
    return sink.getvalue()


def read(form, content):
    """Return the places in an object, as one table."""
    return pa.Table.from_batches(places(f"results/x.{form}", pa.BufferReader(content)), PLACE)


def cell(column):
    """Return how a column's only value stands in CSV, exactly."""
    line = written("csv", table_of({"x": column})).decode().partition("\n")[2]
    return line.removesuffix(f',"{WHO["source"]}",7,"{WHO["row_uuid"]}"\n')


@pytest.mark.parametrize("form", FORMS)
@given(values=st.lists(st.tuples(st.none() | TEXTS, TEXTS, st.integers(0, 2**63 - 1), TEXTS), min_size=1, max_size=20))
def test_whatever_a_row_holds_it_is_known_again(form, values):
    """Quotes, commas, newlines and empty texts in any column move no border between values or rows."""
    names = ["x", "source", "source_row", "row_uuid"]
    table = pa.table(dict(zip(names, map(list, zip(*values, strict=True)), strict=True)))
    table = table.cast(pa.schema([pa.field("x", pa.string()), *PLACE]))
    assert read(form, written(form, table)).to_pylist() == table.select(PLACE.names).to_pylist()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("piece", [1, 50, 300])
def test_rows_are_read_whole_however_small_the_pieces(form, piece, monkeypatch):
    """Pieces end anywhere: in a quoted newline, between two quotes, in a character of several bytes."""
    monkeypatch.setattr(forms, "_PIECE", piece)
    monkeypatch.setattr(forms, "_ROWS", 3)
    texts = ["a\nb", '"\n"', "", None, "ü" * 40, '""\n,', "\r\n", "plain"] * 5
    table = table_of({"x": texts}, 40)
    table = table.set_column(2, "source_row", pa.array(range(40), pa.int64()))
    content = written(form, table)
    assert read(form, content).equals(table.select(PLACE.names))
    batches = list(places(f"results/x.{form}", pa.BufferReader(content)))
    assert len(batches) > (9 if piece < 300 or form == "parquet" else 2), "it was read whole"


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_several_tables_make_one_object(form):
    """Rows follow each other, whatever comes at a time; a CSV object has its header once."""
    one, other = table_of({"x": ["a"]}), table_of({"x": ["b", "c"]}, 2)
    lines = written(form, one, other).decode().splitlines()
    assert len(lines) == 3 + (form == "csv")
    assert lines == written(form, pa.concat_tables([one, other])).decode().splitlines()


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([3.0]), "3.0"),
        (pa.array([0.1], pa.float32()), "0.1"),
        (pa.array([math.nan]), ""),
        (pa.array([2**63], pa.uint64()), "9223372036854775808"),
        (pa.array([True]), "true"),
        (pa.array([Decimal("1.50")]), "1.50"),
        (pa.array([datetime(2026, 11, 21, 12, 0, 0, 500_000, UTC)]), "2026-11-21T12:00:00.5Z"),
        (pa.array([date(2026, 11, 21)]), "2026-11-21"),
        (pa.array([timedelta(seconds=90)]), "PT1M30S"),
        (pa.array([b"\x00\xff"]), f'"{base64.b64encode(bytes([0, 255])).decode()}"'),
        (pa.array([""]), '""'),
        (pa.array([None], pa.string()), ""),
        (pa.array([None], pa.int64()), ""),
        (pa.array([None], pa.null()), ""),
        (pa.array([None], pa.list_(pa.int64())), ""),
        (pa.array(["null"]), '"null"'),
        (pa.array(['say "no"']), '"say ""no"""'),
        (pa.array(["a"]).dictionary_encode(), '"a"'),
        (pa.array([[1.0, None]]), '"[1.0,null]"'),
        (pa.array([{"a": "x", "b": None}]), '"{""a"":""x"",""b"":null}"'),
    ],
    ids=str,
)
def test_a_csv_cell_is_what_json_has_there(column, expected):
    """Numbers and times are bare, anything else is in quotes, and null is nothing at all."""
    assert cell(column) == expected


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_text_that_is_no_text_is_still_written(form):
    """Kept bytes that are not UTF-8 are shown with U+FFFD, as in a dead letter; the object is UTF-8."""
    broken = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff"))
    assert "a\ufffd" in written(form, table_of({"x": broken})).decode()


def test_a_jsonl_line_is_the_row_by_its_rules():
    """A JSON text as prediction is a string, declared fields are an object."""
    columns = {"x": [1.0], "prediction": ['{"a": 1}']}
    assert json.loads(written("jsonl", table_of(columns))) == {"x": 1.0, "prediction": '{"a": 1}', **WHO}
    typed = table_of({"prediction": [{"a": 1, "b": None}]})
    assert json.loads(written("jsonl", typed)) == {"prediction": {"a": 1, "b": None}, **WHO}
    rows = RowEncoder(typed.schema, typed.schema.names, rename={})
    assert written("jsonl", typed) == rows.encode(typed.to_batches()[0]).lines


@given(st.lists(st.tuples(TEXTS, st.none() | st.floats(allow_nan=False, allow_infinity=False)), min_size=1))
def test_other_readers_of_csv_find_the_same_values(values):
    """Python's reader and Arrow's take our quotes as we mean them, and numbers as numbers."""
    texts, numbers = map(list, zip(*values, strict=True))
    table = table_of({"t": texts, "x": pa.array(numbers, pa.float64())}, len(values))
    content = written("csv", table)
    rows = list(csv.DictReader(io.StringIO(content.decode(), newline="")))
    assert [row["t"] for row in rows] == texts
    assert [float(row["x"]) if row["x"] else None for row in rows] == numbers
    options = pa.csv.ParseOptions(newlines_in_values=True)
    strict = pa.csv.ConvertOptions(column_types={"t": pa.string(), "x": pa.float64()}, strings_can_be_null=True,
                                   quoted_strings_can_be_null=False)  # fmt: skip
    assert pa.csv.read_csv(io.BytesIO(content), parse_options=options, convert_options=strict).equals(table)


def test_an_object_is_in_the_store_as_it_was_written(tmp_path):
    """A draft is what a writer writes to, in every form."""
    store = Store(str(tmp_path))
    for form in FORMS:
        with store.create("results") as draft:
            writer = FORMS[form].writer(draft, table_of({"x": ["a"]}).schema)
            writer.write_table(table_of({"x": ["a"]}))
            writer.close()
            stored = draft.keep(f"results/x.{form}")
        assert stored.size == (tmp_path / "results" / f"x.{form}").stat().st_size
        with store.open(stored.name) as file:
            assert [one.to_pylist() for one in places(stored.name, file)] == [[WHO]]


def parquet(table):
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.parquet", b"no such thing"),
        ("x.parquet", parquet(pa.table({"source": ["a"]}))),
        ("x.parquet", parquet(pa.table({"source": ["a"], "source_row": ["b"], "row_uuid": ["c"]}))),
        ("x.jsonl", b'{"source": "a"\n'),
        ("x.jsonl", b'{"source_row": "7"}\n'),
        ("x.jsonl", b'{"source_row": 9223372036854775808}\n'),
        ("x.jsonl", b'{"source": "\xff"}\n'),
        ("x.csv", b'"source","source_row"\n"a",7\n'),
        ("x.csv", b'"source","source_row","row_uuid"\n"a",seven,"b"\n'),
        ("x.csv", b'"source","source_row","row_uuid"\n"a",7\n'),
        ("x.csv", b'"source","source_row","row_uuid"\n"a",7,"b\n'),
        ("x.csv", b'"source","source_row","row_uuid"\n"a",7,"b"'),
        ("x.jsonl", b"{}"),
        ("x.csv", b"\xff\n"),
        ("x.orc", b""),
        ("x", b""),
    ],
)
def test_what_is_of_no_form_is_told_in_one_line(name, content):
    """An object that is not what its suffix says is no row of anybody, and no traceback."""
    with pytest.raises(Unreadable, match=r"^its suffix is none of|^it cannot be read as|^it ends in") as told:
        list(places(f"results/{name}", pa.BufferReader(content)))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("content", [b"", b'"source","source_row","row_uuid"\n'])
def test_an_empty_csv_has_no_rows(content):
    """Nothing, or a header with nothing behind it."""
    assert read("csv", content).num_rows == 0


def test_a_kept_column_that_parquet_lacks_is_told_before_the_first_request():
    """Parquet has no calendar intervals; JSON has."""
    schema = pa.schema([pa.field("x", pa.month_day_nano_interval()), *PLACE])
    check_form("jsonl", schema)
    check_form("csv", schema)
    with pytest.raises(
        JobError, match=r"^output\.format: parquet cannot hold a column of the results: .*month_day_nano"
    ) as told:
        check_form("parquet", schema)
    assert "\n" not in str(told.value)


def test_a_kept_value_that_parquet_lacks_ends_the_run_in_one_line(tmp_path):
    """Parquet has no seconds, and milliseconds have no room for all of them; what was scored before is kept."""
    late = pa.array([0, 9_223_372_036_854_776], pa.timestamp("s"))
    table = jobs.flowers(2).append_column("late", late)
    (tmp_path / "in").mkdir()
    with pa.OSFile(str(tmp_path / "in" / "a.arrow"), "wb") as file, ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    with recording() as service:
        given = {"path": "in/*.arrow", "send": jobs.SEND, "keep": ["late"]}
        job = jobs.job_file(tmp_path, service.url, input=given, service={"url": service.url, "auth": {"type": "none"}})
        told = jobs.call("run", job, "-q")
    assert told.code == 2
    assert re.search(
        r"^ERROR output\.format: parquet cannot hold a value of the results: .*timestamp", told.err, re.MULTILINE
    )
    assert "Traceback" not in told.err


@pytest.mark.parametrize("form", ["jsonl", "csv"])  # Parquet has no such column
def test_dictionaries_of_lists_are_written_whatever_each_piece_has(form):
    """Arrow does not join pieces that have such dictionaries of their own."""

    def piece(number):
        lists = pa.array([[number]], pa.list_(pa.int64()))
        return table_of({"x": pa.DictionaryArray.from_arrays(pa.array([0], pa.int32()), lists)})

    assert read(form, written(form, pa.concat_tables([piece(1), piece(2)]))).num_rows == 2
