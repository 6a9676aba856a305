from __future__ import annotations

import re
from itertools import pairwise

import jmespath
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.events import Event, Stream, body_of, events_of, failed

TEXTS = ["data:", "data: ", "data", "event: error", "event:", "id: 1", "retry: 5", ": comment", ":", "x", "é", "世界"]
TOKENS = st.sampled_from([*TEXTS, "🙂", " ", "\n", "\r", "\r\n", "\n\n", "\r\n\r\n", "\ufeff", '"', "data: [DONE]"])


def whole(text):
    """Read a stream as the standard words it: line by line, all at once."""
    events, data, name = [], [], ""
    for line in re.split(r"\r\n|\r|\n", text.removeprefix("\ufeff")):
        if line == "":
            if data:
                events.append(Event("\n".join(data).encode(), name.encode()))
            data, name = [], ""
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            if not data and value.strip(" \t\x0b\x0c") == "[DONE]":
                return events
            data.append(value)
        elif field == "event":
            name = value
    return [*events, Event("\n".join(data).encode(), name.encode())] if data else events


def cut(data, places):
    """Cut bytes at these places."""
    marks = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:stop] for start, stop in pairwise(marks)]


@given(st.lists(TOKENS).map("".join), st.lists(st.integers(0, 10_000)))
@example("data: é\r\n\r\ndata: 世\r\rdata: 1\ndata: 2\n\n", [7, 8, 9, 10, 11, 17])
def test_events_do_not_depend_on_where_a_stream_is_cut(text, places):
    """Characters, line ends and the mark of Unicode are whole again, however they arrive."""
    assert events_of(cut(text.encode(), places)) == whole(text)


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data: a\r\n\r\ndata: b\r\r", [b"a", b"b"]),
        (b"data:a\n\ndata:  b\n\n", [b"a", b" b"]),
        (b"data: one\ndata: two\n\n", [b"one\ntwo"]),
        (b"data\n\n", [b""]),
        (b": ping\n\n: ping\n\ndata: a\n\n", [b"a"]),
        (b"id: 7\nretry: 10\nevent: token\n\n", []),
        (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
        (b"data: a\n\ndata: [DONE]\n\ndata: b\n\n", [b"a"]),
        (b"data: a\n\ndata: [DONE]", [b"a"]),
        (b"data: a\n", [b"a"]),
        (b"data: a", [b"a"]),
        (b"data: \xff\n\n", [b"\xff"]),
        (b"", []),
    ],
)
def test_a_stream_is_events(stream, events):
    """Comments, line ends of each kind, data in several lines, and an end that no blank line marks."""
    assert [event.data for event in events_of([stream])] == events


def test_done_ends_a_stream_before_its_blank_line_comes():
    """A service that keeps the connection is not waited for."""
    stream = Stream()
    assert list(stream.feed(b"data: a\n\ndata: [DONE]\n")) == [Event(b"a")]
    assert stream.done
    assert not stream.open
    assert list(stream.feed(b"\ndata: b\n\n")) == []


@pytest.mark.parametrize(("piece", "is_open"), [(b"data: a\n\n", False), (b"data: a\n", True), (b"dat", True)])
def test_a_stream_tells_whether_something_is_unfinished(piece, is_open):
    """What has begun and was not closed is seen, so that a stream that breaks off is."""
    stream = Stream()
    list(stream.feed(piece))
    assert stream.open is is_open


@pytest.mark.parametrize(
    ("event", "verdict"),
    [
        (Event(b"out of memory", b"error"), True),
        (Event(b'{"error": {"message": "out of memory"}}'), True),
        (Event(b'{"error": "out of memory"}'), True),
        (Event(b'{"error": null, "choices": []}'), False),
        (Event(b'{"error": 0.2, "prediction": 3.1}'), False),
        (Event(b'{"error": true}'), False),
        (Event(b'["error"]'), False),
        (Event(b'the "error" is mine'), False),
        (Event(b'{"text": "an \\"error\\""}'), False),
    ],
)
def test_an_event_may_say_that_the_model_failed(event, verdict):
    """By its name, or by an error at the top of its data."""
    assert failed(event) is verdict


def delta(**content):
    return msgspec.json.encode({"choices": [{"index": 0, "delta": content}]})


CHAT = [delta(role="assistant", content=None), delta(content="Hé"), delta(content="llo"), delta(), b'{"choices": []}']


@pytest.mark.parametrize(
    ("data", "form", "text", "body"),
    [
        (CHAT, "joined", False, "Héllo".encode()),
        (CHAT, "joined", True, '"Héllo"'.encode()),
        ([b'{"choices": [{"text": "a"}]}', b'{"choices": [{"text": "b"}]}'], "joined", False, b"ab"),
        ([b'"a\\n"', b" b", b"5"], "joined", False, b"a\n b5"),
        ([b'{"data": ', b'{"x": 1}}'], "joined", False, b'{"data": {"x": 1}}'),
        ([b"a", b'{"x": 1}'], "last", False, b'{"x": 1}'),
        ([b"a", b"so be it"], "last", False, b'"so be it"'),
        ([b"a", b'{"x": 1}', b"[2]"], "all", False, b'["a",{"x": 1},[2]]'),
        ([b"\xff"], "joined", True, b"\xff"),
        ([b"\xff"], "last", False, b"\xff"),
        ([b""], "joined", True, b'""'),
        ([], "joined", True, b""),
        ([], "last", False, b""),
        ([], "all", False, b""),
    ],
)
def test_events_become_one_body(data, form, text, body):
    """Joined, the last one, or all; nothing comes of nothing, and no bytes are mended."""
    assert body_of([Event(one) for one in data], form, text=text) == body


def test_pieces_are_found_by_the_jobs_own_path():
    """Events without a piece are passed over; a stream without any has no answer."""
    pick = jmespath.compile("token.text").search
    events = [
        Event(b'{"token": {"text": "a"}}'),
        Event(b'{"usage": 3}'),
        Event(b"ping"),
        Event(b'{"token": {"text": 7}}'),
    ]
    assert body_of(events, "joined", text=True, pick=pick) == b'"a7"'
    assert body_of(events[1:3], "joined", text=True, pick=pick) == b""
