"""Casting columns: what fits keeps its value, what does not is null, with the reason."""

from __future__ import annotations

import base64
import json
import re
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from anyarrow import KINDS, LEAVES, build, values_of
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline import cast as casting
from pipeline.cast import cast
from pipeline.encode import RowEncoder

TEXTS = [pa.string(), pa.large_string(), pa.string_view()]
MONEY = pa.decimal128(5, 2)
BERLIN = pa.timestamp("us", "Europe/Berlin")
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
DAY = NOON.replace(hour=0, tzinfo=None)


def kept(name, column, kind):
    """Cast, and look whether what comes back is whole: a position is either kept or told."""
    values, faults = cast(name, column, kind)
    values.validate(full=True)
    assert values.type == kind
    assert len(values) == len(column)
    assert list(faults) == sorted(faults)
    return values, faults


# The text of a cell, the type it is declared to have, and its value.
READ = [
    ("-7", pa.int8(), -7),
    ("18446744073709551615", pa.uint64(), 2**64 - 1),
    ("1e-3", pa.float64(), 0.001),
    (".5", pa.float32(), 0.5),
    ("9007199254740993", pa.float64(), 2.0**53),
    ("-inf", pa.float64(), -np.inf),
    ("TRUE", pa.bool_(), True),
    ("0", pa.bool_(), False),
    ("1.50", MONEY, Decimal("1.50")),
    ("15e-1", MONEY, Decimal("1.50")),
    ("1." + "0" * 300, MONEY, Decimal("1.00")),
    ("2026-11-21", pa.date32(), date(2026, 11, 21)),
    ("2026-11-21 12:00", pa.timestamp("us"), NOON.replace(tzinfo=None)),
    ("2026-11-21T13:00:00+01:00", pa.timestamp("us", "UTC"), NOON),
    ("12:30", pa.time32("s"), time(12, 30)),
    ("12:30:00.000001", pa.time64("us"), time(12, 30, microsecond=1)),
    ("90", pa.duration("s"), timedelta(seconds=90)),
    ("PT1M30S", pa.duration("ms"), timedelta(seconds=90)),
    ("", pa.large_string(), ""),
    ("", pa.binary(), b""),
    ("AP8=", pa.binary(), b"\x00\xff"),
    ("AP8=", pa.binary(2), b"\x00\xff"),
    ("AP8=", pa.binary_view(), b"\x00\xff"),
    ("a", pa.dictionary(pa.int8(), pa.string()), "a"),
    ("1", pa.dictionary(pa.int8(), pa.int64()), 1),
    ("7", pa.run_end_encoded(pa.int16(), pa.int64()), 7),
    (" [1, null] ", pa.list_(pa.int64()), [1, None]),
    ("null", pa.list_(pa.int64()), None),
    ('{"a": 1.0, "c": 0}', pa.struct([("a", pa.float32()), ("b", pa.string())]), {"a": 1.0, "b": None}),
    ('{"x": [{}]}', pa.map_(pa.string(), pa.list_(pa.struct([]))), [("x", [{}])]),
    ('["AP8=", null]', pa.large_list(pa.binary()), [b"\x00\xff", None]),
]

# The text of a cell, and the type that it does not fit.
UNREAD = [
    *(("", kind) for kind in (pa.int64(), pa.float64(), pa.bool_(), MONEY, pa.date32(), pa.time32("s"))),
    *((text, pa.int64()) for text in (" 1", "1 ", "+1", "1.0", "1e3", "1_000", "9" * 20, "\u0663")),
    *((text, pa.float64()) for text in (" 1", "1,5", "1e400", "one")),
    ("1e39", pa.float32()),
    ("65520", pa.float16()),
    ("256", pa.uint8()),
    ("yes", pa.bool_()),
    *((text, MONEY) for text in ("1.234", "1000", "1_0", "nan", "1" * 300, "1e-999999999", "1e999999999")),
    ("2026-02-30", pa.date32()),
    ("2026-11-21 12:00", pa.date32()),
    ("2026-11-21T12:00:00Z", pa.timestamp("us")),
    ("2026-11-21T12:00:00", pa.timestamp("us", "UTC")),
    ("2026-11-21T12:00:00.5", pa.timestamp("s")),
    *((text, pa.time64("us")) for text in ("12", "24:00", " 12:30", "12:30Z", "12:30:00.1234567", "2026-11-21 12:30")),
    ("1.5", pa.duration("s")),
    ("PT1.5S", pa.duration("s")),
    *((text, pa.binary()) for text in ("AP8", "AP8==", "A P8=", "\u00e9", "=AP8")),
    ("AP8=", pa.binary(3)),
    ("x", pa.null()),
    ("300", pa.dictionary(pa.int32(), pa.int8())),
    *((text, pa.list_(pa.int64())) for text in ("", "1", "{}", "[1", "[1.5]", '["a"]', "[1],[2]")),
    ("[1]", pa.list_(pa.int64(), 2)),
    ("[]", pa.struct([("a", pa.int64())])),
    ("[1]", pa.dense_union([pa.field("a", pa.int64())])),
    ("\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"), pa.int64()),
]

# A type, its value, another type, and the value in it.
FIT = [
    (pa.float64(), 3.0, pa.int64(), 3),
    (pa.float64(), 0.1, pa.float32(), np.float32(0.1)),
    (pa.float64(), np.inf, pa.float32(), np.inf),
    (pa.int64(), 2**53, pa.float64(), 2.0**53),
    (pa.int64(), 2048, pa.float16(), 2048.0),
    (pa.float16(), np.float16(2), pa.int8(), 2),
    (pa.int64(), 1, pa.bool_(), True),
    (pa.bool_(), True, pa.int8(), 1),
    (pa.int64(), 999, MONEY, Decimal("999.00")),
    (pa.float32(), 0.1, MONEY, Decimal("0.10")),
    (pa.decimal256(76, 2), Decimal("1.50"), pa.decimal32(2, 1), Decimal("1.5")),
    (pa.decimal128(38, 2), Decimal("3.00"), pa.uint8(), 3),
    (pa.int64(), 86_400, pa.timestamp("s"), datetime(1970, 1, 2)),  # noqa: DTZ001 - of no zone
    (pa.float64(), 1.0, pa.date32(), date(1970, 1, 2)),
    (pa.date32(), date(1970, 1, 2), pa.int64(), 1),
    (pa.timestamp("us"), DAY, pa.date32(), DAY.date()),
    (pa.timestamp("us"), DAY, pa.timestamp("us", "UTC"), DAY.replace(tzinfo=UTC)),
    (BERLIN, DAY.replace(tzinfo=UTC), pa.date32(), DAY.date()),
    (pa.binary(), b"ab", pa.string(), "ab"),
    (pa.binary(2), b"12", pa.int64(), 12),
    (pa.binary(), b"ab", pa.binary(2), b"ab"),
    (pa.dictionary(pa.int8(), pa.string()), "7", pa.int64(), 7),
    (pa.run_end_encoded(pa.int16(), pa.int64()), 7, pa.string(), "7"),
    (pa.dictionary(pa.int32(), pa.string()), "a", pa.dictionary(pa.int8(), pa.large_string()), "a"),
    (pa.json_(), "{}", pa.string(), "{}"),
    (pa.string(), "{}", pa.json_(), "{}"),
    (pa.list_(pa.int64()), [1, None], pa.list_(pa.string_view(), 2), ["1", None]),
    (pa.list_(pa.string()), ["1"], pa.large_list_view(pa.int8()), [1]),
    (pa.struct([("a", pa.int64()), ("b", pa.int64())]), {"a": 1, "b": 2}, pa.struct([("b", pa.string())]), {"b": "2"}),
    (pa.struct([("a", pa.int64())]), {"a": 1}, pa.struct([]), {}),
    (pa.map_(pa.string(), pa.int64()), [("1", 2)], pa.map_(pa.int8(), pa.string()), [(1, "2")]),
    (pa.map_(pa.int8(), pa.int64()), [(1, 2)], pa.list_(pa.struct([("key", pa.string())])), [{"key": "1"}]),
]

# A type, its value, a type that it does not fit, and the value as it is told.
UNFIT = [
    (pa.float64(), 3.5, pa.int64(), "3.5"),
    (pa.float64(), np.nan, pa.int64(), "nan"),
    (pa.float64(), 1e300, pa.float32(), "1e300"),
    (pa.int64(), 2**53 + 1, pa.float64(), "9007199254740993"),
    (pa.int64(), 2049, pa.float16(), "2049"),
    (pa.int64(), 300, pa.int8(), "300"),
    (pa.int64(), -1, pa.uint64(), "-1"),
    (pa.int64(), 2, pa.bool_(), "2"),
    (pa.float64(), 0.5, pa.bool_(), "0.5"),
    (pa.float64(), 1.555, MONEY, "1.555"),
    (pa.float64(), np.nan, MONEY, "nan"),
    (pa.int64(), 1000, MONEY, "1000"),
    (pa.decimal256(76, 0), Decimal(10**70), pa.decimal32(5, 2), str(10**70)),
    (pa.decimal256(76, 0), Decimal(10**70), pa.float32(), str(10**70)),
    (MONEY, Decimal("1.50"), pa.int64(), "1.50"),
    (pa.timestamp("us"), NOON.replace(tzinfo=None), pa.date32(), "'2026-11-21T12:00:00'"),
    (pa.timestamp("us"), NOON.replace(tzinfo=None, microsecond=1), pa.timestamp("s"), "'2026-11-21T12:00:00.000001'"),
    (pa.timestamp("us"), NOON.replace(tzinfo=None), pa.time64("us"), "'2026-11-21T12:00:00'"),
    (pa.timestamp("s"), 2**62, pa.timestamp("ns"), "a value that JSON cannot write"),
    (pa.int64(), -1, pa.time64("us"), "-1"),
    (pa.int64(), 1, pa.date64(), "1"),
    (pa.binary(), b"\xff", pa.string(), r"b'\xff'"),
    (pa.binary(), b"ab", pa.binary(3), "b'ab'"),
    (pa.binary(), b"x", pa.int64(), "b'x'"),
    (pa.bool_(), True, pa.date32(), "true"),
    (pa.list_(pa.float64()), [1.0, 3.5], pa.list_(pa.int64()), "[1.0,3.5]"),
    (pa.list_(pa.int64()), [1], pa.list_(pa.int64(), 2), "[1]"),
    (pa.list_(pa.int64()), [1], pa.int64(), "[1]"),
    (pa.struct([("a", pa.string())]), {"a": "x"}, pa.struct([("a", pa.int64())]), '{"a":"x"}'),
    (pa.map_(pa.string(), pa.int64()), [("x", 1)], pa.map_(pa.int8(), pa.int64()), '{"x":1}'),
    (pa.string(), "x" * 99, pa.int64(), f"'{'x' * 79}..."),
]


@pytest.mark.parametrize("stored", TEXTS, ids=str)
@pytest.mark.parametrize(("text", "kind", "value"), READ)
def test_a_cell_of_text_is_read_as_its_declared_type(stored, text, kind, value):
    """As Arrow reads it; binary as base64, nested types as JSON; a null stays null."""
    values, faults = kept("x", pa.array([None, text, text], stored), kind)

    assert values.to_pylist() == [None, value, value]
    assert faults == {}


@pytest.mark.parametrize("stored", TEXTS, ids=str)
@pytest.mark.parametrize(("text", "kind"), UNREAD)
def test_a_cell_that_does_not_fit_is_told_and_costs_no_other(stored, text, kind):
    """Its value becomes null; the message names the column, the value and the type."""
    good = next((cell for cell, fitting, _ in READ if fitting == kind), None)
    values, faults = kept("x", pa.array([text, good, None, text], stored), kind)

    assert faults == dict.fromkeys((0, 3), f"x is {told(text)}, which is no {kind}")
    assert [one is None for one in values.to_pylist()] == [True, good is None, True, True]


def told(text):
    """Give a text as a message shows it."""
    return repr(text) if len(repr(text)) <= 80 else f"{repr(text)[:80]}..."


@pytest.mark.parametrize(("stored", "value", "kind", "expected"), FIT)
def test_a_value_that_fits_another_type_keeps_its_worth(stored, value, kind, expected):
    """Alone, in a slice, and beside nulls."""
    column = pa.array([value, None, value], stored) if not pa.types.is_dictionary(stored) else dictionary(value, stored)
    values, faults = kept("x", column, kind)

    assert values.to_pylist() == [expected, None, expected]
    assert faults == {}
    assert cast("x", column[2:], kind)[0].to_pylist() == [expected]


def dictionary(value, kind):
    """Make a dictionary column of a value, null, and the value."""
    return pa.array([value, None, value], kind.value_type).dictionary_encode().cast(kind)


@pytest.mark.parametrize(("stored", "value", "kind", "expected"), UNFIT)
def test_a_value_that_does_not_fit_another_type_is_told(stored, value, kind, expected):
    """Nothing is cut, wrapped or rounded in silence."""
    column = pa.array([None, value], stored)
    values, faults = kept("x", column, kind)

    assert values.null_count == 2
    assert faults == {1: f"x is {expected}, which is no {kind}"}


def simple(kind):
    """Whether Arrow itself can handle a type: of extensions, runs and dictionaries within others it often cannot."""
    return not any(word in str(kind)[1:] for word in ("extension", "run_end_encoded", "dictionary"))


SIMPLE = KINDS.filter(simple)


def test_a_union_fits_no_other_type():
    """It has no JSON form, nor does Arrow cast it."""
    column = pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])])

    for kind in (pa.int64(), pa.string(), pa.struct([])):
        values, faults = kept("x", column, kind)
        assert values.null_count == 1
        assert faults == {0: f"x is a value that JSON cannot write, which is no {kind}"}


@given(st.data())
def test_any_column_can_be_cast_to_any_type_and_no_row_depends_on_another(data):
    """What comes back is a whole column of the type, and for each position the same as if it were alone."""
    stored, kind = data.draw(SIMPLE), data.draw(SIMPLE)
    column = build(data.draw(st.lists(values_of(stored), max_size=4)), stored)

    values, faults = kept("x", column, kind)

    for at in range(len(column)):
        alone, fault = kept("x", column.slice(at, 1), kind)
        assert fault == ({0: faults[at]} if at in faults else {})
        assert kept("x", alone, pa.string()) == kept("x", values.slice(at, 1), pa.string())


NUMBERS = [
    kind for kind in LEAVES if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
]
PRECISION = {pa.float16(): 11, pa.float32(): 24, pa.float64(): 53}
NUMPY = {pa.float16(): np.float16, pa.float32(): np.float32, pa.float64(): np.float64}


def worth(value, stored, kind):
    """Say slowly what a number is worth in another type; None if it does not fit."""
    if pa.types.is_floating(kind):
        with np.errstate(over="ignore"):
            rounded = NUMPY[kind](float(value))
        if pa.types.is_integer(stored):
            exact = abs(value) <= 2 ** PRECISION[kind] or (kind == pa.float16() and float(rounded) == value)
            return rounded if exact else None
        return rounded if np.isfinite(float(value)) == np.isfinite(rounded) else None
    if not np.isfinite(float(value)):
        return None
    exact = Fraction(str(value)) if pa.types.is_floating(stored) and value % 1 else Fraction(int(value))
    exact = Fraction(value) if pa.types.is_decimal(stored) else exact
    scale = kind.scale if pa.types.is_decimal(kind) else 0
    if (exact * 10**scale).denominator != 1:
        return None
    if pa.types.is_decimal(kind):
        return exact if abs(exact * 10**scale) < 10**kind.precision else None
    low = 0 if pa.types.is_unsigned_integer(kind) else -(2 ** (kind.bit_width - 1))
    return exact if low <= exact < low + 2**kind.bit_width else None


@given(st.data())
def test_numbers_keep_their_value_or_do_not_fit(data):
    """Compared with exact fractions, one by one."""
    stored, kind = data.draw(st.sampled_from(NUMBERS)), data.draw(st.sampled_from(NUMBERS))
    assume(stored != kind)
    small = st.integers(-128, 127) if pa.types.is_signed_integer(stored) else st.nothing()
    numbers = data.draw(st.lists(LEAVES[stored] | small))
    if pa.types.is_floating(stored):
        numbers = [NUMPY[stored](number) for number in numbers]

    values, faults = kept("x", pa.array(numbers, stored), kind)

    for at, (number, value) in enumerate(zip(numbers, values.to_pylist(), strict=True)):
        expected = worth(number, stored, kind)
        if expected is None:
            assert at in faults
        elif np.isnan(float(expected)):
            assert np.isnan(value)
        else:
            assert at not in faults
            assert value == expected or Fraction(value) == expected


@given(st.data())
def test_as_text_a_value_is_what_the_rows_json_says(data):
    """Text without its quotes; NaN and infinities, which JSON lacks, by name; binary is no base64 but text."""
    kind = data.draw(SIMPLE.filter(lambda kind: "binary" not in str(kind) and "extension" not in str(kind)))
    column = build(data.draw(st.lists(values_of(kind), max_size=4)), kind)

    values, faults = kept("x", column, pa.string())

    encoded = RowEncoder(pa.schema([("x", kind)]), ["x"], rename={}).encode(pa.record_batch([column], names=["x"]))
    for at, line in enumerate(encoded.lines.splitlines()):
        text = line.removeprefix(b'{"x":').removesuffix(b"}").decode()
        plain = json.loads(text) if text.startswith('"') else None if text == "null" else text
        got = values[at].as_py()
        assert at in faults or got == plain or got in {"nan", "inf", "-inf"}


ROUND = st.recursive(
    st.sampled_from([kind for kind in LEAVES if not re.search("extension|null|interval", str(kind))]),
    lambda inner: st.one_of(
        inner.map(pa.list_),
        inner.map(pa.large_list),
        st.builds(lambda kind: pa.list_(kind, 2), inner),
        st.lists(st.tuples(st.text(), inner), max_size=3, unique_by=lambda field: field[0]).map(pa.struct),
        st.builds(pa.map_, st.just(pa.string()), inner),
    ),
    max_leaves=3,
)


@given(st.data())
def test_what_was_written_as_text_is_read_back(data):
    """Of any type that JSON can hold: a dead letter's row could be put into a CSV file."""
    kind = data.draw(ROUND)
    column = build(data.draw(st.lists(values_of(kind), max_size=4)), kind)
    assume("binary" not in str(kind) or pa.types.is_nested(kind))

    texts, unwritten = kept("x", column, pa.string())
    values, unread = kept("x", texts, kind)

    again, _ = kept("x", values, pa.string())
    assert unread == {}
    assert again.equals(texts) or "nan" in str(texts)
    assert [at for at in unwritten if not values[at].as_py()] == list(unwritten)


@given(st.lists(st.none() | st.binary(max_size=9)), st.lists(st.text(alphabet="AQgw=- ", max_size=6)))
def test_base64_is_read_as_the_standard_says(contents, strange):
    """With its padding, in the standard's own alphabet; nothing else is."""
    texts = [None if one is None else base64.b64encode(one).decode() for one in contents]

    values, faults = kept("x", pa.array([*texts, *strange], pa.string()), pa.binary())

    assert values.to_pylist()[: len(contents)] == contents
    for at, text in enumerate(strange, start=len(contents)):
        assert (at not in faults) == (re.fullmatch(r"([AQgw]{4})*([AQgw]{2}==|[AQgw]{3}=)?", text) is not None)


@pytest.mark.parametrize("every", [1, 2, 4096])
def test_a_column_is_searched_for_what_does_not_fit_in_few_passes(every):
    """However many values do not fit, each is looked at no more often than the column can be halved."""
    looked = []

    def convert(column, kind):
        looked.append(len(column))
        return column.cast(kind)

    column = pa.array(["x" if at % every == 0 else "1" for at in range(4096)])
    found = casting._halved(column, pa.int64(), convert)

    assert found.odd.tolist() == list(range(0, 4096, every))
    assert sum(looked) <= 4096 * 13
