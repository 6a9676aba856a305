from __future__ import annotations

import base64
import json
import math
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.encode import RowEncoder
from pipeline.errors import JobError

COLUMNS = {
    pa.float64(): st.floats(),
    pa.float32(): st.floats(width=32),
    pa.float16(): st.floats(width=16),
    pa.int8(): st.integers(-(2**7), 2**7 - 1),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.bool_(): st.booleans(),
    pa.string(): st.text(),
    pa.large_string(): st.text(),
    pa.string_view(): st.text(),
    pa.binary(): st.binary(),
    pa.large_binary(): st.binary(),
    pa.binary(3): st.binary(min_size=3, max_size=3),
    pa.decimal128(38, 9): st.decimals(-(10**28), 10**28, places=9),
    pa.dictionary(pa.int8(), pa.string()): st.sampled_from(["a", "b", 'quote " and \n newline']),
    pa.dictionary(pa.int32(), pa.float32()): st.sampled_from([0.10000000149011612, 3.0]),
    pa.null(): st.none(),
}


@st.composite
def batches(draw):
    """Any columns of any types with any values, as a slice out of the middle of a larger batch."""
    kinds = draw(st.lists(st.sampled_from(list(COLUMNS)), max_size=4))
    count = draw(st.integers(0, 6))
    before, after = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    total = before + count + after
    columns = {}
    names = draw(st.lists(st.text(), min_size=len(kinds), max_size=len(kinds), unique=True))
    for name, kind in zip(names, kinds, strict=True):
        nullable = st.none() | COLUMNS[kind] if draw(st.booleans()) else COLUMNS[kind]
        columns[name] = array(draw(st.lists(nullable, min_size=total, max_size=total)), kind)
    whole = pa.RecordBatch.from_pydict({"rest": pa.array(range(total)), **{f"_{k}": v for k, v in columns.items()}})
    return whole.slice(before, count).select(whole.schema.names[1:])


def array(values, kind):
    if isinstance(kind, pa.DictionaryType):
        return pa.array(values, kind.value_type).dictionary_encode().cast(kind)
    return pa.array(values, kind)


def encode(batch, **options):
    return RowEncoder(batch.schema, batch.schema.names, **{"rename": {}} | options).encode(batch)


def lines(batch, **options):
    return encode(batch, **options).lines.decode().split("\n")[:-1]


def texts(values, kind):
    """Return how the values of a column are written."""
    return [line.removeprefix('{"x":').removesuffix("}") for line in lines(pa.record_batch({"x": array(values, kind)}))]


def meant(value):
    """Return what a value is in JSON; what has no JSON form is null, bytes are base64."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def same(read, value, kind):
    """Whether the number, text or null that was read is the value, at the column's own width."""
    kind = kind.value_type if isinstance(kind, pa.DictionaryType) else kind
    if value is None or read is None:
        return read is value
    if pa.types.is_floating(kind):
        width = {16: np.float16, 32: np.float32, 64: np.float64}[kind.bit_width]
        return width(float(read)) == value and math.copysign(1, float(read)) == math.copysign(1, value)
    if pa.types.is_decimal(kind):
        return Decimal(read) == value
    return type(read) is type(value) and read == value


@given(batches())
def test_every_line_read_back_is_its_row(batch):
    """Any types, values, nulls, column names and offsets: json reads each line as the row, keys in order."""
    encoded = encode(batch)
    read = [json.loads(line, parse_float=Decimal) for line in encoded.lines.decode().split("\n")[:-1]]
    assert len(read) == batch.num_rows
    for row, values in zip(read, batch.to_pylist(), strict=True):
        assert list(row) == batch.schema.names
        for field in batch.schema:
            assert same(row[field.name], meant(values[field.name]), field.type)
    assert not encoded.refused


@given(batches())
def test_the_ends_cut_the_lines_at_their_newlines(batch):
    """`ends[i]` is the offset behind row i's newline, and a row has no other newline."""
    encoded = encode(batch)
    starts = [0, *encoded.ends.tolist()]
    assert starts[-1] == len(encoded.lines)
    for start, end in zip(starts, encoded.ends.tolist(), strict=False):
        assert encoded.lines[start:end].count(b"\n") == 1
        assert encoded.lines[start:end].endswith(b"}\n")


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_a_double_is_as_short_as_it_can_be(values):
    """No float is longer than Python's own shortest form, and each shows a point or an exponent."""
    for text, value in zip(texts(values, pa.float64()), values, strict=True):
        assert float(text) == value
        assert "." in text or "e" in text
        assert digits(text) == digits(repr(value))


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1))
def test_a_single_is_as_short_as_it_can_be_at_its_own_width(values):
    """The digits are those of numpy's shortest form for float32."""
    for text, value in zip(texts(values, pa.float32()), values, strict=True):
        assert np.float32(text) == np.float32(value)
        assert "." in text or "e" in text
        assert digits(text) == digits(str(np.float32(value)))


def digits(text):
    return "".join(c for c in text.lower().split("e")[0] if c.isdigit()).strip("0")


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (pa.float64(), 3.0, "3.0"),
        (pa.float64(), 0.1, "0.1"),
        (pa.float64(), 2.2, "2.2"),
        (pa.float64(), -0.0, "-0.0"),
        (pa.float64(), 5e-324, "5e-324"),
        (pa.float64(), 1e16, "1e16"),
        (pa.float64(), 0.1 + 0.2, "0.30000000000000004"),
        (pa.float64(), math.nan, "null"),
        (pa.float64(), math.inf, "null"),
        (pa.float64(), None, "null"),
        (pa.float32(), 0.1, "0.1"),
        (pa.float32(), 3.0, "3.0"),
        (pa.float32(), 16777216.0, "16777216.0"),
        (pa.float32(), 1e-45, "1e-45"),
        (pa.float32(), -math.inf, "null"),
        (pa.float16(), 0.1, "0.1"),
        (pa.float16(), 3.0, "3.0"),
        (pa.float16(), math.nan, "null"),
        (pa.int64(), 3, "3"),
        (pa.int64(), -(2**63), "-9223372036854775808"),
        (pa.uint64(), 2**64 - 1, "18446744073709551615"),
        (pa.bool_(), True, "true"),
        (pa.decimal128(10, 2), Decimal("1.10"), "1.10"),
        (pa.decimal128(38, 0), Decimal(10**38 - 1), "9" * 38),
        (pa.binary(), b"\x00\xff", '"AP8="'),
        (pa.string(), "", '""'),
        (pa.string(), "\u4e2d\n\u2028\x00", '"\u4e2d\\n\u2028\\u0000"'),
        (pa.null(), None, "null"),
    ],
)
def test_a_value_is_written_as_the_rules_of_the_row_say(kind, value, text):
    """Alone and beside a null: integers without a point, floats with one, nulls as null, bytes as base64."""
    assert texts([value], kind) == [text]
    assert texts([value, None], kind) == [text, "null"]


def test_a_renamed_column_has_its_wire_name_and_its_place():
    """`rename` changes the name in the request and nothing else."""
    batch = pa.record_batch({"a": [1], "b": [2], "c": [3]})
    assert lines(batch, rename={"b": "B", "unused": "x"}) == ['{"a":1,"B":2,"c":3}']
    swapped = RowEncoder(batch.schema, ["b", "a"], rename={"a": "b", "b": "a"})
    assert swapped.encode(batch).lines == b'{"a":2,"b":1}\n'


@pytest.mark.parametrize("name", ['height (")', "a\\b", "tab\t", "line\nbreak", "", "\u4e2d", "self", "class"])
def test_a_column_may_have_any_name(name):
    """Names that JSON must escape, and names that Python knows, are sent as they are."""
    assert [json.loads(line) for line in lines(pa.record_batch({name: [1, 2]}))] == [{name: 1}, {name: 2}]


def test_a_row_without_columns_is_an_empty_object():
    """A job that keeps no column still has one object a row to show for it."""
    batch = pa.record_batch({"a": [1, 2, 3]}).select([]).slice(1, 2)
    assert lines(batch) == ["{}", "{}"]


def test_two_columns_with_one_name_are_refused():
    """The message names both columns, the name, and what to do."""
    batch = pa.record_batch({"a": [1], "b": [2]})
    with pytest.raises(JobError, match=r"input\.rename: columns 'a' and 'b' are both sent as 'b'; give each a name"):
        encode(batch, rename={"a": "b"})


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64(), pa.dictionary(pa.int8(), pa.float64())])
def test_nan_reject_refuses_exactly_the_rows_with_nan_or_infinity(kind):
    """The reason names the column and the value; nulls are no NaN; the first column with one is named."""
    odd = array([1.0, math.nan, None, -math.inf, 2.0], kind)
    batch = pa.record_batch({"n": [1, 2, 3, 4, 5], "x": odd, "y": odd}).slice(1)
    assert encode(batch, reject_nan=True).refused == {
        0: "x is nan, and the job file says nan: reject",
        2: "x is -inf, and the job file says nan: reject",
    }
    assert encode(batch).refused == {}


def test_a_text_that_is_not_utf8_costs_its_row():
    """Its row is refused with the column's name, shown with U+FFFD; its neighbours are sent as they are."""
    raw = pa.array([b"good", b"b\xffd", None, "\u4e2d".encode()], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 4, raw.buffers(), raw.null_count)
    encoded = encode(pa.record_batch({"n": [1, 2, 3, 4], "t": text}))
    assert encoded.refused == {1: "t is not UTF-8"}
    assert [json.loads(line)["t"] for line in encoded.lines.decode().split("\n")[:-1]] == [
        "good",
        "b\ufffdd",
        None,
        "\u4e2d",
    ]
