from __future__ import annotations

import json

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import JobError
from pipeline.ids import row_namer
from pipeline.pack import Block, Limits, pack
from pipeline.rowlists import DIALECTS, RowLists
from pipeline.status import Action, Fault
from schemas.job import Input
from schemas.options import OPTIONS

ROWS = pa.record_batch({"x": pa.array([1.0, 2.5]), "n": pa.array([1, None])})
BYTES = pa.record_batch({"image": pa.array([b"\x00\xff", None]), "some": pa.array([[b"a"], []])})
REQUESTS = [
    ("kserve", {}, {"instances": [{"x": 1.0, "n": 1}, {"x": 2.5, "n": None}]}),
    ("kserve", {"rows": "lists"}, {"instances": [[1.0, 1], [2.5, None]]}),
    ("tensorflow", {}, {"instances": [{"x": 1.0, "n": 1}, {"x": 2.5, "n": None}]}),
    ("tensorflow", {"signature": "s", "rows": "lists"}, {"signature_name": "s", "instances": [[1.0, 1], [2.5, None]]}),
    ("torchserve", {"rows": "lists"}, {"instances": [[1.0, 1], [2.5, None]]}),
    ("mlflow", {}, {"dataframe_records": [{"x": 1.0, "n": 1}, {"x": 2.5, "n": None}]}),
    ("mlflow", {"key": "inputs", "rows": "lists"}, {"inputs": [[1.0, 1], [2.5, None]]}),
    ("mlflow", {"params": {"t": [1]}, "key": "instances", "rows": "lists"}, None),
]
PROTOCOLS = sorted(DIALECTS)


def adapter(protocol, **options):
    return RowLists(protocol, OPTIONS[protocol](**options))


def body_of(made, batch, **keys):
    """Return the body of the one request for a batch."""
    given = Input(path="in/*.parquet", **keys)
    send = made.columns(given, batch.schema.names)
    encoded = made.encoder(given, batch.schema, send).encode(batch)
    block = Block(0, encoded, row_namer("job", "path")(0, batch.num_rows), batch.select([]))
    (chunk,) = pack([block], Limits(12_000_000), made.frame)
    return chunk.body


def read(protocol, body, *, status=200, rows=2):
    return adapter(protocol).read(status, {}, body, uuid="", rows=rows)


@pytest.mark.parametrize(("protocol", "options", "body"), REQUESTS)
def test_a_request_lists_its_rows_under_the_protocols_key(protocol, options, body):
    """As objects or as lists, beside what the options add."""
    expected = body or {"params": {"t": [1]}, "instances": [[1.0, 1], [2.5, None]]}
    made = body_of(adapter(protocol, **options), ROWS)
    assert json.loads(made) == expected
    assert b"1.0" in made


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_single_column_may_be_the_rows_themselves(protocol):
    """`values`: what stands in the list is the column's value; of two columns it cannot be."""
    key = {"key": "inputs"} if protocol == "mlflow" else {}
    made = adapter(protocol, rows="values", **key)
    assert next(iter(json.loads(body_of(made, ROWS, send=["x"])).values())) == [1.0, 2.5]
    with pytest.raises(JobError, match=r"service.options.rows: 'values' sends one column, and input.send has 2"):
        body_of(made, ROWS)


@pytest.mark.parametrize(
    ("protocol", "rows"),
    [
        ("kserve", [{"image": {"b64": "AP8="}, "some": [{"b64": "YQ=="}]}, {"image": None, "some": []}]),
        ("mlflow", [{"image": "AP8=", "some": ["YQ=="]}, {"image": None, "some": []}]),
    ],
)
def test_bytes_are_base64_as_the_protocol_has_it(protocol, rows):
    """In an object of its own where that is the servers' custom, inside of lists too."""
    assert next(iter(json.loads(body_of(adapter(protocol), BYTES)).values())) == rows


def test_names_are_those_that_the_service_expects():
    """`input.rename` is for the wire."""
    assert json.loads(body_of(adapter("kserve"), ROWS, send=["x"], rename={"x": "y"})) == {
        "instances": [{"y": 1.0}, {"y": 2.5}]
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_reply_is_one_text_a_row_in_order(protocol):
    """Verbatim, whatever it is, and whatever else the reply has."""
    body = b'{\n  "model": "m", "predictions": [ 1.10, {"b":[1],"a":null}\n]}'
    assert read(protocol, body).to_pylist() == ["1.10", '{"b":[1],"a":null}']


def test_a_torchserve_handler_may_answer_with_a_bare_list():
    """No other protocol has one."""
    assert read("torchserve", b"\n[1, [2]]").to_pylist() == ["1", "[2]"]
    assert read("kserve", b"[1, 2]").action is Action.MISFIT


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nan_in_a_reply_is_null(protocol):
    """JSON has none; TensorFlow Serving writes it."""
    assert read(protocol, b'{"predictions": [NaN, [1.5, -Infinity]]}').to_pylist() == ["null", "[1.5,null]"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"predictions":[1]}', "2 rows were sent, 1 answers came back"),
        (b'{"predictions":[1,2,3]}', "2 rows were sent, 3 answers came back"),
        (b'{"predictions":{"0":1,"1":2}}', "cannot be read"),
        (b'{"predictions":null}', "cannot be read"),
        (b"", "cannot be read"),
        (b"null", "cannot be read"),
        (b"<html>", "cannot be read"),
        (b'{"predictions":[1,2', "cannot be read"),
        (b'{"predictions":["\xff",2]}', ""),
        (b"{}", "the reply has no 'predictions'"),
        (b'{"error":"the model is asleep"}', "the reply has no 'predictions': the model is asleep"),
    ],
)
def test_a_reply_that_does_not_fit_is_no_answer(protocol, body, message):
    """A failure of that request, never a guess; with the server's words where it has some."""
    fault = read(protocol, body)
    assert isinstance(fault, Fault)
    assert (fault.action, fault.status) == (Action.MISFIT, 200)
    assert message in fault.message


@given(st.sampled_from(PROTOCOLS), st.binary() | st.text().map(str.encode))
def test_no_reply_raises(protocol, body):
    """Any bytes are answers or a fault."""
    assert isinstance(read(protocol, body), Fault | pa.Array)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_another_status_is_no_answer(protocol):
    """Even with predictions in it."""
    assert read(protocol, b'{"predictions":[1,2]}', status=400).action is Action.REJECT
    assert read(protocol, b"", status=413).action is Action.TOO_LARGE
