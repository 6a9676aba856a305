from __future__ import annotations

import json
from base64 import b64encode

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError

from pipeline.chat import Chat
from pipeline.errors import JobError
from pipeline.events import body_of as stream_body
from pipeline.events import events_of
from pipeline.ids import row_namer
from pipeline.openai import Embeddings
from pipeline.pack import Block, Limits, pack
from pipeline.status import Action, Fault
from schemas.job import Input
from schemas.options import ChatOptions, EmbeddingsOptions

TEXTS = pa.record_batch({"text": pa.array(["a", "b\n{"]), "id": pa.array([1, 2])})
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": {"$column": "text"}}]
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def chat(**options):
    return Chat(ChatOptions(**{"model": "m", "messages": MESSAGES, **options}))


def embeddings(**options):
    return Embeddings(EmbeddingsOptions(**{"model": "m", "input": {"$column": "text"}, **options}))


def bodies(made, batch=TEXTS):
    """Return the bodies of the requests for a batch."""
    given = Input(path="in/*.parquet")
    encoded = made.encoder(given, batch.schema, made.columns(given, batch.schema.names)).encode(batch)
    block = Block(0, encoded, row_namer("job", "path")(0, batch.num_rows), batch.select([]))
    return [json.loads(chunk.body) for chunk in pack([block], Limits(12_000_000, made.most_rows), made.frame)]


def read(made, said, *, status=200, rows=1):
    body = said if isinstance(said, bytes) else json.dumps(said).encode()
    found = made.read(status, {}, body, uuid="", rows=rows)
    return found if isinstance(found, Fault) else [json.loads(text) for text in found.to_pylist()]


def completion(message, finish="stop", **more):
    return {"id": "x", "choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": USAGE, **more}


def stream(*chunks, done=True):
    """Return what comes of a stream of chunks, as the transport makes it."""
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    text = ": ping\n\n" + "".join(lines) + ("data: [DONE]\n\n" if done else "")
    return stream_body([event for event in events_of([text.encode()]) if event.data != b"[DONE]"], "all")


def chunk(delta, finish=None, **more):
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}


def test_a_chat_sends_a_row_a_request():
    """With the model and further parameters, as they stand, whatever is in them."""
    schema = {"type": "json_schema", "json_schema": {"schema": {"$defs": {}, "$ref": "#"}}}
    made = bodies(chat(parameters={"temperature": 0, "response_format": schema}))
    assert [one["messages"][1]["content"] for one in made] == ["a", "b\n{"]
    assert made[0] == {
        "model": "m",
        "temperature": 0,
        "response_format": schema,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"}],
    }


def test_a_streamed_chat_asks_for_its_usage():
    """Else nobody would know what it cost."""
    (one, _) = bodies(chat(stream=True))
    assert (one["stream"], one["stream_options"]) == (True, {"include_usage": True})


def test_an_answer_has_its_text_its_end_and_its_usage():
    """What more the message says is kept, and what it does not say is left out."""
    said = completion({"role": "assistant", "content": "Hello", "refusal": None, "reasoning": "r"})
    assert read(chat(), said) == [{"content": "Hello", "reasoning": "r", "finish_reason": "stop", "usage": USAGE}]
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    said = completion({"role": "assistant", "content": None, "tool_calls": calls}, "tool_calls")
    assert read(chat(), said) == [{"content": None, "tool_calls": calls, "finish_reason": "tool_calls", "usage": USAGE}]


def test_a_stream_comes_to_the_same_answer():
    """Its pieces in order, and the usage of its last chunk, which may have no choices."""
    body = stream(
        chunk({"role": "assistant", "content": "Hel"}, usage=None),
        chunk({"content": "lo"}),
        chunk({}, "stop"),
        {"choices": [], "usage": USAGE},
    )
    whole = completion({"role": "assistant", "content": "Hello"})
    assert read(chat(stream=True), body) == read(chat(), whole)


def test_streamed_tool_calls_are_put_together_by_their_index():
    """A call's arguments come in pieces, its name and its id once."""
    body = stream(
        chunk(
            {"tool_calls": [{"index": 0, "id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}]}
        ),
        chunk(
            {"tool_calls": [{"index": 1, "id": "2", "type": "function", "function": {"name": "g", "arguments": "{"}}]}
        ),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"x"'}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]}),
        chunk({"tool_calls": [{"index": 1, "function": {"arguments": "}"}}]}),
        chunk({}, "tool_calls"),
    )
    (answer,) = read(chat(stream=True), body)
    assert [(one["id"], one["function"]) for one in answer["tool_calls"]] == [
        ("1", {"name": "f", "arguments": '{"x":1}'}),
        ("2", {"name": "g", "arguments": "{}"}),
    ]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (stream(chunk({"content": "Hel"})), "without a finish_reason"),
        (stream({"choices": []}), "0 answers came back"),
        (b"[]", "0 answers came back"),
        (b"{}", "cannot be read"),
        (b"", "cannot be read"),
        (b'{"choices":[]}', "0 answers came back"),
        (b'{"choices":[{"message":{}},{"message":{}}]}', "2 answers came back"),
        (b'{"error":{"message":"overloaded"}}', "no 'choices': overloaded"),
        (b'{"choices":[{"text":"Hello","finish_reason":"stop"}]}', "no 'message'"),
        (stream({"choices": [{"text": "Hello", "finish_reason": "stop"}]}), "no 'delta'"),
        (stream({"choices": [{"message": {"content": "Hello"}, "finish_reason": "stop"}]}), "no 'delta'"),
    ],
)
def test_a_chat_that_is_none_is_no_answer(body, message):
    """Nor is half of one."""
    fault = read(chat(stream=True), body)
    assert (fault.action, fault.status) == (Action.MISFIT, 200)
    assert message in fault.message


def piece(arguments, **more):
    return {"tool_calls": [{**more, "function": {"arguments": arguments}}]}


@pytest.mark.parametrize(
    ("deltas", "arguments"),
    [
        ([piece("a", index=1), piece("b", index=0), piece("c", index=1), piece("d", index=0)], ["bd", "ac"]),
        ([piece("a", index=None), piece("b", index=None)], ["a", "b"]),
        ([piece("a"), piece("b", index=None), piece("c", index=0), piece("d", index=0)], ["cd", "a", "b"]),
        (
            [piece("a", index="1"), piece("b", index=1), piece("c", index=[0]), piece("d", index={})],
            ["b", "a", "c", "d"],
        ),
        ([piece("a", index=True), piece("b", index=1), piece("c", index=0.0)], ["b", "a", "c"]),
        ([{"tool_calls": "text"}, piece("a", index=0)], ["a"]),
        ([{"tool_calls": [1, None, "x"]}, piece("a", index=0)], ["a"]),
    ],
)
def test_no_piece_is_added_to_another_call(deltas, arguments):
    """Whatever a server has for an index: what is no whole number says of no call that it is the same."""
    body = stream(*map(chunk, deltas), chunk({}, "tool_calls"))
    (answer,) = read(chat(stream=True), body)
    assert [call["function"]["arguments"] for call in answer["tool_calls"]] == arguments
    assert all("index" not in call for call in answer["tool_calls"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["index", "function", "arguments", "id"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.sampled_from(["content", "tool_calls", "role"]), JSON, max_size=3), max_size=4))
def test_no_delta_raises(deltas):
    """Whatever stands where texts and calls are expected, one reply is one answer or one fault."""
    found = read(chat(stream=True), stream(*map(chunk, deltas), chunk({}, "stop")))
    assert isinstance(found, Fault) or len(found) == 1


def test_what_nobody_has_thought_of_is_no_answer(monkeypatch):
    """One reply never costs the run."""
    monkeypatch.setattr(Chat, "_answers", lambda *_: {}["x"])
    fault = read(chat(), b"{}")
    assert (fault.action, fault.message) == (Action.MISFIT, "the reply is not what was agreed: KeyError: 'x'")


@pytest.mark.parametrize(
    ("error", "finish", "action", "said"),
    [
        ({"code": 502, "message": "Provider disconnected"}, "error", Action.RETRY, "502 Provider disconnected"),
        ({"code": "server_error", "message": "x"}, None, Action.RETRY, "500 x"),
        ({"code": 429, "message": "slow down"}, "error", Action.SLOWER, "429 slow down"),
        ({"code": 400, "message": "too long"}, "stop", Action.REJECT, "400 too long"),
        ({"code": 402, "message": "no credits"}, "error", Action.STOP, "402 no credits"),
        ("it fell over", "error", Action.RETRY, "500 it fell over"),
        (None, "error", Action.RETRY, "500 it ended as 'error'"),
    ],
)
def test_a_model_that_failed_behind_a_success_has_not_answered(error, finish, action, said):
    """What it has said before is not scored; its error stands in the choice, or beside it."""
    inside = {"index": 0, "finish_reason": finish, "error": error}
    beside = {"index": 0, "finish_reason": finish}
    message = {"role": "assistant", "content": "Hel"}
    for body in (
        {"choices": [{**inside, "message": message}]},
        {"choices": [{**beside, "message": message}], "error": error},
        stream(chunk(message), {"choices": [{**inside, "delta": {}}]}),
        stream(chunk(message), {"choices": [{**beside, "delta": {"content": ""}}], "error": error}),
        stream(chunk(message, finish), {"error": error or {"message": "it ended as 'error'"}}),
    ):
        fault = read(chat(stream=True), body)
        assert (fault.action, fault.status) == (action, int(said[:3]))
        assert fault.message == f"the model failed behind a success: {said[4:]}"


def base64(*numbers):
    return b64encode(np.array(numbers, "<f4").tobytes()).decode()


def items(*found):
    return {"data": [{"object": "embedding", "index": index, "embedding": one} for index, one in found], "usage": USAGE}


def test_embeddings_send_many_rows_a_request():
    """As base64, which is half the bytes, unless the job file says otherwise; never more than the API takes."""
    (one,) = bodies(embeddings(parameters={"dimensions": 3}))
    assert one == {"model": "m", "encoding_format": "base64", "dimensions": 3, "input": ["a", "b\n{"]}
    assert bodies(embeddings(parameters={"encoding_format": "float"}))[0]["encoding_format"] == "float"
    many = pa.record_batch({"text": pa.array(["x"] * 5000)})
    assert [len(one["input"]) for one in bodies(embeddings(), many)] == [2048, 2048, 904]


def refused(made, batch):
    """Return the reasons why rows of a batch are not sent, by row."""
    given = Input(path="in/*.parquet")
    return made.encoder(given, batch.schema, made.columns(given, batch.schema.names)).encode(batch).refused


@pytest.mark.parametrize("made", [chat(), embeddings()])
def test_a_null_is_not_sent(made):
    """An empty text is the server's matter."""
    batch = pa.record_batch({"text": pa.array(["a", None, "", None])})
    why = "text is null, and OpenAI's protocols have no null there"
    assert refused(made, batch) == {1: why, 3: why}


NAN = float("nan")


@pytest.mark.parametrize(
    ("column", "what"),
    [
        (pa.DictionaryArray.from_arrays(pa.array([1, 0, None]), pa.array(["a", None])), ["is null", None, "is null"]),
        (pa.array([NAN, 1.0, None]), ["is null", None, "is null"]),
        (pa.array([[1, None], [2], []]), ["has a null in it", None, None]),
        (pa.array([["a", None], ["b"], None]), ["has a null in it", None, "is null"]),
        (pa.array([[[1], [2, None]], [[]], [None]]), ["has a null in it", None, "has a null in it"]),
        (pa.array([[1.0, NAN], [2.0], [0.5]]), ["has a null in it", None, None]),
        (pa.nulls(3), ["is null"] * 3),
        (pa.array([b"a", None, b""]), [None, "is null", None]),
        (pa.array([[{"role": "user", "content": None}], [{"role": "user", "content": "a"}], []]), [None] * 3),
    ],
)
def test_a_null_is_found_where_it_is_sent(column, what):
    """However it is stored, in lists too, and for NaN; but an object's fields may be null."""
    why = "text {}, and OpenAI's protocols have no null there"
    expected = {row: why.format(one) for row, one in enumerate(what) if one}
    assert refused(chat(), pa.record_batch({"text": column})) == expected


@pytest.mark.parametrize(
    "kind",
    [
        pa.dictionary(pa.int8(), pa.int64()),
        pa.dictionary(pa.int8(), pa.float64()),
        pa.run_end_encoded(pa.int32(), pa.int16()),
        pa.decimal128(5, 2),
        pa.bool_(),
        pa.bool8(),
        pa.list_(pa.string()),
        pa.list_(pa.float64()),
        pa.list_(pa.list_(pa.int64())),
        pa.struct({"a": pa.string()}),
        pa.map_(pa.string(), pa.string()),
    ],
    ids=str,
)
def test_only_texts_and_tokens_are_embedded(kind):
    """Numbers are found however they are stored, before anything is sent."""
    with pytest.raises(JobError, match=r"service.options.input: column 'text' has type .*allowed: text, or lists of"):
        embeddings().encoder(Input(path="in/*.parquet"), pa.schema({"text": kind}), ["text"])


@pytest.mark.parametrize(
    "kind",
    [
        pa.large_string(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.run_end_encoded(pa.int32(), pa.string()),
        pa.date32(),
        pa.uuid(),
        pa.null(),
        pa.list_(pa.dictionary(pa.int8(), pa.int64())),
        pa.list_(pa.int64(), 3),
    ],
    ids=str,
)
def test_what_is_sent_as_text_or_as_tokens_is_embedded(kind):
    """However it is stored."""
    assert embeddings().encoder(Input(path="in/*.parquet"), pa.schema({"text": kind}), ["text"])


@pytest.mark.parametrize("kind", [pa.int64(), pa.float32()])
def test_a_column_of_numbers_is_not_embedded(kind):
    """All of them together would be the tokens of one text; lists of tokens are as good as texts."""
    batch = pa.record_batch({"text": pa.array([1, 2], kind)})
    with pytest.raises(JobError, match=r"service.options.input: column 'text' has type .*input.columns: {text: string"):
        bodies(embeddings(), batch)
    tokens = pa.record_batch({"text": pa.array([[1, 2], [3]])})
    assert bodies(embeddings(), tokens)[0]["input"] == [[1, 2], [3]]


def test_vectors_are_in_the_rows_order():
    """By `index`, as base64 or as numbers, which stay as they are."""
    said = items((1, base64(1.0, 0.5, -0.25)), (0, [1, 0.1]))
    assert read(embeddings(), said, rows=2) == [{"embedding": [1, 0.1]}, {"embedding": [1.0, 0.5, -0.25]}]
    verbatim = b'{"data":[{"index":0,"embedding":[0.10, 1e-7]}]}'
    assert embeddings().read(200, {}, verbatim, uuid="", rows=1).to_pylist() == ['{"embedding":[0.10, 1e-7]}']


@given(hnp.arrays(np.float32, st.integers(1, 20), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_a_vector_in_base64_comes_back_bit_for_bit(vector):
    """In the shortest digits that a float32 needs."""
    ((text,),) = [
        embeddings().read(200, {}, json.dumps(items((0, base64(*vector)))).encode(), uuid="", rows=1).to_pylist()
    ]
    assert np.array(json.loads(text)["embedding"], np.float32).tobytes() == vector.tobytes()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (items((0, [1])), "2 rows were sent, 1 answers came back"),
        (items((0, [1]), (0, [2])), "not every index from 0 to 1 once"),
        (items((1, [1]), (2, [2])), "not every index from 0 to 1 once"),
        (items((0, [1]), (1, "AAA")), "neither numbers in a list nor float32s in base64"),
        (items((0, [1]), (1, "AA-_")), "neither numbers in a list nor float32s in base64"),
        (items((0, [1]), (1, "AAAAAAA=")), "neither numbers in a list nor float32s in base64"),
        (items((0, [1]), (1, "")), "neither numbers in a list nor float32s in base64"),
        (items((0, [1]), (1, base64(float("nan")))), "neither numbers in a list nor float32s in base64"),
        (items((0, [1]), (1, [])), "neither numbers in a list nor float32s in base64"),
        (items((0, [1]), (1, [1, None])), "neither numbers in a list nor float32s in base64"),
        (items((0, [1]), (1, [float("nan")])), "neither numbers in a list nor float32s in base64"),
        (items((0, [1]), (1, ["1"])), "neither numbers in a list nor float32s in base64"),
        (items((0, [1]), (1, [True])), "neither numbers in a list nor float32s in base64"),
        (items((0, [1]), (1, [[1]])), "neither numbers in a list nor float32s in base64"),
        (items((0, [1]), (1, {})), "neither numbers in a list nor float32s in base64"),
        (items((0, [1]), (1, None)), "neither numbers in a list nor float32s in base64"),
        ({"data": [{"embedding": [1]}, {"embedding": [2]}]}, "cannot be read"),
        ({"error": {"message": "overloaded"}}, "no 'data': overloaded"),
        (b"", "cannot be read"),
    ],
)
def test_a_reply_without_a_vector_for_each_row_is_no_answer(said, message):
    """Nobody guesses which row a vector belongs to."""
    fault = read(embeddings(), said, rows=2)
    assert (fault.action, fault.status) == (Action.MISFIT, 200)
    assert message in fault.message


@given(st.booleans(), st.binary() | st.text().map(str.encode))
def test_no_reply_raises(talk, body):
    """Any bytes are answers or a fault."""
    found = (chat() if talk else embeddings()).read(200, {}, body, uuid="", rows=1)
    assert isinstance(found, Fault | pa.Array)


@pytest.mark.parametrize("made", [chat(), embeddings()])
def test_another_status_is_judged(made):
    """With OpenAI's own words."""
    fault = read(made, {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}, status=429)
    assert (fault.action, fault.code, fault.message) == (Action.SLOWER, "rate_limit_exceeded", "slow down")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"messages": [{"role": "user", "content": "hi"}]}, "no column in it"),
        ({"messages": {"$rows": {"$column": "x"}}}, "$rows in it"),
        ({"parameters": {"n": 2}}, "'n' is not allowed here"),
        ({"parameters": {"stream": True}}, "'stream' is not allowed here"),
        ({"parameters": [1]}, "is not a mapping"),
    ],
)
def test_options_that_say_too_much_or_too_little_are_refused(options, said):
    """A chat is one row and one answer."""
    with pytest.raises(ValidationError) as error:
        chat(**options)
    assert said in str(error.value)
