from __future__ import annotations

import json

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.encode import RowEncoder
from pipeline.ids import row_namer
from pipeline.modelarts import ModelArts
from pipeline.pack import Block, Limits, pack
from pipeline.status import Action, Fault
from pipeline.template import Template
from schemas.options import JsonOptions, ModelArtsOptions

UUID = "10eb0091-887f-4839-9929-cbc884f1e20e"
OTHER = "00000000-887f-4839-9929-cbc884f1e20e"
IRIS = pa.record_batch(
    {
        "sepal_length": pa.array([3], pa.int64()),
        "sepal_width": pa.array([1], pa.int64()),
        "petal_length": pa.array([2.2], pa.float64()),
        "petal_width": pa.array([4], pa.int64()),
    }
)


def protocol(**options):
    return ModelArts(ModelArtsOptions(**options))


def request_of(batch, adapter):
    """Return the one request for a batch."""
    encoded = RowEncoder(batch.schema, batch.schema.names, rename={}).encode(batch)
    block = Block(0, encoded, row_namer("job", "path")(0, batch.num_rows), batch.select([]))
    (chunk,) = pack([block], Limits(12_000_000), adapter.frame)
    return chunk


def read(body, *, status=200, rows=2, **options):
    return protocol(**options).read(status, {}, body, uuid=UUID, rows=rows)


def reply(*answers, meta=None):
    """Return a reply's body, as the platform writes it."""
    shown = {} if meta is None else {"meta": meta}
    return json.dumps(shown | {"data": {"resp_data": list(answers)}}).encode()


def misfit(body, message, **options):
    fault = read(body, **options)
    assert isinstance(fault, Fault)
    assert (fault.action, fault.status, fault.code) == (Action.MISFIT, 200, None)
    assert message in fault.message


def test_created_is_a_success_and_no_other_answer_of_its_class_is():
    """A reply that promises answers for later is none, and the same for every protocol."""
    template = Template(JsonOptions(body={"x": {"$column": "x"}}))
    for status in (200, 201):
        assert read(reply(1, 2), status=status).to_pylist() == ["1", "2"]
        assert template.read(status, {}, b"[1, 2]", uuid=UUID, rows=1).to_pylist() == ["[1, 2]"]
    for status in (202, 204, 207):
        assert read(reply(1, 2), status=status).action is Action.MISFIT
        assert template.read(status, {}, b"[1, 2]", uuid=UUID, rows=1).action is Action.MISFIT


def test_the_documents_own_example_is_sent_byte_for_byte():
    """Meta with the request's uuid, data, req_data, and the row with its integers and its float."""
    chunk = request_of(IRIS, protocol())
    expected = (
        '{"meta":{"uuid":"U"},"data":{"req_data":'
        '[{"sepal_length":3,"sepal_width":1,"petal_length":2.2,"petal_width":4}]}}'
    )
    assert chunk.body.decode() == expected.replace("U", chunk.uuid)


def test_without_meta_it_is_the_documents_curl_sample():
    """`meta: false` leaves `meta` out."""
    assert request_of(IRIS, protocol(meta=False)).body == (
        b'{"data":{"req_data":[{"sepal_length":3,"sepal_width":1,"petal_length":2.2,"petal_width":4}]}}'
    )


def test_models_without_the_wrapper_get_none():
    """`wrapper: none` puts `req_data` at the top, with and without `meta`."""
    rows = '"req_data":[{"sepal_length":3,"sepal_width":1,"petal_length":2.2,"petal_width":4}]}'
    chunk = request_of(IRIS, protocol(wrapper="none"))
    assert chunk.body.decode() == '{"meta":{"uuid":"U"},'.replace("U", chunk.uuid) + rows
    assert request_of(IRIS, protocol(wrapper="none", meta=False)).body.decode() == "{" + rows


@pytest.mark.parametrize("options", [{}, {"meta": False}, {"wrapper": "none"}, {"wrapper": "none", "meta": False}])
@given(uuid=st.uuids().map(str))
def test_a_frame_is_as_long_for_every_uuid(options, uuid):
    """So a body's size is known before its uuid is."""
    assert [len(part) for part in protocol(**options).frame(uuid)] == [
        len(part) for part in protocol(**options).frame("0" * 36)
    ]


def test_a_reply_is_one_text_a_row_in_order():
    """Predictions of any JSON type."""
    answers = read(reply({"predictresult": "setosa"}, [0.5, "x"], None, 7, rows := "text"), rows=5)
    assert answers.type == pa.string()
    assert [json.loads(text) for text in answers.to_pylist()] == [
        {"predictresult": "setosa"},
        [0.5, "x"],
        None,
        7,
        rows,
    ]


def test_a_prediction_is_kept_verbatim():
    """Digits, spaces, escapes and the order of keys are the model's own."""
    texts = ['{ "b" : 1.10,"a":1e400 }', '"\\u4e2d\u4e2d \\/"', "12345678901234567890123", '{"a":1,"a":2}', "[\n 1 ]"]
    body = ('{"data":{"resp_data":[' + " , ".join(texts) + "]}}").encode()
    assert read(body, rows=5).to_pylist() == texts


def test_a_reply_without_wrapper_is_read_where_the_request_had_none():
    """`resp_data` stands where `req_data` stood."""
    body = b'{"resp_data":[{"predict_result":"Iris-setosa"},{"predict_result":"x"}]}'
    assert len(read(body, wrapper="none")) == 2
    misfit(body, "cannot be read")
    misfit(reply(1, 2), "cannot be read", wrapper="none")


@pytest.mark.parametrize("meta", [None, {"uuid": UUID}, {"uuid": UUID.upper()}, {"uuid": ""}, {"uuid": " "}, {}, ""])
def test_our_uuid_and_no_uuid_are_accepted(meta):
    """The documents: the uuid is returned, or left blank."""
    assert len(read(reply(1, 2, meta=meta))) == 2


@pytest.mark.parametrize("wrapper", ["data", "none"])
@pytest.mark.parametrize("meta", [b"null", b'{"uuid":null}', b'{"uuid":"%s","more":{"x":[]}}' % UUID.encode()])
def test_fields_that_nobody_asked_for_are_ignored(meta, wrapper):
    """In the reply, in `meta` and in `data`."""
    rows = b'"time":1.5,"resp_data":[1,2],"request_id":{"x":null}'
    data = b'"data":{%s}' % rows if wrapper == "data" else rows
    assert read(b'{"more":[],"meta":%s,%s}' % (meta, data), wrapper=wrapper).to_pylist() == ["1", "2"]


def test_a_foreign_uuid_is_no_answer_to_this_request():
    """It is another request's answer, however well its length fits."""
    misfit(reply(1, 2, meta={"uuid": OTHER}), f"the reply has meta.uuid '{OTHER}', not the one sent")


def test_where_no_uuid_was_sent_none_is_foreign():
    """With `meta: false` the system may provide a uuid of its own."""
    assert len(read(reply(1, 2, meta={"uuid": OTHER}), meta=False)) == 2


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_or_too_many_answers_are_no_answer(count):
    """Nobody knows which row each belongs to."""
    misfit(reply(*range(count)), f"2 rows were sent, {count} answers came back")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"<html>ok</html>",
        b'{"data":null}',
        b'{"data":{}}',
        b'{"data":{"resp_data":null}}',
        b'{"data":{"resp_data":{"0":1,"1":2}}}',
        b'{"data":{"resp_data":"[1,2]"}}',
        b'{"data":{"resp_data":[1,2]}',
        b'{"data":{"resp_data":[1,2]}} trailing',
        b'{"data":{"resp_data":[NaN,2]}}',
        b'{"data":{"resp_data":[1,-Infinity]}}',
        b'{"data":{"resp_data":[1,2]},"meta":{"uuid":7}}',
        b'{"data":{"resp_data":["\xff",2]}}',
        b'{"data":{"resp_data":[1,2],"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
        b'{"data":{"resp_data":[1,' + b"[" * 100_000 + b"]" * 100_000 + b"]}}",
    ],
)
def test_a_reply_that_is_not_what_was_agreed_is_a_misfit(body):
    """Not JSON, not UTF-8, cut, or of another shape: a failure of that request, never a guess, never an exception."""
    misfit(body, "the reply")


@given(st.binary() | st.text().map(str.encode))
def test_no_reply_raises(body):
    """Any bytes are answers or a fault."""
    assert isinstance(read(body), Fault | pa.Array)


@pytest.mark.parametrize("wrapper", ["data", "none"])
@pytest.mark.parametrize("status", [200, 400, 500])
def test_the_models_own_failure_is_a_refusal_of_the_content(status, wrapper):
    """The built-in server's `erno`, which comes with several statuses, 200 among them."""
    body = b'{"erno":"MR.0105","msg":"Recognition failed","words_result":{}}'
    fault = read(body, status=status, wrapper=wrapper)
    assert fault == Fault(Action.REJECT, status, "MR.0105", "Recognition failed", "model")


def test_an_erno_beside_answers_does_not_take_them_away():
    """`MR.0100` means success."""
    assert len(read(b'{"erno":"MR.0100","msg":"Succeeded","data":{"resp_data":[1,2]}}')) == 2
    misfit(b'{"erno":7}', "the reply")


def test_other_statuses_are_judged_by_the_tables():
    """A well-formed reply under another status is no answer."""
    assert read(reply(1, 2), status=503).action is Action.SLOWER
    assert read(b"", status=413).action is Action.TOO_LARGE
