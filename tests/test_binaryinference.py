"""Tensors as bytes: what is sent of columns, what is read of replies, and jobs over it."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
import tensorwire
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as draws
from service import recording
from tensorwire import KINDS, LENGTH
from test_openinference import COLUMNS, chunks_of

from jobs import call, job_file, letters, loaded, proved, put, results
from pipeline.errors import JobError
from pipeline.jobfile import fingerprint
from pipeline.openinference import OpenInference
from pipeline.protocols import ADAPTERS
from pipeline.status import Action, Fault
from schemas.options import OpenInferenceOptions

NO_AUTH = {"type": "none"}


def adapter(**options):
    return ADAPTERS["open-inference"](OpenInferenceOptions(model="m", binary=True, **options), "")


def sent(made, batch, **keys):
    """Return what a server reads of the request for a batch, which is no longer than what was counted."""
    (chunk,) = chunks_of(made, batch, **keys)
    wire = made.wire(chunk.body)
    assert len(wire) <= len(chunk.body)
    return tensorwire.read(made.headers(wire), wire)


def alike(found, expected):
    """Whether two arrays are the same, bit for bit."""
    if found.dtype == object:
        return found.tolist() == expected.tolist() and found.shape == expected.shape
    return (found.dtype, found.shape, found.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())


def nested(kind, shape):
    """Return the Arrow type of a tensor's row."""
    for size in reversed(shape):
        kind = pa.list_(kind, size)
    return kind


def column_of(array):
    """Return the column whose rows are those of an array, of the same bits."""
    flat = array.ravel()
    kind = pa.binary() if array.dtype == object else pa.from_numpy_dtype(array.dtype)
    column = pa.array(flat, kind)
    for size in reversed(array.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return column


@st.composite
def tensors(draw, rows=None):
    """Arrays of any datatype, whose first axis is the rows; floats of any bits, NaN with a payload too."""
    datatype = draw(st.sampled_from([*KINDS, "BYTES"]))
    shape = (rows or draw(st.integers(1, 5)), *draw(st.lists(st.integers(1, 3), max_size=3)))
    if datatype == "BYTES":
        return draw(draws.arrays(object, shape, elements=st.binary(max_size=9)))
    kind = np.dtype(KINDS[datatype])
    if kind.kind != "f":
        return draw(draws.arrays(kind, shape))
    return draw(draws.arrays(np.dtype(f"<u{kind.itemsize}"), shape)).view(kind)


@given(st.data(), st.integers(1, 5))
def test_tensors_of_any_datatype_and_shape_are_sent_bit_for_bit(data, rows):
    """One column or several, whole or a slice of what was read, NaN of any payload."""
    arrays = data.draw(st.lists(tensors(rows), min_size=1, max_size=3))
    batch = pa.RecordBatch.from_arrays([column_of(array) for array in arrays], list("abc")[: len(arrays)])
    start = data.draw(st.integers(0, rows - 1))
    told, found = sent(adapter(), batch.slice(start))
    assert all(alike(one, array[start:]) for one, array in zip(found.values(), arrays, strict=True))
    assert [one["name"] for one in told["inputs"]] == list("abc")[: len(arrays)]
    assert [one["datatype"] for one in told["inputs"]] == list(map(tensorwire.datatype_of, arrays))


@given(st.data(), st.integers(1, 30), st.integers(1, 4), st.booleans())
def test_what_is_sent_is_within_the_limit_and_has_every_value_once(data, rows, width, together):
    """Whatever the limit: the rows of all requests are the input's, and no body is longer than it was counted."""
    columns = [data.draw(draws.arrays(np.int64, rows)) for _ in range(width)]
    made = adapter(tensor="t") if together else adapter()
    names = list("abcd")[:width]
    batch = pa.RecordBatch.from_arrays([pa.array(one) for one in columns], names)
    limit = data.draw(st.integers(600, 3000))
    found = []
    for chunk in chunks_of(made, batch, limit):
        wire = made.wire(chunk.body)
        assert len(wire) <= len(chunk.body) <= limit
        found.append(tensorwire.read(made.headers(wire), wire)[1])
        assert all(len(one) == len(chunk) for one in found[-1].values())
    for at, name in enumerate(names):
        parts = [one["t"].reshape(-1, width)[:, at] if together else one[name] for one in found]
        assert np.concatenate(parts).tolist() == columns[at].tolist()


@given(st.text(min_size=1, max_size=3), st.integers(0, 2), st.sampled_from(["BOOL", "FP64", "BYTES"]))
def test_no_body_is_longer_than_it_was_counted(name, size, datatype):
    """Least of all where there is least in it: one row, of nothing or little."""
    array = np.full((1, size), b"", object) if datatype == "BYTES" else np.zeros((1, size), KINDS[datatype])
    column = pa.array(array.tolist(), nested(column_of(array.ravel()).type, [size]))
    _, found = sent(adapter(outputs=["o"]), pa.RecordBatch.from_arrays([column], [name]))
    assert found[name].shape == (1, size)


@pytest.mark.parametrize(("column", "datatype", "shape", "data"), COLUMNS)
def test_a_column_has_the_datatype_and_the_shape_that_it_has_in_json(column, datatype, shape, data):
    """Text is its UTF-8; a dictionary is what is in it."""
    told, found = sent(adapter(), pa.RecordBatch.from_arrays([column], ["x"]))
    assert (told["inputs"][0]["datatype"], told["inputs"][0]["shape"]) == (datatype, shape)
    values = [one.encode() for one in data] if datatype == "BYTES" else np.array(data, KINDS.get(datatype)).tolist()
    assert found["x"].ravel().tolist() == values


@pytest.mark.parametrize(
    "column",
    [
        pa.array([b"\xff", b""], pa.large_binary()),
        pa.array([b"\xff", b""], pa.binary_view()),
        pa.array([b"\xff", b""]).dictionary_encode(),
        pa.RunEndEncodedArray.from_arrays([1, 2], [b"\xff", b""]),
    ],
    ids=lambda column: str(column.type),
)
def test_bytes_are_sent_however_they_are_stored(column):
    """Each with its length before it."""
    assert sent(adapter(), pa.RecordBatch.from_arrays([column], ["x"]))[1]["x"].tolist() == [b"\xff", b""]


def test_a_tensor_that_is_stored_in_another_order_is_sent_as_it_is_meant():
    """Row by row, as JSON lists it."""
    array = np.arange(12, dtype=np.int16).reshape(2, 2, 3)
    kind = pa.fixed_shape_tensor(pa.int16(), [2, 3], permutation=[1, 0])
    storage = pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), 6)
    batch = pa.RecordBatch.from_arrays([pa.ExtensionArray.from_storage(kind, storage)], ["x"])
    told, found = sent(adapter(), batch)
    plain = OpenInference(OpenInferenceOptions(model="m"))
    listed = json.loads(plain.wire(chunks_of(plain, batch)[0].body))["inputs"][0]
    assert told["inputs"][0]["shape"] == listed["shape"] == [2, 3, 2]
    assert found["x"].ravel().tolist() == listed["data"] == array.transpose(0, 2, 1).ravel().tolist()


def test_columns_of_several_datatypes_are_one_tensor_of_doubles():
    """Halves and singles are widened; what a double would round is refused."""
    numbers = pa.array([2**53, 2**53 + 1, 2**63 - 1, -(2**62)])
    batch = pa.record_batch({"n": numbers, "h": pa.array(np.array([0.5, 1, 2, 65504], np.float16))})
    made = adapter(tensor="t")
    (chunk,) = chunks_of(made, batch)
    wire = made.wire(chunk.body)
    assert [one.source_row for one in chunk.refused] == [1, 2]
    assert chunk.refused[0].message == "n is 9007199254740993, which a tensor of FP64 would round"
    assert tensorwire.read(made.headers(wire), wire)[1]["t"].tolist() == [[2.0**53, 0.5], [-(2.0**62), 65504.0]]


def test_columns_of_text_and_bytes_are_one_tensor():
    """Row by row."""
    batch = pa.record_batch({"a": [b"\xff", b""], "b": ["x", "\u4e2d"]})
    _, found = sent(adapter(tensor="t"), batch)
    assert found["t"].tolist() == [[b"\xff", b"x"], [b"", "\u4e2d".encode()]]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1.0, None, 2.0]),
        pa.array([1, None, 2], pa.uint64()),
        pa.array([True, None, False]),
        pa.array(["a", None, "b"]),
        pa.array(["a", None, "b"]).dictionary_encode(),
        pa.array(["a", None, "b"], pa.string_view()),
        pa.array([[1], [None], [2]], pa.list_(pa.int8(), 1)),
        pa.array([[[1], [2]], None, [[3], [4]]], pa.list_(pa.list_(pa.float16(), 1), 2)),
        pa.array([[[1], [2]], [[1], None], [[3], [4]]], pa.list_(pa.list_(pa.int64(), 1), 2)),
    ],
    ids=lambda column: str(column.type),
)
def test_a_row_with_a_null_is_refused_alone(column):
    """Its dead letter shows the null; the others are sent."""
    made = adapter()
    (chunk,) = chunks_of(made, pa.RecordBatch.from_arrays([column], ["x"]))
    wire = made.wire(chunk.body)
    [refused] = chunk.refused
    assert (refused.source_row, refused.message) == (1, "x is null, or has a null in it, and a tensor has none")
    assert None in json.loads(refused.line)[0]["data"]
    found = tensorwire.read(made.headers(wire), wire)[1]["x"].ravel().tolist()
    expected = OpenInference(OpenInferenceOptions(model="m"))
    if "halffloat" not in str(column.type):
        (plain,) = chunks_of(expected, pa.RecordBatch.from_arrays([column], ["x"]))
        listed = json.loads(expected.wire(plain.body))["inputs"][0]["data"]
        assert found == [one.encode() if isinstance(one, str) else one for one in listed]


def test_nan_and_infinities_are_sent_unless_the_job_refuses_them():
    """`input.nan` says which."""
    batch = pa.record_batch({"x": pa.array([[1.0, float("nan")], [1.0, 2.0]], pa.list_(pa.float32(), 2))})
    assert np.isnan(sent(adapter(), batch)[1]["x"][0, 1])
    (chunk,) = chunks_of(adapter(), batch, nan="reject")
    assert [(one.source_row, one.message) for one in chunk.refused] == [
        (0, "x is NaN or infinite, or has such a value in it, and the job file says nan: reject")
    ]
    assert len(chunk) == 1


def test_text_that_is_not_utf8_is_refused():
    """A row of the wrong bytes is none that somebody wrote."""
    wrong = pa.StringArray.from_buffers(2, pa.py_buffer(np.array([0, 1, 2], np.int32)), pa.py_buffer(b"\xffa"))
    (chunk,) = chunks_of(adapter(), pa.RecordBatch.from_arrays([wrong], ["x"]))
    assert [(one.source_row, one.message) for one in chunk.refused] == [(0, "x is not UTF-8")]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, {"parameters": {"binary_data_output": True}}),
        ({"parameters": {"a": 1}}, {"parameters": {"binary_data_output": True, "a": 1}}),
        ({"parameters": {"binary_data_output": False}}, {"parameters": {"binary_data_output": False}}),
        (
            {"outputs": ["a", "b"], "parameters": {"c": 1}},
            {
                "parameters": {"c": 1},
                "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in "ab"],
            },
        ),
    ],
)
def test_outputs_are_asked_for_as_bytes(options, told):
    """All of them by a parameter of the request, named ones each; beside the job's own parameters."""
    found, _ = sent(adapter(**options), pa.record_batch({"x": [1.0]}))
    assert {name: value for name, value in found.items() if name != "inputs"} == told


def test_halves_of_a_request_are_requests_of_their_own_and_letters_show_values():
    """NaN is null there, as in all JSON, and bytes are base64."""
    batch = pa.record_batch({"x": pa.array([0.1, float("nan")], pa.float32()), "b": [b"\xff", b"a"]})
    made = adapter()
    (chunk,) = chunks_of(made, batch)
    half = chunk.part(1, 2, made.frame)
    wire = made.wire(half.body)
    assert tensorwire.read(made.headers(wire), wire)[1]["b"].tolist() == [b"a"]
    assert json.loads(made.shown(chunk.line(0))) == [
        {"name": "x", "shape": [1], "datatype": "FP32", "data": [0.1]},
        {"name": "b", "shape": [1], "datatype": "BYTES", "data": ["/w=="]},
    ]
    assert json.loads(made.shown(half.line(0)))[0]["data"] == [None]


# Replies


def read(reply, rows=2):
    headers, body = reply
    found = adapter().read(200, headers, body, uuid="", rows=rows)
    return found if isinstance(found, Fault) else [json.loads(text) for text in found.to_pylist()]


@pytest.mark.parametrize("listed", [(), ("y",), ("p", "s"), ("y", "p", "s")])
def test_outputs_are_read_in_either_form(listed):
    """Each as it came; what belongs to a row is the same."""
    outputs = {
        "y": np.array([0, 2**63 - 1]),
        "p": np.array([[0.5, 1.0], [0.25, -0.0]], np.float32),
        "s": np.array(["a", "\u4e2d"]),
    }
    raw = {**outputs, "s": np.array([b"a", "\u4e2d".encode()], object)}
    tensors = {name: (outputs if name in listed else raw)[name] for name in outputs}
    assert read(tensorwire.reply(tensors, listed)) == [
        {"y": 0, "p": [0.5, 1.0], "s": "a"},
        {"y": 2**63 - 1, "p": [0.25, -0.0], "s": "\u4e2d"},
    ]


def test_floats_are_as_short_as_their_width_and_nan_is_null():
    """As everywhere."""
    headers, body = tensorwire.reply(
        {
            "h": np.array([0.1, np.nan], np.float16),
            "f": np.array([[0.1], [np.inf]], np.float32),
            "d": np.array([[[0.1, -np.inf]], [[1e300, -0.0]]]),
        }
    )
    found = adapter().read(200, headers, body, uuid="", rows=2).to_pylist()
    assert found == ['{"h":0.1,"f":0.1,"d":[[0.1,null]]}', '{"h":null,"f":null,"d":[[1e300,-0.0]]}']


def test_bytes_that_are_no_text_are_base64():
    """Value by value."""
    assert read(tensorwire.reply({"b": np.array([[b"\xff", b"a"], [b"", b"\x00"]], object)})) == [
        {"b": ["/w==", "a"]},
        {"b": ["", "\x00"]},
    ]


def test_a_byte_that_is_not_zero_is_true():
    """And none is."""
    told = {"outputs": [{"name": "y", "shape": [2], "datatype": "BOOL", "parameters": {"binary_data_size": 2}}]}
    body = json.dumps(told).encode()
    assert read(({LENGTH: str(len(body))}, body + b"\x00\x02")) == [{"y": False}, {"y": True}]


def test_a_reply_without_bytes_has_no_header():
    """Triton leaves it out where all outputs are empty."""
    assert read(tensorwire.reply({"y": np.zeros((2, 0), np.float32)})) == [{"y": []}, {"y": []}]


@given(tensors(rows=3))
def test_what_is_read_is_what_was_sent(array):
    """For every datatype and shape: finite numbers as they are, others as null, text as text."""
    shape = array.shape[1:] if array.shape[1:] != (1,) else ()

    def plain(value):
        if isinstance(value, list):
            return [plain(one) for one in value]
        if isinstance(value, bytes):
            return json.loads(adapter_text(value))
        return None if isinstance(value, float) and not np.isfinite(value) else value

    found = read(tensorwire.reply({"y": array}), 3)
    expected = [plain(one) for one in array.reshape(3, *shape).tolist()]
    if array.dtype.kind == "f":
        kind = array.dtype
        whole = [np.array([np.nan if v is None else v for v in leaves(one["y"])], kind) for one in found]
        assert all(
            np.array_equal(one, np.where(np.isfinite(row.ravel()), row.ravel(), np.nan), equal_nan=True)
            for one, row in zip(whole, array, strict=True)
        )
    else:
        assert [one["y"] for one in found] == expected


def adapter_text(value):
    """Return the JSON of bytes: text, or base64 of what is no text."""
    import base64

    try:
        return json.dumps(value.decode())
    except UnicodeDecodeError:
        return json.dumps(base64.b64encode(value).decode())


def leaves(value):
    """Yield what is in lists of any depth."""
    if isinstance(value, list):
        for one in value:
            yield from leaves(one)
    else:
        yield value


def output(datatype="FP32", shape=(2,), **parameters):
    return {"name": "y", "shape": list(shape), "datatype": datatype, "parameters": parameters}


@pytest.mark.parametrize(
    ("one", "content", "said"),
    [
        (output(binary_data_size=9), b"12345678", "output 'y' has 9 bytes, and 8 came back"),
        (output(binary_data_size=-1), b"12345678", "output 'y' has -1 bytes"),
        (output(binary_data_size=8), b"123456789abc", "4 bytes came back behind the last output"),
        (output(binary_data_size=7), b"1234567", "output 'y': buffer size must be a multiple"),
        (output(binary_data_size=4), b"1234", "output 'y' has shape [2], and 1 values"),
        (output(shape=(1, 2), binary_data_size=8), b"12345678", "2 rows were sent, and output 'y' came back with"),
        (output(shape=(2, -1), binary_data_size=0), b"", "2 rows were sent, and output 'y' came back with"),
        (output("BF16", binary_data_size=4), b"1234", "output 'y': 'BF16' is no datatype; known: BOOL"),
        (output("BYTES", binary_data_size=3), b"123", "output 'y': its last value is cut short"),
        (output("BYTES", binary_data_size=5), b"\x05\x00\x00\x001", "output 'y': its last value is cut short"),
        (output("BYTES", binary_data_size=4), b"\x00" * 4, "output 'y' has shape [2], and 1 values"),
        (output(binary_data_size="8"), b"12345678", "the reply cannot be read: Expected `int | null`"),
        (output(), b"", "output 'y' came back without data"),
    ],
)
def test_a_reply_that_does_not_add_up_is_a_mismatch(one, content, said):
    """With what is wrong, and never an answer."""
    body = json.dumps({"outputs": [one]}).encode()
    fault = read(({LENGTH: str(len(body))}, body + content))
    assert fault.action is Action.MISFIT
    assert said in fault.message


@pytest.mark.parametrize("told", ["-1", "x", "", "1e1", "99999", "9" * 5000, "\u0661"])
def test_a_length_that_cannot_be_is_a_mismatch(told):
    """Whatever the header says."""
    fault = read(({LENGTH: told}, tensorwire.reply({"y": np.zeros(2)})[1]))
    assert fault.action is Action.MISFIT


@given(st.dictionaries(st.just(LENGTH), st.integers(0, 200).map(str) | st.text(max_size=3)), st.binary(max_size=200))
def test_reading_never_fails_whatever_comes(headers, body):
    """A reply of any bytes is a mismatch, or an answer."""
    assert isinstance(adapter().read(200, headers, body, uuid="", rows=1), Fault)


@given(st.data(), tensors(rows=2), st.integers(0, 400))
def test_a_reply_that_is_damaged_never_fails(data, array, at):
    """Cut off, or with a byte changed."""
    headers, body = tensorwire.reply({"y": array})
    at = min(at, len(body) - 1)
    damaged = body[:at] + data.draw(st.sampled_from([b"", bytes([body[at] ^ 1]) + body[at + 1 :]]))
    found = adapter().read(200, headers, damaged, uuid="", rows=2)
    assert isinstance(found, Fault) or len(found) == 2


# Jobs


def job(folder, url="http://127.0.0.1:1", **keys):
    """Write a job that sends tensors as bytes."""
    options = {"model": "m", "binary": True, **keys.pop("options", {})}
    return job_file(
        folder,
        "",
        **{
            "service__url": url,
            "service__auth": NO_AUTH,
            "service__protocol": "open-inference",
            "service__options": options,
            **keys,
        },
    )


def test_a_poisoned_row_is_found_by_halving_and_shown_with_its_values(tmp_path):
    """It alone is a dead letter; all others come back as they were, and the output is proved."""
    rows = 60
    halves = np.random.default_rng(1).random((rows, 3)).astype(np.float16)
    halves[17, 0], halves[5, 1] = tensorwire.POISON, np.nan
    table = pa.table(
        {"id": list(range(rows)), "x": column_of(halves), "b": [bytes([row + 128]) for row in range(rows)]}
    )
    put(tmp_path / "in" / "a.parquet", table)
    with recording(tensorwire.serve) as service:
        columns = {"x": "fixed_size_list<float16>[3]"}
        given = {"path": "in/*.parquet", "send": ["x", "b"], "keep": ["id"], "columns": columns}
        url = service.url.removesuffix("/v1/infers/iris")
        done = call("run", job(tmp_path, url, input=given, errors__allow=1, service__limits={"rows": 20}), "-q")
    assert done.code == 0, done.err
    [letter] = letters(tmp_path / "out")
    shown = {"name": "x", "shape": [1, 3], "datatype": "FP16", "data": [float(str(one)) for one in halves[17]]}
    assert (letter["source_row"], letter["kind"], letter["message"]) == (17, "rejected", "the model takes no poison")
    assert letter["row"] == [shown, {"name": "b", "shape": [1], "datatype": "BYTES", "data": ["kQ=="]}]
    found = {row["id"]: json.loads(row["prediction"])["x"] for row in results(tmp_path / "out").to_pylist()}
    assert found[5][1] is None
    assert set(found) == set(range(rows)) - {17}
    assert all(np.array(found[row], np.float16).tobytes() == halves[row].tobytes() for row in found if row != 5)
    assert not proved(tmp_path / "out")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"service__transport": "sse"}, "service.options.binary: bytes of tensors go over http alone, and it is sse"),
        (
            {"service__url": "ws://127.0.0.1:1/v2/models/m/infer", "options": {"model": None}},
            "service.options.binary: bytes of tensors go over http alone, and it is websocket; leave it out",
        ),
        ({"options": {"binary": "maybe"}}, "service.options.binary: 'maybe' is not allowed"),
    ],
)
def test_what_cannot_carry_bytes_is_an_error_of_the_job_file(tmp_path, keys, said):
    """Before anything is sent."""
    with pytest.raises(JobError) as error:
        loaded(job(tmp_path, **keys))
    assert said in str(error.value)


def test_only_a_job_that_says_so_is_another_one(tmp_path):
    """The default changes no job; bytes may change answers, for NaN is not null then."""
    prints = [
        fingerprint(loaded(job(tmp_path, options=options))) for options in ({"binary": None}, {"binary": False}, {})
    ]
    assert prints[0] == prints[1] != prints[2]
