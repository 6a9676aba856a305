"""What is sent to real model servers comes back bit for bit, or is refused with a reason: V2's tensors, V1's JSON."""

from __future__ import annotations

import json
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import requests
from anyarrow import KINDS, build, values_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as draws
from test_openinference import adapter, chunks_of

from pipeline.errors import JobError
from pipeline.rowlists import RowLists
from pipeline.status import Action
from schemas.options import OPTIONS

pytestmark = pytest.mark.timeout(900)  # the first one may install a server
MANY = settings(max_examples=150, suppress_health_check=list(HealthCheck))
INFER = "/v2/models/echo/infer"
DATATYPES = {
    "BOOL": np.bool_,
    **{f"{sign}INT{bits}": np.dtype(f"{sign}int{bits}".lower()) for sign in ("", "U") for bits in (8, 16, 32, 64)},
    "FP32": np.float32,
    "FP64": np.float64,
}


class Echo(NamedTuple):
    """A server's model that gives back what it has decoded."""

    server: str
    url: str
    session: requests.Session

    def ask(self, path, body):
        """Return status and body of its reply."""
        reply = self.session.post(self.url + path, data=body, headers={"Content-Type": "application/json"}, timeout=60)
        return reply.status_code, reply.content


@pytest.fixture(params=["kserve", "mlserver"])
def echo(request, model_server):
    """Both servers."""
    with requests.Session() as session:
        yield Echo(request.param, model_server(request.param).url, session)


def echoed(echo, column):
    """Send a column's rows in one request; return what came back of each that was sent, why others were not, the type.

    Where all are refused nothing is sent, and there is no type.
    """
    made, batch = adapter(), pa.record_batch({"x": column})
    [chunk] = chunks_of(made, batch)
    refused = {one.source_row: one.message for one in chunk.refused}
    if not len(chunk):
        return [], refused, None
    status, body = echo.ask(INFER, made.wire(chunk.body))
    answers = made.read(status, {}, body, uuid="", rows=len(chunk))
    return [json.loads(one)["x"] for one in answers.to_pylist()], refused, json.loads(body)["outputs"][0]["datatype"]


def nested(kind, shape):
    """Return the Arrow type of a tensor's row."""
    for size in reversed(shape):
        kind = pa.list_(kind, size)
    return kind


@st.composite
def tensors(draw):
    """Arrays of any datatype, whose first axis is the rows."""
    datatype = draw(st.sampled_from(list(DATATYPES)))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    rows = draw(st.integers(1, 4))
    return datatype, draw(draws.arrays(DATATYPES[datatype], (rows, *shape)))


@MANY
@given(tensors())
def test_a_tensor_of_any_datatype_and_shape_comes_back_bit_for_bit(echo, drawn):
    """With its datatype; a row with NaN or an infinity is refused, and says why."""
    datatype, array = drawn
    column = pa.array(array.tolist(), nested(pa.from_numpy_dtype(array.dtype), array.shape[1:]))
    found, refused, told = echoed(echo, column)
    finite = [bool(np.isfinite(row).all()) for row in array]
    assert set(refused) == {row for row, there in enumerate(finite) if not there}
    assert all("x is null, NaN or infinite" in why for why in refused.values())
    expected = array[finite]
    assert told in {datatype, None}
    assert np.array(found, array.dtype).reshape(expected.shape).tobytes() == expected.tobytes()


LIMITS = [
    pa.array([-0.0, 0.0, 5e-324, -5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, 0.1, 2.0**53 + 2]),
    pa.array([-0.0, 1e-45, -1e-45, 1.1754944e-38, 3.4028235e38, 0.1, 16777216.0], pa.float32()),
    pa.array([-(2**63), -(2**53) - 1, -1, 0, 2**53 + 1, 2**63 - 1], pa.int64()),
    pa.array([0, 2**53 + 1, 2**63, 2**64 - 1], pa.uint64()),
]


@pytest.mark.parametrize("column", LIMITS, ids=lambda column: str(column.type))
def test_the_ends_of_a_datatype_come_back(echo, column):
    """Negative zero, denormals, and whole numbers that no double holds."""
    found, refused, _ = echoed(echo, column)
    assert not refused
    assert np.array(found, column.to_numpy().dtype).tobytes() == column.to_numpy().tobytes()


@MANY
@given(st.lists(st.text(), min_size=1, max_size=4))
def test_text_comes_back(echo, texts):
    """As BYTES, which are UTF-8 in JSON: with control characters, NUL, and all of Unicode."""
    assert echoed(echo, pa.array(texts)) == (texts, {}, "BYTES")


def test_several_tensors_stay_apart(echo):
    """Each output is the row's own part of the input of its name."""
    pairs = pa.array([[1.5, 2.5], [3.5, 4.5]], pa.list_(pa.float64(), 2))
    batch = pa.record_batch({"a": [1, 2], "b": ["x", "y"], "c": pairs})
    made = adapter()
    [chunk] = chunks_of(made, batch)
    answers = made.read(*_headed(echo.ask(INFER, made.wire(chunk.body))), uuid="", rows=2)
    assert [json.loads(one) for one in answers.to_pylist()] == batch.to_pylist()


def _headed(reply):
    status, body = reply
    return status, {}, body


def test_halves_are_refused_for_their_column_and_read_in_a_reply(echo):
    """The protocol has no FP16 in JSON, as KServe says; MLServer takes and gives it all the same."""
    halves = np.array([5.960464477539063e-08, -0.0, 65504.0], np.float16)
    with pytest.raises(JobError, match="the protocol has no FP16 in JSON"):
        echoed(echo, pa.array(halves))
    tensor = {"name": "x", "shape": [3], "datatype": "FP16", "data": halves.tolist()}
    found = adapter().read(*_headed(echo.ask(INFER, json.dumps({"inputs": [tensor]}))), uuid="", rows=3)
    if echo.server == "kserve":
        assert (found.action, found.status) == (Action.REJECT, 400)
        assert "FP16 data via JSON is not supported" in found.message
    else:
        values = np.array([json.loads(one)["x"] for one in found.to_pylist()], np.float16)
        assert values.tobytes() == halves.tobytes()


@pytest.mark.parametrize("echo", ["kserve"], indirect=True)
@MANY
@given(st.data(), KINDS)
def test_rows_of_any_type_come_back_from_the_v1_protocol(echo, data, kind):
    """As the JSON that they are sent as, or they are refused with a reason; numbers as a double holds them."""
    values = data.draw(st.lists(values_of(kind), min_size=1, max_size=4))
    made = RowLists("kserve", OPTIONS["kserve"](model="echo"))
    try:
        [chunk] = chunks_of(made, pa.record_batch({"x": build(values, kind)}))
    except JobError:
        return
    assert len(chunk) + len(chunk.refused) == len(values)
    assert all(one.message for one in chunk.refused)
    if len(chunk):
        answers = made.read(*_headed(echo.ask("/v1/models/echo:predict", chunk.body)), uuid="", rows=len(chunk))
        assert [said(one) for one in answers.to_pylist()] == [said(chunk.line(row)) for row in range(len(chunk))]


def said(text):
    """Return what a JSON text says to a reader with whole numbers of 64 bits; -0.0 is not 0.0, bytes are base64."""
    whole = lambda digits: int(digits) if -(2**63) <= int(digits) < 2**64 else float(digits)  # noqa: E731
    return repr(json.loads(text, parse_int=whole, object_hook=_plain))


def _plain(value):
    return value["b64"] if list(value) == ["b64"] else value
