"""The names of types: as people write them, and as Arrow prints them."""

from __future__ import annotations

import re

import pyarrow as pa
import pytest
from anyarrow import KINDS
from hypothesis import given
from hypothesis import strategies as st

from pipeline.arrowtypes import type_of, types_of
from pipeline.errors import JobError
from pipeline.typenames import ALIASES, OURS, UNITS, NoSuchTypeError, named

WRITTEN = {
    "int": pa.int64(),
    "int64": pa.int64(),
    "i8": pa.int64(),
    "float": pa.float32(),
    "f8": pa.float64(),
    " double ": pa.float64(),
    "str": pa.string(),
    "large_utf8": pa.large_string(),
    "boolean": pa.bool_(),
    "date32": pa.date32(),
    "date64[ms]": pa.date64(),
    "time64[us]": pa.time64("us"),
    "duration[ns]": pa.duration("ns"),
    "timestamp[us]": pa.timestamp("us"),
    "timestamp[us, tz=UTC]": pa.timestamp("us", "UTC"),
    "timestamp[ms,tz=+05:30]": pa.timestamp("ms", "+05:30"),
    "decimal128(10, 2)": pa.decimal128(10, 2),
    "decimal256(10,-2)": pa.decimal256(10, -2),
    "decimal(38, 2)": pa.decimal128(38, 2),
    "decimal(39, 2)": pa.decimal256(39, 2),
    "fixed_size_binary[3]": pa.binary(3),
    "list<float>": pa.list_(pa.float32()),
    "list<item: double>": pa.list_(pa.float64()),
    "list<element: timestamp[s, tz=+01:00] not null>": pa.list_(
        pa.field("element", pa.timestamp("s", "+01:00"), nullable=False)
    ),
    "large_list<list<int>>": pa.large_list(pa.list_(pa.int64())),
    "fixed_size_list<item: float>[3]": pa.list_(pa.float32(), 3),
    "struct<>": pa.struct([]),
    "struct<a: int64, b: list<string>>": pa.struct([("a", pa.int64()), ("b", pa.list_(pa.string()))]),
    "struct<a:int64,b:struct<c:bool>>": pa.struct([("a", pa.int64()), ("b", pa.struct([("c", pa.bool_())]))]),
    "struct<a: int64 not null>": pa.struct([pa.field("a", pa.int64(), nullable=False)]),
    "struct<a, b: int64, c<d: bool>": pa.struct([("a, b", pa.int64()), ("c<d", pa.bool_())]),
    "map<string, int64>": pa.map_(pa.string(), pa.int64()),
    "map<string ('k'), int64 ('v'), keys_sorted ('entry')>": pa.map_(pa.string(), pa.int64(), keys_sorted=True),
    "dictionary<values=string, indices=int32, ordered=0>": pa.dictionary(pa.int32(), pa.string()),
    "run_end_encoded<run_ends: int16, values: bool>": pa.run_end_encoded(pa.int16(), pa.bool_()),
    "extension<arrow.uuid>": pa.uuid(),
}

JUNK = [
    "",
    "number",
    "INT64",
    "int64 int64",
    "int64[us]",
    "timestamp",
    "timestamp[m]",
    "timestamp[us, tz=]",
    "decimal128(39, 2)",
    "decimal128(x, 2)",
    "fixed_size_binary[-1]",
    "fixed_size_binary[99999999999999999999]",
    "list",
    "list<>",
    "list<number>",
    "list<int64",
    "list<int64>>",
    "fixed_size_list<int64>",
    "fixed_size_list<int64>[99999999999999999999]",
    "fixed_size_list<int64>[0]",
    "struct<a>",
    "struct<a: number>",
    "struct<a: int64,>",
    "map<string>",
    "dictionary<values=string, indices=float, ordered=0>",
    "run_end_encoded<run_ends: string, values: bool>",
    "extension<arrow.fixed_shape_tensor[value_type=number, shape=[2]]>",
    "list<" * 5000 + "int8" + ">" * 5000,
]


def readable(kind):
    """Whether names of fields in it leave no doubt about where they end."""
    return not re.search(r"struct<>[^,>]|struct<>.*?: ", str(kind))


@pytest.mark.parametrize("text", WRITTEN)
def test_a_type_is_found_by_the_name_people_write(text):
    """Short names, Arrow's own, and types in types with spaces or without."""
    assert type_of(text) == WRITTEN[text]


@given(KINDS.filter(readable))
def test_what_arrow_prints_of_a_type_is_a_name_of_it(kind):
    """Of any type, however deep."""
    assert type_of(str(kind)) == kind


@pytest.mark.parametrize("text", JUNK, ids=lambda text: text[:40])
def test_what_is_no_type_is_told_in_one_line(text):
    """What stands there, cut where it is long, and what is allowed."""
    with pytest.raises(NoSuchTypeError, match=r"^'.*('|\.\.\.) is not a type; allowed: string, int64, ") as caught:
        type_of(text)

    assert len(str(caught.value)) < 400


PARTS = [
    "list<",
    "struct<",
    "map<",
    "dictionary<values=",
    "a: ",
    "int8",
    "(",
    ")",
    "[",
    "]",
    "3",
    ", ",
    ">",
    " not null",
]


@given(st.lists(st.sampled_from(PARTS)).map("".join) | st.text())
def test_any_text_is_a_type_or_no_type(text):
    """A text that is one prints as one, and nothing else is raised."""
    try:
        kind = type_of(text)
    except NoSuchTypeError:
        return
    assert type_of(str(kind)) == kind


NUMBERS = st.sampled_from([-(2**31), -1, 0, 1, 2, 9, 10, 18, 19, 38, 39, 76, 77, 2**31 - 1, 2**31, 2**63, 10**4000])
SHAPES = st.lists(NUMBERS | st.integers(0, 3), max_size=3).map(lambda sizes: ",".join(map(str, sizes)))
ENDS = st.sampled_from(["bool", "int", "int8", "uint16", "i2", "i4", "u8", "int64", "date32", "list<int8>"])
NAMES = st.sampled_from(["", "a", "item", "a: b", "a\x00", "\ud800", "é"])


def formed(pattern, *parts):
    """Texts of a pattern with these in its places."""
    return st.tuples(*parts).map(lambda values: pattern.format(*values))


def composed(inner):
    """Names of types made of others; some are none, for a number, a name or a type does not go there."""
    field = formed("{}: {}{}", NAMES, inner, st.sampled_from(["", " not null"]))
    return st.one_of(
        *(formed(f"{name}<{{}}>", field | inner) for name in ("list", "large_list", "list_view", "large_list_view")),
        formed("fixed_size_list<{}>[{}]", field, NUMBERS),
        st.lists(field, max_size=2).map(lambda fields: f"struct<{', '.join(fields)}>"),
        formed("map<{}, {}{}>", inner, inner, st.sampled_from(["", ", keys_sorted"])),
        formed("dictionary<values={}, indices={}, ordered=0>", inner, ENDS | inner),
        formed("run_end_encoded<run_ends: {}, values: {}>", ENDS | inner, inner),
        formed("extension<arrow.fixed_shape_tensor[value_type={}, shape=[{}]]>", inner, SHAPES),
        formed(
            "extension<arrow.fixed_shape_tensor[value_type={}, shape=[{}], dim_names=[{}], permutation=[{}]]>",
            *(inner, SHAPES, st.sampled_from(["", "a", "a,b"]), st.sampled_from(["", "0", "1", "1,0", "0,0"])),
        ),
        formed("extension<arrow.opaque[storage_type={}, type_name={}, vendor_name={}]>", inner, NAMES, NAMES),
    )


TEXTS = st.recursive(
    st.one_of(
        st.sampled_from([*ALIASES, *OURS]),
        formed("timestamp[{}]", st.sampled_from(UNITS)),
        formed("timestamp[{}, tz={}]", st.sampled_from(UNITS), NAMES),
        formed("decimal{}({}, {})", st.sampled_from(["", 32, 64, 128, 256]), NUMBERS, NUMBERS),
        formed("fixed_size_binary[{}]", NUMBERS),
    ),
    composed,
    max_leaves=5,
)


@given(TEXTS | KINDS.map(str))
def test_what_check_takes_for_a_type_is_one(text):
    """The grammar knows no Arrow, and Arrow refuses nothing that it takes."""
    try:
        named(text)
    except NoSuchTypeError:
        return
    type_of(text)


@pytest.mark.parametrize("name", [*ALIASES, *OURS])
def test_every_plain_name_is_a_type(name):
    """By itself, and within another."""
    assert type_of(f"list<{name}>").value_type == type_of(name)


@pytest.mark.parametrize("depth", [49, 50])
def test_types_within_types_have_an_end(depth):
    """Fifty are deep enough for anybody."""
    text = "list<" * depth + "int8" + ">" * depth
    if depth < 50:
        assert str(type_of(text)).count("list<") == depth
    else:
        with pytest.raises(NoSuchTypeError):
            named(text)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("flaot", "float"),
        ("Int64", "int64"),
        ("datetime", "timestamp[us]"),
        ("decimal", "decimal128(10, 2)"),
        ("list<strng>", "list<string>"),
        ("struct<a: int64, b: duoble>", "struct<a: int64, b: double>"),
        ("timestamp", "timestamp[us]"),
        ("list", "list<string>"),
        ("timestamp[m]", None),
        ("zzz", None),
        ("", None),
        ("x" * 10_000, None),
    ],
)
def test_what_was_probably_meant_is_said(text, meant):
    """A slip, or another system's word; where nothing is near, nothing is guessed."""
    with pytest.raises(NoSuchTypeError) as caught:
        named(text)
    assert str(caught.value).partition("; did you mean ")[2] == (f"{meant!r}?" if meant else "")


def test_declared_types_are_found_and_a_wrong_one_is_named_with_its_key():
    """The line names the key of the job file, whichever declares them."""
    assert types_of({"id": "string", "x": "list<double>"}) == {"id": pa.string(), "x": pa.list_(pa.float64())}
    for key in ("input.columns", "output.prediction"):
        with pytest.raises(JobError, match=rf"^{key}\.x: 'number' is not a type; allowed: string, int64, "):
            types_of({"id": "string", "x": "number"}, key)
