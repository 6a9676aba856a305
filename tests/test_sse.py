from __future__ import annotations

import gzip
import json
from contextlib import contextmanager
from functools import partial

import jmespath
import pytest
from rawserver import answering, cut, serving

from jobs import ROOT, call, job_file, letters, proved, results, stats
from pipeline.errors import JobError
from pipeline.events import body_of
from pipeline.replies import whole
from pipeline.sandbox.text import figures
from pipeline.sse import EventStreams
from pipeline.status import Action
from pipeline.transport import NoReply, Reply

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream;charset=UTF-8\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
EVENTS = 'data: "Zażółć "\n\ndata: "gęślą 世界"\n\n'.encode()
DONE = b"data: [DONE]\n\n"
ANSWER = '"Zażółć gęślą 世界"'.encode()
TEXTS = ROOT / "jobs" / "data" / "texts.jsonl"


@contextmanager
def streams(*, picks=False, **options):
    gather = partial(body_of, **{"form": "joined", "text": True} | options)
    made = EventStreams(gather=gather, picks=picks, connections=8)
    try:
        yield made
    finally:
        made.close()


def post(made, url, seconds=20.0):
    return made.post(url, body=b"{}", headers={"X-Auth-Token": "secret"}, deadline_seconds=seconds)


def chunks(data, size):
    """Frame bytes as chunks, without the last one."""
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)


def once(reply, end=lambda _: None):
    """Answer each connection's first request with these bytes; then end it."""

    def script(server, connection):
        server.read(connection)
        connection.sendall(reply)
        end(connection)

    return script


def outcome(reply, end=lambda _: None, **options):
    with serving(once(reply, end)) as server, streams(**options) as made:
        return post(made, server.url)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
def test_a_stream_is_read_however_it_is_cut(size):
    """Characters that chunks cut in two are whole."""
    reply = outcome(CHUNKED + chunks(b": hello\r\n\r\n" + EVENTS + DONE, size) + b"0\r\n\r\n")
    assert (reply.status, reply.body) == (200, ANSWER)


def test_events_are_asked_for():
    """The service hears that a stream is welcome, unless the job's headers say otherwise."""
    with serving(answering(CHUNKED + b"0\r\n\r\n")) as server, streams() as made:
        post(made, server.url)
        made.post(server.url, body=b"{}", headers={"accept": "*/*"}, deadline_seconds=20)
    first, second = (request.lower() for request in server.requests)
    assert b"\r\naccept: text/event-stream\r\n" in first
    assert b"event-stream" not in second


def test_done_ends_a_stream_that_stays_open():
    """A service that neither ends its reply nor the connection is not waited for."""

    def script(server, connection):
        server.read(connection)
        connection.sendall(CHUNKED + chunks(EVENTS + DONE, 1000))
        server.stopping.wait()

    with serving(script) as server, streams() as made:
        reply = post(made, server.url, seconds=60)
    assert (reply.status, reply.body) == (200, ANSWER)
    assert reply.seconds < 30


def test_a_connection_whose_stream_has_ended_is_used_again():
    """What stands behind [DONE] is read, so that the next request finds the connection as new."""

    def script(server, connection):
        while server.read(connection):
            connection.sendall(CHUNKED + chunks(EVENTS + DONE, 9) + b"0\r\n\r\n")

    with serving(script) as server, streams() as made:
        bodies = [post(made, server.url).body for _ in range(5)]
    assert bodies == [ANSWER] * 5
    assert server.connections <= 2  # a slow machine may not see the end of one in time


@pytest.mark.parametrize(
    ("reply", "end", "kind"),
    [
        (CHUNKED + chunks(EVENTS, 8), lambda _: None, "protocol"),
        (CHUNKED + chunks(EVENTS, 8)[:-5], lambda _: None, "protocol"),
        (HEAD + b"Content-Length: 500\r\n\r\n" + EVENTS, lambda _: None, "protocol"),
        (HEAD + b"\r\n" + EVENTS + b"data: half", lambda _: None, "protocol"),
        (HEAD + b"\r\n" + EVENTS + b"data: half\n", lambda _: None, "protocol"),
        (CHUNKED + chunks(EVENTS, 8), cut, "reset"),
    ],
)
def test_a_stream_that_breaks_off_is_no_reply(reply, end, kind):
    """Half an answer is none, however the connection ends."""
    got = outcome(reply, end)
    assert isinstance(got, NoReply), got
    assert got.received
    assert got.kind in {kind, "protocol"}  # a reset may overtake what was sent before
    assert "secret" not in repr(got)


@pytest.mark.parametrize(
    "reply",
    [
        HEAD + b"\r\n" + EVENTS,
        HEAD + b"\r\n" + EVENTS + b"data: [DONE]",
        HEAD + b"Content-Length: %d\r\n\r\n" % (len(EVENTS) - 2) + EVENTS[:-2],
        CHUNKED + chunks(EVENTS[:-1], 8) + b"0\r\n\r\n",
    ],
)
def test_a_stream_may_end_without_done(reply):
    """The end of the reply is the end of the stream; its last event needs no blank line where the end is marked."""
    assert outcome(reply).body == ANSWER


def test_where_streams_end_with_done_all_must():
    """A proxy may close properly what broke off behind it; a service that marks its ends is taken at its word."""
    whole, half = EVENTS + DONE, EVENTS
    replies = iter([half, whole, half, whole])

    def script(server, connection):
        while server.read(connection):
            connection.sendall(CHUNKED + chunks(next(replies), 9) + b"0\r\n\r\n")

    with serving(script) as server, streams() as made:
        got = [post(made, server.url) for _ in range(4)]
    assert [type(one) for one in got] == [Reply, Reply, NoReply, Reply]
    assert got[2].kind == "protocol"


def test_a_stream_that_never_ends_is_cut_at_the_deadline():
    """Events that keep coming do not prolong anything."""

    def script(server, connection):
        server.read(connection)
        server.trickle(connection, CHUNKED, b"6\r\n: hi\n\n\r\n")

    with serving(script) as server, streams() as made:
        got = post(made, server.url, seconds=0.4)
    assert (got.kind, got.received) == ("timeout", True)
    assert 0.4 <= got.seconds < 10


@pytest.mark.parametrize(
    "event", [b'event: error\ndata: {"message": "boom"}\n\n', b'data: {"error": {"message": "boom", "code": 500}}\n\n']
)
def test_an_error_in_the_middle_is_the_models_own_failure(event):
    """It is a 500, whoever passed the stream on; the pieces before it are no answer."""
    head = HEAD + b"Server: api-gateway\r\nX-Request-Id: 7\r\nTransfer-Encoding: chunked\r\n\r\n"
    got = outcome(head + chunks(EVENTS + event + EVENTS, 11) + b"0\r\n\r\n")
    assert (got.status, got.headers["x-request-id"], got.headers.get("Server")) == (500, "7", None)
    assert b"boom" in got.body


@pytest.mark.parametrize(
    ("reply", "status", "body"),
    [
        (b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 7\r\n\r\n{"a":1}', 200, b'{"a":1}'),
        (b"HTTP/1.1 429 Slow\r\nContent-Type: text/event-stream\r\nContent-Length: 4\r\n\r\nwait", 429, b"wait"),
        (HEAD + b"Content-Length: 0\r\n\r\n", 200, b""),
    ],
)
def test_a_reply_that_is_no_stream_is_left_as_it_is(reply, status, body):
    """Errors come as JSON, and so may an answer; an empty stream has no body."""
    got = outcome(reply)
    assert (got.status, got.body) == (status, body)


def as_json(body):
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


@pytest.mark.parametrize(
    ("body", "joined"), [(b'{"text": "Hi", "n": 1}', b'"Hi"'), (b'{"n": 1}', b""), (b"<html>login</html>", b"")]
)
def test_an_answer_is_found_in_a_reply_that_is_no_stream(body, joined):
    """Where the job says where it is: the reply as a whole is no answer then."""
    got = outcome(as_json(body), picks=True, pick=jmespath.compile("text").search)
    assert (got.status, got.body) == (200, joined)
    verdict = whole(got.status, got.headers, got.body)
    if joined:
        assert verdict.to_pylist() == [joined.decode()]
    else:
        assert (verdict.action, "no stream of events" in verdict.message) == (Action.MISFIT, True)


@pytest.mark.parametrize("body", [b'{"error_code": "X", "error_msg": "no"}', b'{"detail": "no"}', b'{"error": "no"}'])
def test_a_success_that_tells_of_an_error_is_none(body):
    """It is no answer, and the model's own failure."""
    got = outcome(as_json(body))
    assert (got.status, got.body) == (500, body)


def test_what_goes_wrong_with_a_reply_is_not_blamed_on_what_was_sent():
    """A header has characters that cannot be sent, or it has not; the two are not told apart by an error's type."""

    def gather(_events):
        raise ValueError("not the header")

    with serving(answering(CHUNKED + b"0\r\n\r\n")) as server:
        made = EventStreams(gather=gather, connections=1)
        with pytest.raises(ValueError, match="not the header"):
            post(made, server.url)
        with pytest.raises(JobError, match="line ends"):
            made.post(server.url, body=b"{}", headers={"X-Auth-Token": "é\u4e16"}, deadline_seconds=20)
        made.close()


def test_a_compressed_stream_is_read():
    """Gateways may pack it."""
    packed = gzip.compress(EVENTS + DONE)
    head = HEAD + b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert outcome(head + chunks(packed, 10) + b"0\r\n\r\n").body == ANSWER


def text_job(folder, url, *, events="joined", **keys):
    """Write a job over the shipped texts."""
    options = {"body": {"input": {"$column": "text"}}, "events": events}
    service = {"protocol": "json", "transport": "sse", "options": options, "url": f"{url}/v1/infers/text"}
    keys = {f"service__{key}": value for key, value in service.items()} | keys
    return job_file(folder, url, input={"path": str(TEXTS), "keep": ["id"]}, **{"service__limits": {}} | keys)


def texts():
    rows = map(json.loads, TEXTS.read_text(encoding="utf-8").splitlines())
    return {row["id"]: figures(row["text"]) for row in rows}


def answers(out):
    return {row["id"]: json.loads(row["prediction"]) for row in results(out).select(["id", "prediction"]).to_pylist()}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Der Film war lang. Der Schluss war schlecht.", (2, 8, "der", -1.0)),
        ("猫が好き。犬も好き。", (2, 8, "好", 1.0)),
        ("Don't stop, don't", (1, 3, "don't", 0.0)),
        ("good and bad and odd?", (1, 5, "and", 0.0)),
        ("", (0, 0, "", 0.0)),
    ],
)
def test_the_text_service_looks_at_texts(text, found):
    """It is a real, tiny model: sentences, words, the most frequent word, and the mood."""
    got = figures(text)
    assert (got.sentences, got.words, got.word, got.mood) == found


@pytest.mark.parametrize("events", ["joined", "last", "all"])
def test_a_job_reads_streams(tmp_path, sandbox, events):
    """Each text gets what was found in it: in words, as figures, or all events."""
    url = sandbox()
    done = call("run", text_job(tmp_path, url, events=events))
    assert done.code == 0, done.err
    found = answers(tmp_path / "out")
    if events == "joined":
        assert found == {name: one.told for name, one in texts().items()}
    elif events == "last":
        assert {name: one["words"] for name, one in found.items()} == {name: one.words for name, one in texts().items()}
    else:
        assert {name: one[-1]["mood"] for name, one in found.items()} == {n: one.mood for n, one in texts().items()}
    assert not proved(tmp_path / "out")


def test_pieces_may_be_found_by_a_path_of_the_job(tmp_path, sandbox):
    """`answer` is applied to each event, and what it finds is joined."""
    options = {"body": {"input": {"$column": "text"}}, "answer": "words"}
    done = call("run", text_job(tmp_path, sandbox(), service__options=options))
    assert done.code == 0, done.err
    assert answers(tmp_path / "out") == {name: str(one.words) for name, one in texts().items()}


def test_an_event_that_a_path_cannot_be_applied_to_has_no_piece(tmp_path, sandbox):
    """Most events of a stream have no `words`, which the function needs: that ends no job."""
    options = {"body": {"input": {"$column": "text"}}, "answer": "to_string(abs(words))"}
    done = call("run", text_job(tmp_path, sandbox(), service__options=options))
    assert done.code == 0, done.err
    assert answers(tmp_path / "out") == {name: str(one.words) for name, one in texts().items()}


def test_broken_streams_are_asked_again(tmp_path, sandbox):
    """Cut, reset, failed in the middle or without an end: each row still gets its own answer, once."""
    faults = {2: "truncate", 4: "drop", 6: ["error-event", "truncate"], 8: "short", 10: "garbage", 12: 503, 14: "crash"}
    url = sandbox(faults=faults)
    done = call("run", text_job(tmp_path, url))
    assert done.code == 0, done.err
    assert answers(tmp_path / "out") == {name: one.told for name, one in texts().items()}
    assert not proved(tmp_path / "out")
    seen = stats(url)["by_fault"]
    assert sum(seen.values()) == 8, seen


def test_a_text_on_which_the_model_always_fails_is_a_dead_letter(tmp_path, sandbox):
    """The words of the error in the stream say why."""
    url = sandbox(faults={"row:input=Maji ni uhai, na maji ni haki.": "error-event always"})
    done = call("run", text_job(tmp_path, url, retry={"attempts": 2}))
    assert done.code == 3
    [letter] = letters(tmp_path / "out")
    assert (letter["keep"]["id"], letter["status"]) == ("sw-1", 500)
    assert "ran out of memory" in letter["message"]
    assert len(answers(tmp_path / "out")) == len(texts()) - 1


@pytest.mark.parametrize(
    ("keys", "place"),
    [
        ({"body": {"rows": {"$rows": {"input": {"$column": "text"}}}}}, "service.options.events"),
        ({"body": {"input": {"$column": "text"}}, "message": "json"}, "service.options.message"),
    ],
)
def test_options_that_a_stream_cannot_honour_are_refused(tmp_path, keys, place):
    """Joined events are one answer; messages are for websockets."""
    checked = call("check", text_job(tmp_path, "http://127.0.0.1:9", service__options=keys))
    assert checked.code == 2
    assert place in checked.err
