"""What a row becomes as an instance of MindSpore Serving, and what of it arrives at a stage."""

from __future__ import annotations

import json
from base64 import b64decode
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from anyarrow import KINDS, TURNED, build, values_of
from demo import DEMO
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import JobError
from pipeline.mindspore import InstanceEncoder
from pipeline.sandbox.mindspore import answer
from schemas.job import Input

NUMBERS = {
    **{f"{sign}int{bits}": (sign, bits) for sign in ("", "u") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": ("float", bits) for bits in (16, 32, 64)},
}
NAMES = {"fp16": "float16", "fp32": "float32", "fp64": "float64"}


def encoded(column, declared=None, **keys):
    """Encode a column x; returns the rows that are sent, as JSON, and why others are not."""
    batch = pa.record_batch({"x": column})
    given = Input(path="in.parquet", **keys)
    found = InstanceEncoder(given, batch.schema, ["x"], {"x": declared} if declared else {}).encode(batch)
    lines = found.lines.splitlines()
    assert len(lines) == len(found.ends) == batch.num_rows
    return [line for row, line in enumerate(lines) if row not in found.refused], dict(found.refused)


def sandbox(method, lines):
    """Ask the sandbox's server."""
    body = b'{"instances":[' + b",".join(lines) + b"]}"
    status, said = answer({"demo": DEMO}, "POST", f"/model/demo:{method}", body, 1 << 27)
    assert status == 200
    return json.loads(said)


def arrived(lines, ask=sandbox):
    """Return what a stage is given of each row: an array, a text."""
    return [_value(one) for one in ask("bits", lines)["instances"]] if lines else []


def _value(instance):
    content = b64decode(instance["bits"]["b64"])
    if instance["dtype"] == "str":
        return content.decode()
    return np.frombuffer(content, instance["dtype"]).reshape(json.loads(instance["shape"]))


def same(found, expected):
    """Whether an array is another, bit for bit."""
    return found.dtype == expected.dtype and found.shape == expected.shape and found.tobytes() == expected.tobytes()


def sent(column, declared=None, **keys):
    """Return the only row's value, as JSON."""
    (line,), refused = encoded(column, declared, **keys)
    assert not refused
    return json.loads(line)["x"]


def test_the_documents_request_is_made_of_a_row():
    """Its tag, box and image: text, an array of integers with its nesting, and bytes as an object with base64."""
    image = b"\x89PNG zero", b"\x89PNG one"
    batch = pa.record_batch(
        {
            "tag": ["one", "two"],
            "box": pa.array([[[1, 1], [2, 3], [3, 4]], [[2, 2], [5, 5], [6, 6]]], pa.list_(pa.list_(pa.int64()))),
            "image": pa.array(image, pa.binary()),
        }
    )
    found = InstanceEncoder(Input(path="in.parquet"), batch.schema, batch.schema.names, {}).encode(batch)
    assert not found.refused
    assert [json.loads(line) for line in found.lines.splitlines()] == [
        {"tag": "one", "box": [[1, 1], [2, 3], [3, 4]], "image": {"b64": "iVBORyB6ZXJv"}},
        {"tag": "two", "box": [[2, 2], [5, 5], [6, 6]], "image": {"b64": "iVBORyBvbmU="}},
    ]


def test_the_documents_tensor_has_its_type_and_shape():
    """Its int16 sample, which decodes to other values than it says."""
    box = pa.array([[[1, 2], [2, 3], [3, 4]]], pa.list_(pa.list_(pa.int64())))
    assert sent(box, "int16") == {"b64": "AQACAAIAAwADAAQA", "type": "int16", "shape": [3, 2]}


def test_a_float_keeps_its_point():
    """The first value of an array gives its type there: 1 is an integer, 1.0 is none."""
    lines, _ = encoded(pa.array([[1.0, 2.5], [3.0, 1e20]], pa.list_(pa.float64())))
    assert lines == [b'{"x":[1.0,2.5]}', b'{"x":[3.0,1e20]}']


def test_a_scalar_tensor_has_an_empty_shape():
    """Versions differ in what a missing shape means, so that it is always sent."""
    assert sent(pa.array([7]), "int32") == {"b64": "BwAAAA==", "type": "int32", "shape": []}
    assert sent(pa.array([1.5]), "float32") == {"b64": "AADAPw==", "type": "fp32", "shape": []}
    assert sent(pa.array(["abc"]), "str") == {"b64": "YWJj", "type": "str", "shape": []}


@pytest.mark.parametrize(("count", "listed"), [(1000, True), (1001, False)])
@pytest.mark.parametrize(("kind", "wire"), [(pa.float64(), "fp32"), (pa.int64(), "int32"), (pa.bool_(), "bool")])
def test_a_large_tensor_travels_as_base64_by_itself(kind, wire, count, listed):
    """Of more than 1000 values, as what it would be as JSON: the stage sees no difference."""
    column = pa.array([[1] * count], pa.list_(pa.int64())).cast(pa.list_(kind))
    value = sent(column)
    assert isinstance(value, list) is listed
    if not listed:
        assert (value["type"], value["shape"]) == (wire, [count])
    [tensor] = arrived(encoded(column)[0])
    assert same(tensor, np.ones(count, {"fp32": np.float32}.get(wire, wire)))


INTS = pa.list_(pa.int64())
REFUSED = [
    (pa.array([2**31]), None, " is 2147483648, outside int32"),
    (pa.array([-(2**31) - 1]), None, " is -2147483649, outside int32"),
    (pa.array([2**64 - 1], pa.uint64()), None, "outside int32"),
    (pa.array([[1, 2**40]], INTS), None, "[1] is 1099511627776, outside int32"),
    (pa.array([1e39]), None, " is 1e+39, outside float32"),
    (pa.array([float("nan")]), None, " is nan, and JSON has no such number"),
    (pa.array([[0.5, float("-inf")]]), None, "[1] is -inf, and JSON has no such number"),
    (pa.array([None], pa.int64()), None, " is null"),
    (pa.array([None], pa.string()), None, " is null"),
    (pa.array([None], pa.binary()), None, " is null"),
    (pa.array([None], pa.null()), None, " is null"),
    (pa.array([None], INTS), None, " is null"),
    (pa.array([[1, None]], INTS), None, " has a null in it"),
    (pa.array([[[1], None]], pa.list_(INTS)), None, " has a null in it"),
    (pa.array([[[1, 2], [3]]], pa.list_(INTS)), None, " is ragged"),
    (pa.array([[[1, 2], []]], pa.list_(INTS)), None, " is ragged"),
    (pa.array([[]], INTS), None, " is empty"),
    (pa.array([[[], []]], pa.list_(INTS)), None, " is empty"),
    (pa.array([[]], pa.list_(INTS)), "int64", " has the shape [0, 0]"),
    (pa.array([["a", "b"]]), None, " has 2 items"),
    (pa.array([[]], pa.list_(pa.string())), None, " has 0 items"),
    (pa.array([None], pa.list_(pa.string())), None, " is null"),
    (pa.array([[None]], pa.list_(pa.string())), None, "[0] is null"),
    (pa.array([128]), "int8", " is 128, which is no int8"),
    (pa.array([-1]), "uint64", " is -1, which is no uint64"),
    (pa.array([0.5]), "int32", " is 0.5, which is no int32"),
    (pa.array([2**53 + 1]), "float64", " is 9007199254740993, which is no float64"),
    (pa.array([1e39]), "fp32", " is 1e+39, which is no fp32"),
    (pa.array([2]), "bool", " is 2, which is no bool"),
    (pa.array([float("nan")]), "int8", " is nan, which is no int8"),
    (pa.array([1e-50]), None, " is 1e-50, and 0 as float32, as which MindSpore Serving reads it"),
    (pa.array([[1.0, -1e-50]]), None, "[1] is -1e-50, and 0 as float32"),
    (pa.array([1e-50]), "float32", " is 1e-50, which is no float32: it would arrive as 0"),
    (pa.array([1e-10], pa.float32()), "fp16", ", which is no fp16: it would arrive as 0"),
    (pa.array([Decimal("1e-50")], pa.decimal256(60, 50)), None, " is 1E-50, and 0 as float32"),
    (pa.array([Decimal("1.5")]), "int64", " is 1.5, which is no int64"),
    (pa.array([Decimal(2**63)]), "int64", " is 9223372036854775808, which is no int64"),
    (pa.array([Decimal(2**64)]), "uint64", " is 18446744073709551616, which is no uint64"),
    (pa.array([Decimal(-1)]), "uint64", " is -1, which is no uint64"),
    (pa.array([Decimal(2)]), "bool", " is 2, which is no bool"),
    (pa.array([Decimal(10**40)], pa.decimal256(41)), None, ", outside float32"),
    (pa.array([None], pa.decimal128(5)), "int8", " is null"),
    (pa.array([b"\xff"]), "str", " is not UTF-8"),
    (pa.array([b"\xff"]).view(pa.string()), None, " is not UTF-8"),
    (pa.array([None], pa.string()), "str", " is null"),
    (pa.array([None], pa.int8()), "int8", " is null"),
]


@pytest.mark.parametrize(("column", "declared", "message"), REFUSED)
def test_what_the_server_does_not_take_as_it_is_meant_is_refused(column, declared, message):
    """One row is refused, in words; the rows beside it are not."""
    lines, refused = encoded(column, declared)
    assert lines == []
    assert refused[0].startswith("x")
    assert message in refused[0]


def test_only_the_row_that_is_refused_is():
    """Each row is judged by itself."""
    lines, refused = encoded(pa.array([[1], [2**31], [], None, [[3]][0], [4, 5]], INTS))
    assert sorted(refused) == [1, 2, 3]
    assert [array.tolist() for array in arrived(lines)] == [[1], [3], [4, 5]]


def test_a_list_without_a_value_may_have_any_encoding_within():
    """Arrow cannot take values out of views, and joins nothing of nothing."""
    column = build([None], pa.list_(pa.dictionary(pa.int16(), pa.string_view())))
    assert encoded(column) == ([], {0: "x is null, and MindSpore Serving takes none"})


def test_declared_tensors_take_what_json_does_not():
    """NaN and infinities, 64 bits, and nothing at all."""
    [tensor] = arrived(encoded(pa.array([[float("nan"), float("inf")]]), "float32")[0])
    assert np.isnan(tensor[0])
    assert np.isposinf(tensor[1])
    assert arrived(encoded(pa.array([2**63 - 1]), "int64")[0])[0] == 2**63 - 1
    assert arrived(encoded(pa.array([[], [7]], INTS), "int64")[0])[0].shape == (0,)
    assert arrived(encoded(pa.array([[[], []]], pa.list_(INTS)), "uint8")[0])[0].shape == (2, 0)


def test_nan_is_refused_where_the_job_says_so():
    """Even as a tensor, which could carry it."""
    _, refused = encoded(pa.array([float("nan"), 1.0]), "float32", nan="reject")
    assert refused == {0: "x is nan, which is no float32"}


def test_times_and_uuids_are_text():
    """As they are in any JSON that is sent, alone or as the only item of a list."""
    ids = pa.array([b"\x01" * 16], pa.uuid())
    text = "01010101-0101-0101-0101-010101010101"
    assert sent(ids) == text
    assert sent(pa.ListArray.from_arrays([0, 1], ids)) == [text]
    assert sent(pa.array([0], pa.timestamp("s", "UTC"))) == "1970-01-01T00:00:00Z"


def test_decimals_are_floats():
    """All of one column, those without a fraction too."""
    lines, _ = encoded(pa.array([[Decimal("1.00"), Decimal("2.50")]], pa.list_(pa.decimal128(9, 2))))
    assert lines == [b'{"x":[1.0,2.5]}']


EXACT = [
    ("9007199254740993", "int64"),
    ("-9223372036854775808", "int64"),
    ("9223372036854775807", "int64"),
    ("18446744073709551615", "uint64"),
    ("1.00", "int8"),
    ("0.30000000000000004441", "float64"),
    ("1234567890123456789.012345678", "float64"),
    ("1e-50", "float64"),
]


@pytest.mark.parametrize(("text", "declared"), EXACT)
def test_a_decimal_arrives_as_the_number_that_it_is(text, declared):
    """As a whole number, or as the float that is nearest to all of its digits."""
    kind = np.dtype(declared)
    number = int(Decimal(text)) if kind.kind != "f" else float(text)
    column = pa.array([Decimal(text)], pa.decimal256(76, 55) if kind.kind == "f" else None)
    assert same(arrived(encoded(column, declared)[0])[0], np.array(number, kind))


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**19), max_value=10**19, places=18))
def test_a_decimal_as_json_is_the_nearest_float(number):
    """Whatever its digits."""
    assert sent(pa.array([number, None], pa.decimal128(38, 18)).slice(0, 1)) == float(number)


def test_a_refused_row_is_shown_as_it_is():
    """What JSON has of its values is in the dead letter: of those that are refused, and those beside them."""
    batch = pa.record_batch(
        {
            "x": [float("inf"), 0.5],
            "y": [2**40, 2**53 + 1],
            "z": pa.array([[1, None], [7, 8]], INTS),
            "d": pa.array([Decimal("0.10"), None]),
            "t": pa.array([1, 2], pa.int8()),
        }
    )
    found = InstanceEncoder(Input(path="in.parquet"), batch.schema, batch.schema.names, {"t": "int8"}).encode(batch)
    assert (
        found.refused[0] == "x is inf, and JSON has no such number; with service.options.types it may travel as float32"
    )
    assert list(found.refused) == [0, 1]
    assert [line.decode() for line in found.lines.splitlines()] == [
        '{"x":null,"y":1099511627776,"z":[1,null],"d":0.10,"t":1}',
        '{"x":0.5,"y":9007199254740993,"z":[7,8],"d":null,"t":2}',
    ]


def test_a_tensor_that_is_stored_in_another_order_arrives_as_it_is_meant():
    """Its shape and its values are those that it has, not those of its storage."""
    column = build([[1, 2, 3, 4, 5, 6]], TURNED)
    for declared in (None, "int16"):
        [tensor] = arrived(encoded(column, declared)[0])
        assert tensor.tolist() == [[1, 4], [2, 5], [3, 6]]


@pytest.mark.parametrize(
    ("column", "declared", "message"),
    [
        (pa.array([{"a": 1}]), None, "input.send: column 'x' has type struct<a: int64>"),
        (pa.array([[["a"]]]), None, "input.send: column 'x' has type list"),
        (pa.array([["a"]]), "str", "service.options.types.x: 'str' is not for a column of type list"),
        (pa.array(["a"]), "int8", "service.options.types.x: 'int8' is not for a column of type string"),
        (pa.array([1]), "bytes", "service.options.types.x: 'bytes' is not for a column of type int64"),
    ],
)
def test_a_column_that_has_no_form_is_an_error_of_the_job(column, declared, message):
    """It is found by the type, before any row is read."""
    with pytest.raises(JobError, match=message.replace("<", ".")):
        encoded(column, declared)


def test_a_type_for_a_column_that_is_not_sent_is_an_error_of_the_job():
    """It would be lost without a word."""
    schema = pa.schema({"x": pa.int64(), "y": pa.int64()})
    with pytest.raises(JobError, match=r"service\.options\.types: column 'y' is not sent"):
        InstanceEncoder(Input(path="in.parquet"), schema, ["x"], {"y": "int8"})


@given(st.data(), KINDS)
def test_what_is_sent_is_taken(data, kind):
    """Of any values of any type: each row is refused here with a reason, or read by the server without one."""
    values = data.draw(st.lists(values_of(kind), min_size=1, max_size=4))
    try:
        lines, refused = encoded(build(values, kind))
    except JobError:
        return
    assert len(arrived(lines)) + len(refused) == len(values)
    assert all(len(message) > len("x is") for message in refused.values())


@st.composite
def tensors(draw):
    """A numpy type, and arrays of it of one number of dimensions."""
    name = draw(st.sampled_from([*NUMBERS, "bool"]))
    depth = draw(st.integers(0, 3))
    bits = np.dtype(name).itemsize
    found = []
    for _ in range(draw(st.integers(1, 4))):
        shape = draw(st.lists(st.integers(0, 3), min_size=depth, max_size=depth))
        raw = draw(st.binary(min_size=bits * int(np.prod(shape)), max_size=bits * int(np.prod(shape))))
        raw = bytes(byte & 1 for byte in raw) if name == "bool" else raw
        found.append(np.frombuffer(raw, name).reshape(shape))
    return name, depth, found


def column_of(name, depth, arrays):
    """Return a column of arrays, with their very bits: some NaN are others than Python's."""
    column = pa.array(np.concatenate([array.ravel() for array in arrays]), type=pa.from_numpy_dtype(np.dtype(name)))
    for level in reversed(range(depth)):
        lengths = [array.shape[level] for array in arrays for _ in range(int(np.prod(array.shape[:level])))]
        column = pa.ListArray.from_arrays(pa.array(np.cumsum([0, *lengths]), pa.int32()), column)
    return column


def see_tensors(drawn, ask=sandbox):
    """See that tensors arrive bit for bit where their type is declared; only a shape may be refused."""
    name, depth, arrays = drawn
    lines, refused = encoded(column_of(name, depth, arrays), name)
    taken = [array for row, array in enumerate(arrays) if row not in refused]
    assert all(0 in arrays[row].shape[:-1] for row in refused)
    assert all("MindSpore Serving takes no empty list" in message for message in refused.values())
    found = arrived(lines, ask)
    assert len(found) == len(taken)
    assert all(map(same, found, taken))


def kept(narrow, array):
    """Whether floats are finite, and none but zero is zero."""
    return np.isfinite(narrow).all() and np.array_equal(narrow == 0, array == 0)


def see_numbers(drawn, ask=sandbox):
    """See that numbers without a type arrive as int32, float32 or bool, rounded as a cast rounds, or are refused."""
    name, depth, arrays = drawn
    lines, refused = encoded(column_of(name, depth, arrays))
    kind = {"i": np.int32, "u": np.int32, "f": np.float32, "b": np.bool_}[np.dtype(name).kind]
    with np.errstate(all="ignore"):
        cast = [array.astype(kind) for array in arrays]
    fits = [
        array.size > 0 and (kept(narrow, array) if kind is np.float32 else np.array_equal(narrow, array))
        for array, narrow in zip(arrays, cast, strict=True)
    ]
    assert [row for row, fit in enumerate(fits) if not fit] == sorted(refused)
    expected = [narrow for narrow, fit in zip(cast, fits, strict=True) if fit]
    found = arrived(lines, ask)
    assert len(found) == len(expected)
    assert all(map(same, found, expected))


def see_texts(text, content, ask=sandbox):
    """See that text and bytes arrive as JSON, as base64 with a type, and as the only item of a list."""
    for column, declared in ((pa.array([text]), None), (pa.array([text]), "str"), (pa.array([[text]]), None)):
        assert arrived(encoded(column, declared)[0], ask) == [text]
    for column, declared in (
        (pa.array([content]), None),
        (pa.array([content]), "bytes"),
        (pa.array([[content]]), None),
    ):
        assert arrived(encoded(column, declared)[0], ask)[0].tobytes() == content


@given(tensors())
def test_a_tensor_of_any_type_and_shape_arrives_bit_for_bit(drawn):
    """With its type declared."""
    see_tensors(drawn)


@given(tensors())
def test_numbers_as_json_arrive_as_what_they_are(drawn):
    """As what the server takes JSON for; what that does not hold is refused."""
    see_numbers(drawn)


@given(st.text(), st.binary())
def test_text_and_bytes_arrive_as_they_are(text, content):
    """However they travel."""
    see_texts(text, content)
