from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from anyarrow import TENSOR, TURNED, build
from hypothesis import given, settings
from hypothesis import strategies as st
from slowjson import as_said, batch_of, same, tables

from pipeline.encode import RowEncoder
from pipeline.errors import JobError


def encode(array, **options):
    batch = pa.record_batch({"x": array})
    return RowEncoder(batch.schema, ["x"], **{"rename": {}} | options).encode(batch)


def texts(array, **options):
    """Return how the values of a column are written."""
    lines = encode(array, **options).lines.decode().split("\n")[:-1]
    return [line.removeprefix('{"x":').removesuffix("}") for line in lines]


@settings(max_examples=300)
@given(tables(), st.booleans())
def test_every_line_is_what_a_slow_obvious_encoder_says(table, reject_nan):
    """Any types in any nesting, anything under the nulls, any offsets: each row is as it is meant, or refused."""
    schema, rows = table
    encoded = RowEncoder(schema, schema.names, rename={}, reject_nan=reject_nan).encode(batch_of(schema, rows))
    lines = encoded.lines.decode().split("\n")[:-1]
    assert len(lines) == len(encoded.ends) == len(rows)
    for at, (line, value) in enumerate(zip(lines, as_said(schema, rows, reject_nan=reject_nan), strict=True)):
        assert (value is None) == (at in encoded.refused)
        assert value is None or same(json.loads(line, parse_float=Decimal), value)


def ticks(kind, *values):
    return pa.array(values, pa.int32() if kind.bit_width == 32 else pa.int64()).view(kind)


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (pa.timestamp("s"), 0, "1970-01-01T00:00:00"),
        (pa.timestamp("s", "UTC"), 0, "1970-01-01T00:00:00Z"),
        (pa.timestamp("s", "Asia/Shanghai"), 0, "1970-01-01T00:00:00Z"),
        (pa.timestamp("s", "-08:00"), 10, "1970-01-01T00:00:10Z"),
        (pa.timestamp("ms"), -1, "1969-12-31T23:59:59.999"),
        (pa.timestamp("us"), 1_600_000_000_000_000, "2020-09-13T12:26:40"),
        (pa.timestamp("us", "Europe/Berlin"), 1_600_000_000_120_000, "2020-09-13T12:26:40.12Z"),
        (pa.timestamp("ns"), 1, "1970-01-01T00:00:00.000000001"),
        (pa.timestamp("ns"), -(2**63), "1677-09-21T00:12:43.145224192"),
        (pa.timestamp("ns"), 2**63 - 1, "2262-04-11T23:47:16.854775807"),
        (pa.timestamp("s"), -62_135_596_800, "0001-01-01T00:00:00"),
        (pa.timestamp("s"), 253_402_300_799, "9999-12-31T23:59:59"),
        (pa.date32(), 0, "1970-01-01"),
        (pa.date32(), -719_162, "0001-01-01"),
        (pa.date32(), 2_932_896, "9999-12-31"),
        (pa.date64(), -86_400_000, "1969-12-31"),
        (pa.time32("s"), 36_000, "10:00:00"),
        (pa.time32("ms"), 36_000_500, "10:00:00.5"),
        (pa.time64("us"), 1, "00:00:00.000001"),
        (pa.time64("ns"), 86_399_999_999_999, "23:59:59.999999999"),
        (pa.duration("s"), 0, "PT0S"),
        (pa.duration("ms"), 1_500, "PT1.5S"),
        (pa.duration("ms"), -1, "-PT0.001S"),
        (pa.duration("s"), 93_600, "P1DT2H"),
        (pa.duration("s"), 60, "PT1M"),
        (pa.duration("ns"), 10**9 + 10, "PT1.00000001S"),
        (pa.duration("us"), -(2**63), "-P106751991DT4H54.775808S"),
        (pa.duration("s"), 2**63 - 1, "P106751991167300DT15H30M7S"),
    ],
)
def test_dates_times_and_durations_are_iso_8601(kind, value, text):
    """With the digits they need, `Z` where there is a zone, and beside nulls, in lists and in dictionaries too."""
    array = ticks(kind, value, None)
    assert texts(array) == [f'"{text}"', "null"]
    assert texts(pa.ListArray.from_arrays([0, 2], array)) == [f'["{text}",null]']
    assert texts(pa.DictionaryArray.from_arrays([1, 0], array)) == ["null", f'"{text}"']


@given(st.integers(-(2**63), 2**63 - 1))
def test_a_duration_is_read_back_by_others(span):
    """A reader of ISO 8601 that others wrote gets the same span, to the microsecond."""
    (text,) = texts(ticks(pa.duration("us"), span))
    assert msgspec.json.decode(text, type=timedelta) == timedelta(microseconds=span)


@pytest.mark.parametrize(
    ("value", "text"),
    [((0, 0, 0), "PT0S"), ((14, 3, 90 * 10**9), "P1Y2M3DT1M30S"), ((0, 0, 25 * 3600 * 10**9), "PT25H")],
)
def test_an_interval_keeps_months_days_and_time_apart(value, text):
    """Only what is always equal is counted together: a year has 12 months, but no day has 24 hours for sure."""
    array = pa.array([value, tuple(-part for part in value)], pa.month_day_nano_interval())
    assert texts(array) == [f'"{text}"', f'"-{text}"' if any(value) else f'"{text}"']


@pytest.mark.parametrize(
    ("array", "fault"),
    [
        (ticks(pa.timestamp("s"), 253_402_300_800), " is 253402300800 s since 1970, not within the years 1 to 9999"),
        (ticks(pa.timestamp("s"), -62_135_596_801), " is -62135596801 s since 1970, not within the years 1 to 9999"),
        (ticks(pa.date32(), 2_932_897), " is 2932897 days since 1970, not within the years 1 to 9999"),
        (ticks(pa.date64(), 2**62), f" is {2**62} ms since 1970, not within the years 1 to 9999"),
        (ticks(pa.time32("s"), 86_400), " is 86400 s since midnight, not within a day"),
        (ticks(pa.time64("ns"), -1), " is -1 ns since midnight, not within a day"),
        (
            pa.array([(1, -1, 0)], pa.month_day_nano_interval()),
            " is 1 months, -1 days, 0 ns, and ISO 8601 has one sign for all",
        ),
    ],
)
def test_an_instant_that_iso_8601_cannot_write_costs_its_row(array, fault):
    """It is null in the line, wherever it lies; its neighbours are sent."""
    three = pa.concat_arrays([pa.nulls(1, array.type), array, array])
    assert encode(three).refused == {1: f"x{fault}", 2: f"x{fault}"}
    assert texts(three) == ["null"] * 3
    lists = pa.ListArray.from_arrays([0, 1, 3], three)
    assert encode(lists).refused == {1: f"x[0]{fault}"}


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (pa.array([Decimal("9" * 76)], pa.decimal256(76, 0)), "9" * 76),
        (pa.array([Decimal("-0.50")], pa.decimal256(40, 2)), "-0.50"),
        (pa.array([[1.5, None]], pa.list_(pa.float32())), "[1.5,null]"),
        (pa.array([[]], pa.list_(pa.int8())), "[]"),
        (pa.array([[np.float16(0.1)]], pa.list_(pa.float16(), 1)), "[0.1]"),
        (pa.array([{"a": 1, "b c": {"d": b"\0"}}]), '{"a":1,"b c":{"d":"AA=="}}'),
        (pa.array([{}], pa.struct([])), "{}"),
        (pa.array([[("k", 3.0)]], pa.map_(pa.string(), pa.float64())), '{"k":3.0}'),
        (pa.array([[(1, "v"), (1, None)]], pa.map_(pa.int64(), pa.string())), '[[1,"v"],[1,null]]'),
        (pa.array([b"\0" * 16], pa.uuid()), '"00000000-0000-0000-0000-000000000000"'),
        (pa.ExtensionArray.from_storage(pa.bool8(), pa.array([2], pa.int8())), "true"),
        (pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a": 1}'])), r'"{\"a\": 1}"'),
        (build([[1.0, 2, 3, 4, 5, None]], TENSOR), "[[1.0,2.0,3.0],[4.0,5.0,null]]"),
        (build([[1, 2, 3, 4, 5, 6]], TURNED), "[[1,4],[2,5],[3,6]]"),
    ],
)
def test_a_nested_or_special_value_is_written_as_the_rules_of_the_row_say(array, text):
    """Structs and maps with text keys are objects, other maps lists of pairs; the leaves are as they are alone."""
    assert texts(array) == [text]


def test_a_map_that_no_object_can_say_costs_its_row():
    """Of two equal keys a reader would see one, and a name cannot be null."""
    doubled = pa.MapArray.from_arrays([0, 2, 3], pa.array(["k", "k", "k"]), pa.array([1, 2, 3]))
    assert encode(doubled).refused == {0: "x has the same key twice"}
    keys = pa.DictionaryArray.from_arrays([0, 1], pa.array([None, "k"]))  # the only way round Arrow's own check
    unnamed = pa.MapArray.from_arrays([0, 1, 2], keys, pa.array([1, 2]))
    assert encode(unnamed).refused == {0: "x has a null among its keys"}
    assert texts(unnamed) == ['{"":1}', '{"k":2}']


def test_a_fault_says_where_in_the_value_it_is():
    """The reason has the path below the column: a field's name, an item's place."""
    rows = [[{"y": 1.0}], [{"y": 2.0}, None, {"y": np.nan}], None]
    array = pa.array(rows, pa.list_(pa.struct({"y": pa.float32()})))
    assert encode(array, reject_nan=True).refused == {1: "x[2].y is nan, and the job file says nan: reject"}
    assert encode(array).refused == {}


def test_what_lies_under_a_null_is_neither_sent_nor_a_fault():
    """A null list or struct between others may hide anything: a NaN there refuses no row."""
    floats, mask = pa.array([1.0, np.nan, 3.0]), pa.array([False, True, False])
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3]), floats, mask=mask)
    structs = pa.StructArray.from_arrays([floats], ["y"], mask=mask)
    for array, written in (lists, ["[1.0]", "null", "[3.0]"]), (structs, ['{"y":1.0}', "null", '{"y":3.0}']):
        assert texts(array) == written
        assert encode(array, reject_nan=True).refused == {}


@pytest.mark.parametrize("kind", [pa.list_(pa.int8(), 2), pa.list_(pa.int8()), pa.list_view(pa.int8())])
def test_a_slice_of_lists_has_its_own_items(kind):
    """Lists are cut where they lie, wherever the column starts."""
    assert texts(build([[1, 2], [3, 4], [5, 6], None], kind).slice(1)) == ["[3,4]", "[5,6]", "null"]


def test_a_text_that_is_not_utf8_costs_its_row_wherever_it_lies():
    """In a list, in a dictionary, in a key; the bytes of its neighbours and what lies under a null do not matter."""
    raw = pa.array([b"good", b"b\xffd"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    mask = pa.array([False, False, True])
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 2, 2]), text)
    assert encode(lists).refused == {1: "x[0] is not UTF-8"}
    hidden = pa.ListArray.from_arrays(pa.array([0, 1, 1, 2]), text, mask=mask)
    assert encode(hidden).refused == {}
    assert encode(pa.DictionaryArray.from_arrays([1, 0, 1], text)).refused == dict.fromkeys((0, 2), "x is not UTF-8")
    maps = pa.MapArray.from_arrays([0, 1, 2], text, pa.array([1, 2]))
    assert encode(maps).refused == {1: "x[0] is not UTF-8"}


def test_a_run_is_as_long_as_it_says():
    """Runs are rows; a slice may begin and end within a run."""
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([3, 5, 9], pa.int16()), pa.array([[1], None, [2]]))
    assert texts(runs) == ["[1]"] * 3 + ["null"] * 2 + ["[2]"] * 4
    assert texts(runs.slice(2, 4)) == ["[1]", "null", "null", "[2]"]


UNION = pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])])


@pytest.mark.parametrize(
    ("array", "what"),
    [
        (UNION, "a union"),
        (pa.ListArray.from_arrays([0, 1], UNION), "a union"),
        (pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"]), "a struct with two fields 'a'"),
    ],
)
@pytest.mark.parametrize("key", ["input.send", "input.keep"])
def test_a_type_without_a_json_form_is_an_error_of_the_job(array, what, key):
    """The message names the key, the column, its type, what in it is the trouble, and the mend."""
    with pytest.raises(JobError) as error:
        encode(array, key=key)
    assert str(error.value) == f"{key}: column 'x' has type {array.type}, and {what} has no JSON form; leave it out"


def test_what_parquet_brings_back_is_written_the_same(tmp_path):
    """Types come out of a Parquet file as they went in, or by their storage, and are written alike."""
    table = pa.table(
        {
            "when": ticks(pa.timestamp("ns", "UTC"), 1_500_000_000),
            "day": ticks(pa.date32(), 1),
            "at": ticks(pa.time64("us"), 1_000_000),
            "took": ticks(pa.duration("ms"), 1_500),
            "price": pa.array([Decimal("1.10")], pa.decimal256(50, 2)),
            "embedding": pa.array([[np.float32(0.1), np.nan]], pa.list_(pa.float32(), 2)),
            "tags": pa.array([[("k", [{"a": None}])]], pa.map_(pa.string(), pa.list_(pa.struct({"a": pa.int64()})))),
            "id": pa.array([b"\x01" * 16], pa.uuid()),
            "none": pa.nulls(1),
        }
    )
    pq.write_table(table, tmp_path / "x.parquet")
    (batch,) = pq.ParquetFile(tmp_path / "x.parquet").iter_batches()
    line = RowEncoder(batch.schema, batch.schema.names, rename={}).encode(batch).lines.decode()
    assert line == (
        '{"when":"1970-01-01T00:00:01.5Z","day":"1970-01-02","at":"00:00:01","took":"PT1.5S","price":1.10,'
        '"embedding":[0.1,null],"tags":{"k":[{"a":null}]},"id":"01010101-0101-0101-0101-010101010101","none":null}\n'
    )
