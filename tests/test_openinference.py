from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import JobError
from pipeline.ids import row_namer
from pipeline.openinference import OpenInference
from pipeline.pack import Block, Limits, pack
from pipeline.protocols import ADAPTERS
from pipeline.status import Action, Fault
from schemas.job import Input
from schemas.options import OpenInferenceOptions

FLOWERS = pa.record_batch({"x": pa.array([1.0, 2.5]), "n": pa.array([1, 2], pa.int32())})


def adapter(**options):
    return OpenInference(OpenInferenceOptions(model="m", **options))


def chunks_of(made, batch, limit=12_000_000, **keys):
    """Return the requests for a batch."""
    given = Input(path="in/*.parquet", **keys)
    encoder = made.encoder(given, batch.schema, made.columns(given, batch.schema.names))
    block = Block(0, encoder.encode(batch), row_namer("job", "path")(0, batch.num_rows), batch.select([]))
    return list(pack([block], Limits(limit), made.frame))


def sent(made, batch, **keys):
    """Return what is sent for a batch, and that it is no longer than what was counted."""
    (chunk,) = chunks_of(made, batch, **keys)
    wire = made.wire(chunk.body)
    assert len(wire) <= len(chunk.body)
    return json.loads(wire)


def tensor(name, shape, datatype, data):
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def read(*outputs, rows=2, status=200):
    body = json.dumps({"model_name": "m", "outputs": list(outputs)}).encode()
    found = adapter().read(status, {}, body, uuid="", rows=rows)
    return found if isinstance(found, Fault) else [json.loads(text) for text in found.to_pylist()]


def test_each_column_is_a_tensor():
    """With its own datatype, and a row for each of its items."""
    assert sent(adapter(), FLOWERS, rename={"n": "count"}) == {
        "inputs": [tensor("x", [2], "FP64", [1.0, 2.5]), tensor("count", [2], "INT32", [1, 2])]
    }


def test_all_columns_may_be_one_tensor():
    """A row of it is a row of the input; what the numbers are in common is what can hold them all."""
    assert sent(adapter(tensor="input-0", outputs=["a", "b"]), FLOWERS) == {
        "outputs": [{"name": "a"}, {"name": "b"}],
        "inputs": [tensor("input-0", [2, 2], "FP64", [1.0, 1, 2.5, 2])],
    }


def test_a_whole_number_that_the_common_datatype_would_round_is_refused():
    """FP64 has 53 bits: a larger number is sent only where it is exact."""
    numbers = pa.array([2**53, 2**53 + 1, 2**63 - 1, -(2**62)])
    (chunk,) = chunks_of(adapter(tensor="t"), pa.record_batch({"n": numbers, "x": [0.5] * 4}))
    assert [one.source_row for one in chunk.refused] == [1, 2]
    assert chunk.refused[0].message == "n is 9007199254740993, which a tensor of FP64 would round"
    assert json.loads(adapter(tensor="t").wire(chunk.body))["inputs"][0]["data"] == [2**53, 0.5, -(2**62), 0.5]


def test_parameters_are_those_of_the_request():
    """And part of it, whether rows are sent together or alone."""
    made = adapter(parameters={"content_type": "pd"}, outputs=["a"])
    assert list(sent(made, FLOWERS)) == ["parameters", "outputs", "inputs"]
    assert sent(made, FLOWERS)["parameters"] == {"content_type": "pd"}


SHAPED = pa.array([[[1.0, 2.0]], [[3.0, 4.0]]], pa.list_(pa.list_(pa.float32(), 2), 1))
FIXED = pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(8, dtype=np.int8).reshape(2, 2, 2))
COLUMNS = [
    (pa.array([True, False]), "BOOL", [2], [True, False]),
    (pa.array([0, 255], pa.uint8()), "UINT8", [2], [0, 255]),
    (pa.array([-(2**63), 2**63 - 1]), "INT64", [2], [-(2**63), 2**63 - 1]),
    (pa.array([0, 2**64 - 1], pa.uint64()), "UINT64", [2], [0, 2**64 - 1]),
    (pa.array([0.1, 3.0], pa.float32()), "FP32", [2], [0.1, 3.0]),
    (pa.array(["a,]\n", "\u4e2d"]), "BYTES", [2], ["a,]\n", "\u4e2d"]),
    (pa.array(["a", "b"]).dictionary_encode(), "BYTES", [2], ["a", "b"]),
    (SHAPED, "FP32", [2, 1, 2], [1.0, 2.0, 3.0, 4.0]),
    (pa.array([[], []], pa.list_(pa.int8(), 0)), "INT8", [2, 0], []),
    (FIXED, "INT8", [2, 2, 2], list(range(8))),
]


@pytest.mark.parametrize(("column", "datatype", "shape", "data"), COLUMNS)
def test_a_column_has_the_datatype_and_the_shape_of_its_type(column, datatype, shape, data):
    """Lists of a fixed size are further axes; data is flat, row by row."""
    batch = pa.RecordBatch.from_arrays([column], ["x"])
    assert sent(adapter(), batch) == {"inputs": [tensor("x", shape, datatype, data)]}


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (pa.float16(), "no FP16 in JSON; set service.options.binary: true, or cast it"),
        (pa.list_(pa.float32()), "a tensor's rows have one shape"),
        (pa.binary(), "in JSON the protocol's BYTES are text; set service.options.binary: true, or cast it"),
        (pa.timestamp("s"), "allowed in a tensor"),
        (pa.decimal128(5), "allowed in a tensor"),
        (pa.struct({"a": pa.int8()}), "allowed in a tensor"),
    ],
)
def test_what_no_tensor_holds_is_refused_for_the_column(kind, said):
    """Before anything is sent, and with the mend."""
    with pytest.raises(JobError, match=said):
        adapter().encoder(Input(path="in"), pa.schema({"x": kind}), ["x"])


@pytest.mark.parametrize("options", [{}, {"tensor": "t"}, {"binary": True}])
def test_a_request_without_a_tensor_is_refused(options):
    """Where all columns are kept, none is left to be sent."""
    made = ADAPTERS["open-inference"](OpenInferenceOptions(model="m", **options), "")
    with pytest.raises(JobError, match=r"input\.send: every column is in input\.keep"):
        made.encoder(Input(path="in"), pa.schema({"x": pa.int8()}), [])


@pytest.mark.parametrize(
    ("kinds", "said"),
    [((pa.int8(), pa.string()), "of one datatype, or all numbers"), ((pa.int8(), pa.list_(pa.int8(), 2)), "one list")],
)
def test_columns_that_are_no_tensor_together_are_refused(kinds, said):
    """By the option that wants them together."""
    schema = pa.schema(dict(zip("xy", kinds, strict=True)))
    with pytest.raises(JobError, match=f"service.options.tensor: .*{said}"):
        adapter(tensor="t").encoder(Input(path="in"), schema, ["x", "y"])


@pytest.mark.parametrize(
    "column", [[1.0, None, float("nan")], pa.array([[1.0], [None], None], pa.list_(pa.float64(), 1))]
)
def test_a_row_with_something_missing_is_refused_alone(column):
    """A tensor has no null and no NaN."""
    batch = pa.record_batch({"x": column})
    (chunk,) = chunks_of(adapter(), batch)
    assert [one.source_row for one in chunk.refused] == [1, 2]
    assert all("x is null, NaN or infinite" in one.message for one in chunk.refused)
    assert json.loads(adapter().wire(chunk.body))["inputs"][0]["data"] == [1.0]


@given(st.data(), st.integers(1, 30), st.integers(1, 4), st.booleans())
def test_what_is_sent_is_within_the_limit_and_has_every_value_once(data, rows, width, together):
    """Whatever the limit: the rows of all requests are the input's, and no body is longer than it was counted."""
    values = [data.draw(st.lists(st.integers(-(10**9), 10**9), min_size=rows, max_size=rows)) for _ in range(width)]
    batch = pa.RecordBatch.from_arrays([pa.array(one, pa.int64()) for one in values], list("abcd")[:width])
    made = adapter(tensor="t") if together else adapter()
    limit = data.draw(st.integers(400, 2000))
    bodies = [(made.wire(chunk.body), len(chunk)) for chunk in chunks_of(made, batch, limit)]
    assert all(len(body) <= limit for body, _ in bodies)
    found = [[] for _ in range(width)]
    for body, count in bodies:
        inputs = json.loads(body)["inputs"]
        assert all(one["shape"][0] == count for one in inputs)
        columns = [inputs[0]["data"][at::width] for at in range(width)] if together else [one["data"] for one in inputs]
        for place, column in zip(found, columns, strict=True):
            place.extend(column)
    assert found == values


def test_halves_are_requests_of_their_own():
    """A dead letter shows the row as it would be sent alone."""
    made = adapter()
    (chunk,) = chunks_of(made, FLOWERS)
    half = chunk.part(1, 2, made.frame)
    alone = [tensor("x", [1], "FP64", [2.5]), tensor("n", [1], "INT32", [2])]
    assert json.loads(made.wire(half.body)) == {"inputs": alone}
    assert json.loads(half.line(0)) == alone


@pytest.mark.parametrize("outputs", [[tensor("y", [2], "INT64", [0, 2])], [tensor("y", [2, 1], "INT64", [0, 2])]])
def test_one_value_a_row_is_a_plain_value(outputs):
    """MLServer says [rows, 1] where KServe says [rows]."""
    assert read(*outputs) == [{"y": 0}, {"y": 2}]


def test_several_outputs_are_one_object_a_row():
    """Each with its own shape, flat or nested."""
    found = read(
        tensor("y", [2, 1], "INT64", [[0], [2]]),
        tensor("p", [2, 2], "FP64", [0.5, 0.5, 1.0, 0.0]),
        tensor("q", [2, 1, 2], "FP64", [1, 2, 3, 4]),
        tensor("n", [2, 2], "FP64", [[1, 2], [3, 4]]),
        tensor("s", [2], "BYTES", ["a", "b"]),
    )
    assert found == [
        {"y": 0, "p": [0.5, 0.5], "q": [[1, 2]], "n": [1, 2], "s": "a"},
        {"y": 2, "p": [1.0, 0.0], "q": [[3, 4]], "n": [3, 4], "s": "b"},
    ]


@pytest.mark.parametrize("data", [[0, 2], [[0], [2]], [[[0]], [[2]]]])
def test_nested_data_says_the_same_as_flat_data(data):
    """The shape says how a row's part is nested, and however it came."""
    assert read(tensor("y", [2, 1, 1], "INT64", data)) == [{"y": [[0]]}, {"y": [[2]]}]
    assert read(tensor("y", [2], "INT64", data)) == [{"y": 0}, {"y": 2}]


def test_text_with_a_bracket_is_no_list():
    """Flat data may have any."""
    assert read(tensor("s", [2], "BYTES", ["[a", "[]"])) == [{"s": "[a"}, {"s": "[]"}]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (tensor("y", [1], "INT64", [0]), "2 rows were sent, and output 'y' came back with shape [1]"),
        (tensor("y", [], "INT64", [0]), "came back with shape []"),
        (tensor("y", [2, -1], "INT64", []), "came back with shape [2, -1]"),
        (tensor("y", [2], "INT64", [0]), "has shape [2], and 1 values"),
        (tensor("y", [2, 2], "INT64", [1, 2, 3]), "has shape [2, 2], and 3 values"),
        (tensor("y", [2, 3], "INT64", [1, 2]), "has shape [2, 3], and 2 values"),
        (tensor("y", [2, 3], "INT64", [[1, 2], [3, 4]]), "has shape [2, 3], and 4 values"),
        (tensor("y", [2, 3], "INT64", [[1, 2], [3]]), "has shape [2, 3], and its lists have not"),
        (tensor("y", [2, 2], "INT64", [[1], [2, 3, 4]]), "its lists have not"),
        (tensor("y", [2, 3], "INT64", [[1, 2], [3, 4], [5, 6]]), "its lists have not"),
        (tensor("y", [2], "INT64", [[1, 2], [3]]), "its lists have not"),
        (tensor("y", [2], "INT64", [[1], 2]), "its lists have not"),
        (tensor("y", [2, 1], "INT64", [[[1]], [2]]), "its lists have not"),
        (tensor("y", [2], "INT64", None), "cannot be read"),
        ({"name": "y"}, "cannot be read"),
    ],
)
def test_a_reply_without_an_answer_a_row_is_none(output, message):
    """By its shape, and by its data."""
    fault = read(output)
    assert (fault.action, fault.status) == (Action.MISFIT, 200)
    assert message in fault.message
    assert "no outputs" in read().message


@given(st.binary() | st.text().map(str.encode))
def test_no_reply_raises(body):
    """Any bytes are answers or a fault."""
    assert isinstance(adapter().read(200, {}, body, uuid="", rows=1), Fault | pa.Array)


@given(
    st.lists(st.integers(-1, 3), max_size=3),
    st.recursive(st.integers(0, 9), lambda inner: st.lists(inner, max_size=3), max_leaves=9),
)
def test_no_tensor_raises(shape, data):
    """Whatever its shape says of its data."""
    body = json.dumps({"outputs": [tensor("y", shape, "INT64", data)]}).encode()
    found = adapter().read(200, {}, body, uuid="", rows=2)
    assert isinstance(found, Fault) or len(found) == 2
