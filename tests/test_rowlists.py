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
FULL = pa.record_batch({"x": pa.array([1.0, 2.5]), "n": pa.array([1, 2])})
BYTES = pa.record_batch({"image": pa.array([b"\x00\xff", None]), "some": pa.array([[b"a"], []])})
REQUESTS = [
    ("kserve", {}, {"instances": [{"x": 1.0, "n": 1}, {"x": 2.5, "n": None}]}),
    ("kserve", {"rows": "lists"}, {"instances": [[1.0, 1], [2.5, None]]}),
    ("tensorflow", {}, {"instances": [{"x": 1.0, "n": 1}, {"x": 2.5, "n": 2}]}),
    ("tensorflow", {"signature": "s", "rows": "lists"}, {"signature_name": "s", "instances": [[1.0, 1], [2.5, 2]]}),
    ("tensorflow", {"key": "inputs", "rows": "lists"}, {"inputs": [[1.0, 1], [2.5, 2]]}),
    ("tensorflow", {"key": "inputs"}, {"inputs": {"x": [1.0, 2.5], "n": [1, 2]}}),
    (
        "tensorflow",
        {"key": "inputs", "signature": "s"},
        {"signature_name": "s", "inputs": {"x": [1.0, 2.5], "n": [1, 2]}},
    ),
    ("torchserve", {"rows": "lists"}, {"instances": [[1.0, 1], [2.5, None]]}),
    ("mlflow", {}, {"dataframe_records": [{"x": 1.0, "n": 1}, {"x": 2.5, "n": None}]}),
    (
        "mlflow",
        {"key": "dataframe_split"},
        {"dataframe_split": {"columns": ["x", "n"], "data": [[1.0, 1], [2.5, None]]}},
    ),
    (
        "mlflow",
        {"key": "dataframe_split", "params": {"t": 1}},
        {"params": {"t": 1}, "dataframe_split": {"columns": ["x", "n"], "data": [[1.0, 1], [2.5, None]]}},
    ),
    ("mlflow", {"key": "inputs", "rows": "lists"}, {"inputs": [[1.0, 1], [2.5, None]]}),
    ("mlflow", {"params": {"t": [1]}, "key": "instances", "rows": "lists"}, None),
]
PROTOCOLS = sorted(DIALECTS)


def adapter(protocol, **options):
    return RowLists(protocol, OPTIONS[protocol](**options))


def body_of(made, batch, **keys):
    """Return the body of the one request for a batch, as it is sent."""
    given = Input(path="in/*.parquet", **keys)
    send = made.columns(given, batch.schema.names)
    encoded = made.encoder(given, batch.schema, send).encode(batch)
    block = Block(0, encoded, row_namer("job", "path")(0, batch.num_rows), batch.select([]))
    (chunk,) = pack([block], Limits(12_000_000), made.frame)
    sent = made.wire(chunk.body)
    assert len(sent) <= len(chunk.body)
    return sent


def read(protocol, body, *, status=200, rows=2):
    return adapter(protocol).read(status, {}, body, uuid="", rows=rows)


@pytest.mark.parametrize(("protocol", "options", "body"), REQUESTS)
def test_a_request_lists_its_rows_under_the_protocols_key(protocol, options, body):
    """As objects or as lists, beside what the options add."""
    expected = body or {"params": {"t": [1]}, "instances": [[1.0, 1], [2.5, None]]}
    made = body_of(adapter(protocol, **options), FULL if protocol == "tensorflow" else ROWS)
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
    assert read(protocol, b'{"predictions": [NaN, [1.5, -Infinity]]}').to_pylist() == ["null", "[1.5, null]"]


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


LAYOUTS = [("tensorflow", "inputs"), ("mlflow", "dataframe_split")]


@given(
    st.sampled_from(LAYOUTS),
    st.lists(st.sampled_from(["a", 'q"uote', "é", "back\\slash", "n\nl"]), min_size=1, max_size=3, unique=True),
    st.lists(st.tuples(st.integers(-9, 9), st.text(max_size=3), st.just([1.5, 2.0])), min_size=1, max_size=4),
)
def test_names_that_are_said_once_have_their_rows_values(layout, names, rows):
    """In order, whatever names and values are; and what is sent is never longer than what was packed."""
    protocol, key = layout
    made = adapter(protocol, key=key)
    batch = pa.RecordBatch.from_pydict({name: [row[at] for row in rows] for at, name in enumerate(names)})
    said = json.loads(body_of(made, batch))[key]
    if key == "dataframe_split":
        assert (said["columns"], said["data"]) == (names, [list(row[: len(names)]) for row in rows])
    else:
        assert said == {name: [row[at] for row in rows] for at, name in enumerate(names)}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_answers_in_columns_are_the_rows_answers(protocol):
    """Of several outputs, each of which must have one a row."""
    assert read(protocol, b'{"predictions": {"a": [1.10, 2], "b": [[1], null]}}').to_pylist() == [
        '{"a":1.10,"b":[1]}',
        '{"a":2,"b":null}',
    ]
    fault = read(protocol, b'{"predictions": {"a": [1, 2], "b": [1]}}')
    assert fault.message == "2 rows were sent, and output 'b' came back with 1 values"
    assert "0 answers came back" in read(protocol, b'{"predictions": {}}').message


@pytest.mark.parametrize("key", ["instances", "inputs"])
def test_bytes_in_answers_are_base64(key):
    """Alone, in lists and in objects; what only looks like it stays."""
    said = b'[{ "b64" : "AP8=" }, [{"b64":"YQ=="},{"b64":1},{"b64":"x","y":1.5},{"b64":{"b64":"YQ=="}}]]'
    body = b'{"%s":%s}' % (b"predictions" if key == "instances" else b"outputs", said)
    found = adapter("tensorflow", key=key).read(200, {}, body, uuid="", rows=2)
    assert found.to_pylist() == ['"AP8="', '["YQ==",{"b64":1},{"b64":"x","y":1.5},{"b64":"YQ=="}]']


def test_beside_bytes_an_answer_stays_as_it_is():
    """Its digits, and texts that only look so; and the answers of other rows."""
    said = [rb'{"a": {"b64":"AP8="}, "n": 1.50, "s": "{\"b64\":\"x\"}"}', b"[1.50, 12345678901234567890123]"]
    found = read("kserve", b'{"predictions":[%s]}' % b",".join(said)).to_pylist()
    assert found == [said[0].decode().replace('{"b64":"AP8="}', '"AP8="'), said[1].decode()]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_another_status_is_no_answer(protocol):
    """Even with predictions in it."""
    assert read(protocol, b'{"predictions":[1,2]}', status=400).action is Action.REJECT
    assert read(protocol, b"", status=413).action is Action.TOO_LARGE
