"""JSON texts as columns: what is written reads back, what does not fit is a fault of its own row."""

from __future__ import annotations

import base64
import json
import math
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import types

from pipeline.jsonrows import JsonRows
from pipeline.jsontypes import NotFromJson, reading_of


def plain(value):
    return json.dumps(value)


def iso(value):
    return json.dumps(value.isoformat())


def span(value):
    sign, value = ("-", -value) if value < timedelta() else ("", value)
    return f'"{sign}P{value.days}DT{value.seconds}.{value.microseconds:06d}S"'


def ints(low, high):
    return st.integers(low, high), plain


def floats(width):
    return st.floats(width=width, allow_nan=False, allow_infinity=False), plain


def moments(micros, *, first=1, last=9999, zone=None):
    """Instants with so many microseconds to the tick."""
    drawn = st.datetimes(datetime(first, 1, 1), datetime(last, 12, 31))  # noqa: DTZ001 - the zone is put on below
    cut = drawn.map(lambda one: one.replace(microsecond=one.microsecond // micros * micros, tzinfo=zone))
    digits = {1: "microseconds", 1000: "milliseconds", 10**6: "seconds"}[micros]  # Arrow reads no more than fit
    return cut, lambda value: plain(value.isoformat(timespec=digits))


def decimals(digits, places):
    bound = 10**digits - 1
    drawn = st.integers(-bound, bound).map(lambda ticks: Decimal(f"{ticks}E-{places}"))
    return drawn, lambda value: f"{value:f}"


TIMES = st.times()
SPANS = st.timedeltas(timedelta(days=-100_000), timedelta(days=100_000))
TEXT = (st.text(), plain)
BINARY = (st.binary(), lambda value: plain(base64.b64encode(value).decode()))
LEAVES = {
    pa.bool_(): (st.booleans(), plain),
    pa.int8(): ints(-(2**7), 2**7 - 1),
    pa.uint16(): ints(0, 2**16 - 1),
    pa.int64(): ints(-(2**63), 2**63 - 1),
    pa.uint64(): ints(0, 2**64 - 1),
    pa.float16(): (floats(16)[0].map(np.float16), lambda value: plain(float(value))),
    pa.float32(): floats(32),
    pa.float64(): floats(64),
    pa.string(): TEXT,
    pa.large_string(): TEXT,
    pa.string_view(): TEXT,
    pa.binary(): BINARY,
    pa.large_binary(): BINARY,
    pa.binary_view(): BINARY,
    pa.binary(2): (st.binary(min_size=2, max_size=2), BINARY[1]),
    pa.decimal32(9, 2): decimals(9, 2),
    pa.decimal128(38, 9): decimals(38, 9),
    pa.decimal256(76, 0): decimals(76, 0),
    pa.date32(): (st.dates(), iso),
    pa.date64(): (st.dates(), iso),
    pa.time32("s"): (TIMES.map(lambda one: one.replace(microsecond=0)), iso),
    pa.time64("us"): (TIMES, iso),
    pa.time64("ns"): (TIMES, iso),
    pa.timestamp("s"): moments(10**6),
    pa.timestamp("ms"): moments(1000),
    pa.timestamp("us"): moments(1),
    pa.timestamp("ns"): moments(1, first=1700, last=2200),
    pa.timestamp("us", "Europe/Berlin"): moments(1, zone=UTC),
    pa.duration("us"): (SPANS, span),
    pa.duration("ns"): (SPANS, span),
}
"""Types that hold no other: how their values are drawn, and how one is written."""


def nested(inner):
    return st.one_of(
        st.builds(pa.list_, inner),
        st.builds(pa.large_list, inner),
        st.builds(pa.list_, inner, st.just(2)),
        st.lists(st.tuples(st.text(), inner), max_size=3, unique_by=lambda field: field[0]).map(pa.struct),
        st.builds(pa.map_, st.sampled_from([pa.string(), pa.int64(), pa.date32()]), inner),
    )


KINDS = st.recursive(st.sampled_from(list(LEAVES)), nested, max_leaves=4)


def values_of(kind):
    """Values of a type, null or not."""
    if kind in LEAVES:
        value = LEAVES[kind][0]
    elif types.is_struct(kind):
        value = st.fixed_dictionaries({field.name: values_of(field.type) for field in kind})
    elif types.is_map(kind):
        value = st.dictionaries(LEAVES[kind.key_type][0], values_of(kind.item_type), max_size=3).map(
            lambda pairs: list(pairs.items())
        )
    else:
        size = (2, 2) if types.is_fixed_size_list(kind) else (0, 3)
        value = st.lists(values_of(kind.value_type), min_size=size[0], max_size=size[1])
    return st.none() | value


def written(kind, value):
    """Write a value of a type as JSON, in the obvious way."""
    if value is None:
        return "null"
    if kind in LEAVES:
        return LEAVES[kind][1](value)
    if types.is_struct(kind):
        return an_object([(field.name, written(field.type, value[field.name])) for field in kind])
    if types.is_map(kind):
        pairs = [(key, written(kind.item_type, item)) for key, item in value]
        if kind.key_type == pa.string():
            return an_object(pairs)
        return f"[{', '.join(f'[{written(kind.key_type, key)}, {item}]' for key, item in pairs)}]"
    return f"[{', '.join(written(kind.value_type, item) for item in value)}]"


def an_object(pairs):
    return "{" + ", ".join(f"{json.dumps(name)}: {text}" for name, text in pairs) + "}"


@st.composite
def tables(draw):
    kinds = draw(st.dictionaries(st.text(), KINDS, max_size=4))
    rows = draw(st.lists(st.fixed_dictionaries({name: values_of(kind) for name, kind in kinds.items()}), max_size=5))
    return kinds, rows


@settings(max_examples=300)
@given(tables(), st.booleans())
def test_what_is_written_reads_back(table, loose):
    """Any table of any types, written the obvious way, is read as it was."""
    kinds, rows = table
    lines = [an_object([(name, written(kind, row[name])) for name, kind in kinds.items()]).encode() for row in rows]
    found, faults = JsonRows(kinds, loose=loose).decode(lines)
    assert faults == {}
    assert found.num_rows == len(rows)
    assert found.schema.equals(pa.schema(list(kinds.items())))
    for name, kind in kinds.items():
        assert found.column(name).equals(pa.array([row[name] for row in rows], kind)), name


ODD_TYPES = {
    "a": pa.int8(),
    "b": pa.float32(),
    "c": pa.string(),
    "d": pa.list_(pa.timestamp("us")),
    "e": pa.decimal128(5, 2),
    "f": pa.map_(pa.string(), pa.int64()),
    "g": pa.binary(2),
    "h": pa.struct([("x", pa.float64()), ("y", pa.duration("s"))]),
}
NUMBERS = st.integers(-300, 300) | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
WORDS = st.text(max_size=3) | st.sampled_from(
    ["2024-02-30", "2024-02-29T01:02:03", "PT1S", "P1M", "ab==", "YWI=", "1E3"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=3),
    max_leaves=5,
)
GOOD = b'{"a": 1, "b": 2.5, "c": "x", "d": [null], "e": 1.5, "f": {"k": 1}, "g": "YWI=", "h": {"x": 1}}'
OBJECTS = st.dictionaries(st.sampled_from("abcdefghi"), VALUES, max_size=4).map(json.dumps).map(str.encode)
JUNK = st.sampled_from(
    [
        b"null",
        b"[]",
        b"{}{}",
        b'{"a": 1, "a": "x"}',
        b'{"a": "x", "a": 1}',
        b'{"a": NaN}',
        b'{"b": -Infinity}',
        b'{"b": 1e39}',
        b'{"e": 1e-999999999}',
        b'{"e": 1e999999999999999999999}',
        b'{"a": %s}' % (b"9" * 5000),
        b'{"i": %s}' % (b"9" * 5000),
        b'{"c": "\\ud800"}',
        b'{"i": "\xff"}',
        b'{"\xff": 1}',
        b'{"c": "\xc3',
        b'\xa9"}',
        b'{"i": %s}' % (b"[" * 100_000),
        b'{"i": %s1%s}' % (b"[" * 100_000, b"]" * 100_000),
        b'{"d": ["2024-01-01"], "d": 3}',
        b"\xef\xbb\xbf{}",
    ]
)


@st.composite
def damaged(draw):
    """A line with some bytes taken out and some put in."""
    line = draw(OBJECTS | st.just(GOOD))
    start = draw(st.integers(0, len(line)))
    return line[:start] + draw(st.binary(max_size=2)) + line[start + draw(st.integers(0, 3)) :]


@settings(max_examples=300)
@given(st.lists(st.just(GOOD) | OBJECTS | JUNK | damaged() | st.binary(), max_size=8), st.booleans())
def test_what_becomes_of_a_row_is_its_own(lines, loose):
    """Any lines: never an exception, and each row is what it would be alone; a faulty one is null."""
    rows = JsonRows(ODD_TYPES, loose=loose)
    found, faults = rows.decode(lines)
    found.validate(full=True)
    alone = [rows.decode([line]) for line in lines]
    assert faults == {at: fault[0] for at, (_, fault) in enumerate(alone) if fault}
    assert found.to_pylist() == [row for one, _ in alone for row in one.to_pylist()]
    assert all(value is None for at in faults for value in found.slice(at, 1).to_pylist()[0].values())


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (pa.float64(), "3", 3.0),
        (pa.float64(), "9007199254740993", 9007199254740992.0),
        (pa.float64(), "1e-400", 0.0),
        (pa.int64(), "3.0", 3),
        (pa.int64(), "-3e2", -300),
        (pa.int64(), "9223372036854775807", 2**63 - 1),
        (pa.uint64(), "18446744073709551615", 2**64 - 1),
        (pa.list_(pa.int32()), "[1.0, null, 2]", [1, None, 2]),
        (
            pa.decimal128(38, 20),
            "123456789012345678.12345678901234567890",
            Decimal("123456789012345678.1234567890123456789"),
        ),
        (pa.decimal128(5, 2), '"1.5"', Decimal("1.50")),
        (pa.decimal128(5, 2), "1.5000", Decimal("1.50")),
        (pa.decimal128(5, 2), "1e2", Decimal("100.00")),
        (pa.string(), r'"\ud83d\ude00\u0000"', "\U0001f600\0"),
        (pa.date32(), '"2024-02-29"', date(2024, 2, 29)),
        (pa.time32("ms"), '"10:11"', time(10, 11)),
        (pa.timestamp("us"), '"2024-02-29 01:02:03.5"', datetime(2024, 2, 29, 1, 2, 3, 500_000)),  # noqa: DTZ001
        (pa.timestamp("us", "UTC"), '"2024-02-29T01:02:03+02:00"', datetime(2024, 2, 28, 23, 2, 3, tzinfo=UTC)),
        (pa.duration("s"), '"P1DT2H3M4S"', timedelta(days=1, hours=2, minutes=3, seconds=4)),
        (pa.duration("ms"), '"-PT0.001S"', timedelta(milliseconds=-1)),
        (pa.duration("ms"), '"PT0.0010S"', timedelta(milliseconds=1)),
        (pa.map_(pa.string(), pa.int8()), '[["a", 1], ["a", null]]', [("a", 1), ("a", None)]),
        (pa.struct([("x", pa.int8()), ("y", pa.int8())]), '{"z": 1, "y": 2}', {"x": None, "y": 2}),
        (pa.struct([("x", pa.int8())]), "{}", {"x": None}),
        (pa.struct([]), "{}", {}),
        (pa.null(), "null", None),
    ],
)
def test_values_keep_what_they_are(kind, text, value):
    """Numbers of one kind fit the other where nothing is lost; text is read as Arrow reads it."""
    found, faults = JsonRows({"x": kind}, loose=False).decode([b'{"x": %s}' % text.encode()])
    assert faults == {}
    assert found.column("x").to_pylist() == [value]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (pa.float64(), '"abc"'),
        (pa.float64(), "true"),
        (pa.float64(), "1e400"),
        (pa.float32(), "1e39"),
        (pa.float16(), "65520"),
        (pa.int64(), "3.5"),
        (pa.int64(), "true"),
        (pa.int64(), '"3"'),
        (pa.int64(), "9223372036854775808"),
        (pa.int64(), "9007199254740993.0"),
        (pa.int8(), "128"),
        (pa.uint8(), "-1"),
        (pa.bool_(), "1"),
        (pa.null(), "0"),
        (pa.string(), "5"),
        (pa.string(), '{"a": 1}'),
        (pa.binary(), '"a"'),
        (pa.binary(2), '"YQ=="'),
        (pa.decimal128(5, 2), "1.234"),
        (pa.decimal128(5, 2), "1000"),
        (pa.decimal128(5, 2), "1e-999999999"),
        (pa.decimal128(5, 2), '"NaN"'),
        (pa.date32(), '"2024-02-30"'),
        (pa.date32(), "20240229"),
        (pa.time32("s"), '"10:11:12.5"'),
        (pa.time32("s"), '"24:00:00"'),
        (pa.timestamp("us"), '"2024-02-29T00:00:00Z"'),
        (pa.timestamp("us", "UTC"), '"2024-02-29T00:00:00"'),
        (pa.duration("s"), '"P1M"'),
        (pa.duration("s"), '"P"'),
        (pa.duration("s"), '"P1DT"'),
        (pa.duration("s"), '"PT0.5S"'),
        (pa.duration("ns"), '"P9999999D"'),
        (pa.list_(pa.int8()), "[1, 128]"),
        (pa.list_(pa.int8()), "1"),
        (pa.list_(pa.int8(), 2), "[1]"),
        (pa.struct([("x", pa.int8())]), '{"x": "1"}'),
        (pa.struct([("x", pa.int8())]), "[1]"),
        (pa.map_(pa.string(), pa.int8()), '[["a"]]'),
        (pa.map_(pa.string(), pa.int8()), "[[null, 1]]"),
        (pa.map_(pa.int8(), pa.int8()), '{"1": 1}'),
    ],
)
def test_what_does_not_fit_is_said(kind, text):
    """The fault names the column, the value and the type; neighbours and other columns of other rows stay."""
    lines = [b'{"x": null, "y": 1}', b'{"x": %s, "y": 2}' % text.encode(), b'{"y": 3}']
    found, faults = JsonRows({"x": kind, "y": pa.int64()}, loose=False).decode(lines)
    assert faults == {1: f"x is {text}, which is no {kind}"}
    assert found.column("x").to_pylist() == [None] * 3
    assert found.column("y").to_pylist() == [1, None, 3]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"[1, 2]", "[1, 2] is not an object"),
        (b'"text"', '"text" is not an object'),
        (b"null", "null is not an object"),
        (b"{", "the line is not JSON: Input data was truncated"),
        (b'{"x": 1} 2', "the line is not JSON: trailing characters (byte "),
        (b'{"x": NaN}', "the line is not JSON: invalid character (byte 6)"),
        (b'{"y": "\xff"}', "the line is not JSON: 'utf-8' codec can't decode byte 0xff in position 7"),
        pytest.param(b'{"y": %s}' % (b"[" * 100_000), "the line is nested too deeply", id="deep"),
        (b'{"x": %s}' % (b"1" * 100), f"x is {'1' * 80}..., which is no int64"),
    ],
)
def test_a_line_that_is_no_row_is_said(line, fault):
    """The fault says what is wrong with the line."""
    found, faults = JsonRows({"x": pa.int64()}, loose=True).decode([b'{"x": 1}', line])
    assert list(faults) == [1]
    assert faults[1].startswith(fault)
    assert found.to_pylist() == [{"x": 1}, {"x": None}]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_loose_text_is_what_stands_in_the_line(kind):
    """In an input a text column takes any value, letter by letter; nulls stay nulls."""
    texts = ["5", "1.50e+03", "true", '{"a" :  [1,\t"\\u00e9"]}', "null", '"5"', '"\\u00e9"', "9" * 5000]
    lines = [f'{{"x":  {text} , "y": 0}}'.encode() for text in texts]
    found, faults = JsonRows({"x": kind}, loose=True).decode(lines)
    assert faults == {}
    assert found.column("x").to_pylist() == [*texts[:4], None, "5", "é", "9" * 5000]


def test_the_last_of_equal_keys_counts():
    """Also where only the first one fits, or only the last."""
    lines = [b'{"x": 1, "x": 2}', b'{"x": "a", "x": 3}', b'{"x": 1, "x": "a"}', rb'{"x": 1, "\u0078": 4}']
    found, faults = JsonRows({"x": pa.int64()}, loose=False).decode(lines)
    assert list(faults) == [2]
    assert found.column("x").to_pylist() == [2, 3, None, 4]


def test_raw_texts_of_a_reply_are_read():
    """Values that msgspec left as they are need no copy."""
    raws = msgspec.json.decode(b'[{"x": 1}, {"x": 2.5, "z": []}, {}, 5]', type=list[msgspec.Raw])
    found, faults = JsonRows({"x": pa.float64()}, loose=False).decode(raws)
    assert faults == {3: "5 is not an object"}
    assert found.column("x").to_pylist() == [1.0, 2.5, None, None]


def test_rows_are_counted_without_columns():
    """A batch without columns has its rows, and its broken lines."""
    found, faults = JsonRows({}, loose=True).decode([b"{}", b'{"x": 1}', b"}"])
    assert (found.num_rows, list(faults)) == (3, [2])


def test_nothing_is_a_batch_too():
    """No lines are no rows, of the same types."""
    found, faults = JsonRows(ODD_TYPES, loose=True).decode([])
    assert (found.num_rows, faults) == (0, {})
    assert found.schema.names == list(ODD_TYPES)


@pytest.mark.parametrize(
    "kind",
    [
        pa.dictionary(pa.int8(), pa.string()),
        pa.month_day_nano_interval(),
        pa.list_(pa.uuid()),
        pa.struct([("x", pa.int8()), ("x", pa.int8())]),
    ],
)
def test_types_that_json_is_not_read_as_are_refused(kind):
    """They are known before the first row."""
    with pytest.raises(NotFromJson, match="JSON is not read as"):
        reading_of(kind)


def test_infinity_never_comes_out():
    """The largest single is read, and what rounds beyond it is not."""
    largest = float(np.finfo(np.float32).max)
    lines = [b'{"x": %s}' % repr(value).encode() for value in (largest, largest * 1.0000001)]
    found, faults = JsonRows({"x": pa.float32()}, loose=False).decode(lines)
    assert list(faults) == [1]
    assert math.isclose(found.column("x")[0].as_py(), largest)
