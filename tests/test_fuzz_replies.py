"""Replies of any status, headers and body: each request comes to an end, and no row is lost."""

from __future__ import annotations

import gzip
import json
import zlib
from datetime import UTC, datetime
from unittest import mock

import pyarrow as pa
from engine import engine, examples, one_by_one, place
from hypothesis import event, example, given
from hypothesis import strategies as st
from rawserver import serving
from tenacity import wait_none

import jobs
from pipeline.modelarts import ModelArts
from pipeline.retry import MAX_RETRY_AFTER, retry_after
from pipeline.status import Action, Fault, judge
from schemas.options import ModelArtsOptions

ROWS = 4
UUID = "10eb0091-887f-4839-9929-cbc884f1e20e"
NOW = datetime(2026, 11, 21, tzinfo=UTC)

STATUSES = st.integers(100, 999) | st.sampled_from(
    [
        *(100, 101, 200, 200, 200, 201, 202, 204, 206, 301, 302, 304, 400, 401, 403, 404, 405, 408, 409, 413, 414),
        *(418, 422, 425, 429, 431, 494, 500, 501, 502, 503, 504, 507, 599, 600, 999),
    ]
)
TIMES = st.sampled_from(
    [
        *(
            "0",
            "1",
            "-1",
            "1.5",
            "1e400",
            "nan",
            "inf",
            "-inf",
            "soon",
            "",
            " 1 ",
            "1, 2",
            "0x10",
            "9" * 400,
            "\xb2",
            "1_0",
        ),
        *("Sat, 21 Nov 2026 00:00:20 GMT", "Sat, 21 Nov 2026 00:00:20", "Sat, 99 Nov 2026 00:00:20 GMT"),
        *("Fri, 31 Dec 9999 23:59:59 -2359", "Mon, 01 Jan 0001 00:00:00 +2359", "Sat, 21 Nov 2026 00:00:20 +9999"),
    ]
)
CODES = st.sampled_from(
    ["APIG.0201", "APIG.0308", "APIG.0101", "ModelArts.4503", "ModelArts.4302", "MR.0105", "MR.0100", "", "x" * 200]
)
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | CODES
    | st.just(UUID)
)
NAMES = st.sampled_from(
    [
        "meta",
        "uuid",
        "data",
        "resp_data",
        "erno",
        "msg",
        "error_code",
        "error_msg",
        "error",
        "code",
        "detail",
        "message",
    ]
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=12
)
answers = st.builds(
    lambda meta, rows: {"meta": meta, "data": {"resp_data": rows}},
    st.just({"uuid": ""}) | values,
    st.lists(values, max_size=6),
)
BODIES = (
    st.binary(max_size=30)
    | (values | answers).map(lambda value: json.dumps(value).encode())
    | answers.map(lambda value: json.dumps(value).encode("utf-16"))
    | answers.map(lambda value: b"\xef\xbb\xbf" + json.dumps(value).encode())
    | st.sampled_from(
        [
            b"[" * 50_000,
            b'{"data":' * 20_000,
            b'{"data":{"resp_data":[' + b"9" * 5000 + b"," + b"[" * 3000 + b"]" * 3000 + b",1,1]}}",
            b'{"data":{"resp_data":["\xff\xfe","\\ud800",1,1]}}',
            b'{"data":{"resp_data":[1,1,1,1]},"data":{"resp_data":[]}}',
            b'{"data":{"resp_data":[NaN,Infinity,1e999,-0]}}',
            b"<html><head><title>502 Bad Gateway</title></head></html>",
            b"data: {}\n\ndata: [DONE]\n\n",
        ]
    )
)


@examples(5)
@given(
    status=STATUSES,
    headers=st.dictionaries(st.sampled_from(["Server", "Retry-After", "X-Request-Id"]), TIMES | st.text(max_size=9)),
    body=BODIES,
    wrapper=st.sampled_from(["data", "none"]),
    meta=st.booleans(),
)
def test_any_reply_is_an_answer_for_each_row_or_a_fault_in_one_line(status, headers, body, wrapper, meta):
    """Nothing is raised, nothing is guessed, and what is told can be written."""
    adapter = ModelArts(ModelArtsOptions(wrapper=wrapper, meta=meta))
    found = adapter.read(status, headers, body, uuid=UUID, rows=ROWS)
    if isinstance(found, pa.Array):
        assert (status, len(found)) == (200, ROWS)
        for text in found.to_pylist():
            json.loads(text)
        return
    for fault in (found, judge(status, headers, body)):
        assert isinstance(fault, Fault)
        assert isinstance(fault.action, Action)
        assert fault.message
        assert len(fault.message.splitlines()) == 1
        assert len(fault.message) < 1000
        (fault.message + (fault.code or "")).encode()


@examples(5)
@given(TIMES | st.text() | st.floats().map(str) | st.datetimes().map("{:%a, %d %b %Y %H:%M:%S GMT}".format))
def test_any_wish_for_a_pause_is_a_number_of_seconds_or_none(text):
    """A pause has an end, and is never negative."""
    seconds = retry_after({"Retry-After": text}, NOW)
    assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER


def packed(body, encoding):
    """Return what is sent under the name of an encoding, which may be a lie."""
    return {"gzip": gzip.compress, "deflate": zlib.compress, "raw": lambda one: one}[encoding](body)


@st.composite
def replies(draw):
    """Draw the bytes of a reply: HTTP with any headers, twice over perhaps, or no HTTP at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(
            st.binary(max_size=40)
            | st.sampled_from([b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\n", b"HTTP/9 x\r\n\r\n"])
        )
    body = packed(draw(BODIES), draw(st.sampled_from(["raw", "raw", "gzip", "deflate"])))
    length = len(body) + draw(st.sampled_from([0, 0, 0, 0, 5, -1]))
    framing = draw(
        st.sampled_from(
            [f"Content-Length: {length}"] * 5
            + ["Transfer-Encoding: chunked", "Content-Length: x", "Content-Length: -5", "Connection: close", "X: y"]
        )
    )
    lines = draw(
        st.lists(
            st.sampled_from(
                [
                    *(
                        "Content-Encoding: gzip",
                        "Content-Encoding: deflate",
                        "Content-Encoding: br",
                        "Content-Encoding: \xff",
                    ),
                    *(
                        "Server: ModelArts",
                        "Server: api-gateway",
                        "Server: a\tb",
                        "Server: \xff\xfe",
                        "X-Request-Id: \x01",
                    ),
                    *("Content-Type: text/html; charset=utf-16", "Content-Type: application/json", "Set-Cookie: a=b"),
                    *("no colon", ": no name", " folded", "Location: http://127.0.0.1:1/", "Content-Length: 0"),
                ]
            )
            | TIMES.map("Retry-After: {}".format),
            max_size=4,
        )
    )
    head = "\r\n".join([f"HTTP/1.1 {draw(STATUSES)} Said", *lines, framing])
    return head.encode("latin-1", "replace") + b"\r\n\r\n" + body


def scripted(waiting):
    """Give these replies, one for each request, and right ones from then on; each on a connection of its own."""

    def script(server, connection):
        request = server.read(connection)
        if not request:
            return
        if waiting:
            connection.sendall(waiting.pop(0))
            return
        sent = json.loads(request.partition(b"\r\n\r\n")[2])
        body = json.dumps({"meta": sent["meta"], "data": {"resp_data": sent["data"]["req_data"]}}).encode()
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    return script


@examples(0.4)
@given(said=st.lists(replies(), max_size=6))
@example(said=[b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}"])
@example(said=[b"HTTP/1.1 503 No\r\nRetry-After: 1e400\r\nContent-Length: 0\r\n\r\n"] * 3)
@example(said=[b"HTTP/1.1 100 Continue\r\n\r\n"] * 3)
@example(said=[b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n{}  "])
def test_whatever_a_service_says_each_row_comes_to_one_end(said):
    """Once it answers as it should again, the same command leaves each row as a result or a dead letter."""
    with (
        place() as folder,
        serving(scripted(list(said))) as server,
        engine(one_by_one),
        mock.patch("pipeline.retry._BACKOFF", wait_none()),
        mock.patch("pipeline.retry.MAX_RETRY_AFTER", 0.0),
    ):
        jobs.put(folder / "in" / "iris.parquet", jobs.flowers(ROWS))
        path = jobs.job_file(
            folder,
            "",
            service={"url": server.url, "auth": {"type": "none"}, "limits": {"in_flight": 2}},
            errors={"allow": "100%"},
            retry={"attempts": 2, "seconds": 10, "outage": "0s"},
        )
        codes = []
        for _ in range(len(said) + 1):  # each run uses up one reply at the least
            ran = jobs.call("run", path, "-q", "--json")
            assert ran.code in {0, 4, 6}, ran
            lines = ran.err.splitlines()
            assert all(line.startswith("ERROR ") for line in lines), ran.err
            assert bool(lines) == (ran.code != 0), ran.err
            codes.append(ran.code)
            if ran.code == 0:
                break
        event(f"exits {sorted(set(codes))}")
        assert codes[-1] == 0
        out = folder / "out"
        assert jobs.proved(out) == ()
        table = jobs.results(out)
        scored = [] if table is None else table["source_row"].to_pylist()
        assert sorted(scored + [letter["source_row"] for letter in jobs.letters(out)]) == list(range(ROWS))
