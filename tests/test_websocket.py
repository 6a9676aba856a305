from __future__ import annotations

import json
import logging
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from http import HTTPStatus

import pytest
from certificates import Authority
from rawserver import answering, authority, serving
from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.frames import Opcode
from websockets.uri import parse_uri
from wsserver import conversing, echoing

from jobs import until
from pipeline.errors import JobError, Refused
from pipeline.handshake import Handshake, unconnected
from pipeline.messages import Marked, marked, status_of
from pipeline.status import Action, judge
from pipeline.transport import NoReply, Reply
from pipeline.websocket import WebSockets

ONE, TWO = "11111111-1111-5111-8111-111111111111", "22222222-2222-5222-8222-222222222222"
HEADERS = {"X-Auth-Token": "secret"}


@contextmanager
def sockets(**options):
    made = WebSockets(**{"moment": 0.05} | options)
    try:
        yield made
    finally:
        made.close()


def body_of(uuid, **more):
    return json.dumps({"meta": {"uuid": uuid}, **more}).encode()


def post(made, url, body=b"{}", seconds=20.0, uuid="", headers=HEADERS):
    return made.post(url, body=body, headers=headers, deadline_seconds=seconds, uuid=uuid)


def named(made, url, uuid=ONE, **options):
    """Ask with a uuid in the message."""
    return post(made, url, body_of(uuid), uuid=uuid, **options)


@pytest.mark.parametrize(("text", "sent"), [(True, '{"é": 1}'), (False, '{"é": 1}'.encode())])
def test_a_message_is_text_or_bytes(text, sent):
    """As the job file says; the answer's bytes come back either way."""
    with conversing(echoing) as server, sockets(text=text) as made:
        reply = post(made, server.url, '{"é": 1}'.encode())
    assert server.heard == [sent]
    assert (reply.status, reply.body) == (200, '{"é": 1}'.encode())


def test_requests_share_a_connection_one_after_the_other():
    """The handshake carries the headers, once."""
    with conversing(echoing) as server, sockets() as made:
        for number in range(10):
            uuid = f"{number:08d}-1111-5111-8111-111111111111"
            assert named(made, server.url, uuid).body == body_of(uuid)
            made.settle(uuid, fits=True)
    [connection] = server.connections
    assert connection.request.headers["X-Auth-Token"] == "secret"
    assert connection.request.headers["User-Agent"].startswith("bulkscore/")


def test_requests_at_once_have_a_connection_each():
    """As many as are in flight."""
    meet = threading.Barrier(8)

    def script(server, connection):
        while message := server.hear(connection):
            meet.wait(20)
            connection.send(message)

    uuids = [f"{number:08d}-1111-5111-8111-111111111111" for number in range(8)]
    with conversing(script) as server, sockets() as made, ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda uuid: named(made, server.url, uuid), uuids))
    assert [reply.body for reply in replies] == [body_of(uuid) for uuid in uuids]
    assert len(server.connections) == 8


@pytest.mark.parametrize("size", [65_536, 3_000_000])
def test_a_large_answer_comes_in_fragments(size):
    """It is whole again, with pings between its parts."""
    answer = b"x" * size

    def script(server, connection):
        server.hear(connection)
        pieces = (answer[start : start + 65_536].decode() for start in range(0, size, 65_536))
        connection.ping()
        connection.send(pieces)
        server.hear(connection)

    with conversing(script) as server, sockets() as made:
        assert post(made, server.url).body == answer


def test_a_ping_is_answered_while_a_request_waits():
    """A gateway that asks whether anybody is there hears that somebody is."""

    def script(server, connection):
        message = server.hear(connection)
        assert connection.ping().wait(20)
        connection.send(message)
        server.hear(connection)

    with conversing(script) as server, sockets() as made:
        assert post(made, server.url).status == 200


def test_swapped_answers_reach_their_own_requests():
    """Each finds its request by its uuid, whichever connection it comes over."""
    waiting, lock = [], threading.Lock()

    def script(server, connection):
        while message := server.hear(connection):
            with lock:
                waiting.append((connection, message))
                if len(waiting) == 2:
                    (first, hers), (second, his) = waiting
                    first.send(his)
                    second.send(hers)
                    waiting.clear()

    with conversing(script) as server, sockets() as made, ThreadPoolExecutor(2) as pool:
        for _ in range(20):
            bodies = [reply.body for reply in pool.map(lambda uuid: named(made, server.url, uuid), (ONE, TWO))]
            assert bodies == [body_of(ONE), body_of(TWO)]
    assert made.unasked == 0


def test_messages_that_nobody_asked_for_answer_nothing():
    """With somebody else's uuid, or with none from a service that sends them back, before an answer and after it."""

    def script(server, connection):
        for number in range(5):
            message = server.hear(connection)
            if number:
                connection.send('{"event": "notice"}')
                connection.send('{"ping": 1}')
            connection.send(body_of(TWO, data="not yours").decode())
            connection.send(message)
            connection.send(body_of(TWO, data="not yours").decode())

    with conversing(script) as server, sockets() as made:
        for _ in range(5):
            assert named(made, server.url).body == body_of(ONE)
        until(lambda: made.unasked >= 10)
    assert len(server.connections) == 1


@pytest.mark.parametrize(
    "answer", [{"erno": "MR.0105", "msg": "no"}, {"meta": {"uuid": ""}, "data": 1}, {"error": "x"}]
)
def test_an_answer_may_have_no_uuid(answer):
    """Errors, and services that leave it blank: it answers what waits on its connection."""

    def script(server, connection):
        connection.send(server.hear(connection))
        server.hear(connection)
        connection.send(json.dumps(answer))

    with conversing(script) as server, sockets() as made:
        assert named(made, server.url).body == body_of(ONE)
        made.settle(ONE, fits=True)
        assert json.loads(named(made, server.url, TWO).body) == answer


def test_a_foreign_uuid_is_an_answer_only_where_none_was_sent():
    """A service may have numbers of its own."""

    def script(server, connection):
        server.hear(connection)
        connection.send(body_of(TWO).decode())
        server.hear(connection)

    with conversing(script) as server, sockets() as made:
        assert post(made, server.url, b'{"x": 1}', uuid=ONE).body == body_of(TWO)
        assert named(made, server.url, seconds=0.3).kind == "timeout"


def test_a_late_answer_is_never_the_next_ones():
    """The connection of a request whose time is over is not used again."""
    late = threading.Event()

    def script(server, connection):
        message = server.hear(connection)
        if len(server.connections) == 1:
            late.wait(20)
        connection.send(message)
        server.hear(connection)

    with conversing(script) as server, sockets() as made:
        gone = post(made, server.url, b"first", seconds=0.3)
        assert (gone.kind, gone.received) == ("timeout", True)
        late.set()
        assert post(made, server.url, b"second").body == b"second"
    assert len(server.connections) == 2


def test_a_connection_out_of_step_is_given_up():
    """Where the service leaves uuids blank, a message while nobody waits may be what the next one is taken for."""

    def script(server, connection):
        while uuid := json.loads(server.hear(connection))["meta"]["uuid"]:
            connection.send(json.dumps({"meta": {"uuid": ""}, "data": uuid}))
            connection.send(json.dumps({"meta": {"uuid": ""}, "data": "late"}))

    with conversing(script) as server, sockets() as made:
        for number, uuid in enumerate((ONE, TWO), 1):
            assert json.loads(named(made, server.url, uuid).body)["data"] == uuid
            until(lambda number=number: made.unasked == number)
            made.settle(uuid, fits=True)
    assert len(server.connections) == 2


def test_a_push_shifts_no_later_answer():
    """A service that leaves uuids blank says one thing too many: that costs the request, and none behind it."""

    def script(server, connection):
        while uuid := json.loads(server.hear(connection))["meta"]["uuid"]:
            if len(server.heard) == 2:
                connection.send('{"event": "notice"}')
            connection.send(json.dumps({"meta": {"uuid": ""}, "data": uuid}))

    uuids = [f"{number:08d}-1111-5111-8111-111111111111" for number in range(5)]
    with conversing(script) as server, sockets() as made:
        for uuid in uuids:
            answer = json.loads(named(made, server.url, uuid).body)
            made.settle(uuid, fits="data" in answer)
            assert answer == ({"event": "notice"} if uuid == uuids[1] else {"meta": {"uuid": ""}, "data": uuid})


@pytest.mark.parametrize("settles", [False, True])
def test_unasked_messages_end_a_job_that_could_not_tell_answers_apart(settles):
    """Without uuids all later answers might be others'; the last answer before is not kept either."""
    speak = threading.Event()

    def script(server, connection):
        connection.send(server.hear(connection))
        speak.wait(20)
        connection.send("late")
        server.stopping.wait()

    with conversing(script) as server, sockets() as made:
        assert post(made, server.url, b"one", uuid=ONE).body == b"one"
        if not settles:
            made.settle(ONE, fits=True)
        speak.set()
        until(lambda: made.unasked)
        with pytest.raises(Refused, match=r"service\.options\.greeting"):
            made.settle(ONE, fits=True) if settles else post(made, server.url, b"two", uuid=TWO)


def test_an_answer_that_comes_too_late_ends_no_job():
    """The connection that it comes over was given up before."""

    def script(server, connection):
        message = server.hear(connection)
        if len(server.connections) == 1:
            connection.socket.settimeout(20)
            with suppress(ConnectionClosed):
                connection.recv()
        connection.send(message)
        server.hear(connection)

    with conversing(script) as server, sockets() as made:
        assert post(made, server.url, b"one", seconds=0.5, uuid=ONE).kind == "timeout"
        assert post(made, server.url, b"two", uuid=TWO).body == b"two"
        made.settle(TWO, fits=True)


@pytest.mark.parametrize("greeting", [0, 1])
def test_a_greeting_that_nobody_announced_ends_a_job_without_uuids(greeting):
    """It would be taken for an answer; what to set is said. Where uuids are sent back it is told from one."""

    def script(server, connection):
        connection.send("welcome")
        connection.send('{"ready": true}')
        echoing(server, connection)

    with conversing(script) as server, sockets(greeting=greeting, moment=2) as made:
        with pytest.raises(Refused, match=r"something first .*127.0.0.1.* service.options.greeting: 2"):
            post(made, server.url, b"one", uuid=ONE)
        assert named(made, server.url).body == body_of(ONE)


@pytest.mark.parametrize(("fits", "connections"), [(True, 1), (False, 2)])
def test_an_answer_that_does_not_fit_costs_its_connection(fits, connections):
    """It may have been a push, and the real answer still on its way."""
    with conversing(echoing) as server, sockets() as made:
        for _ in range(2):
            post(made, server.url, b"{}", uuid=ONE)
            made.settle(ONE, fits=fits)
    assert len(server.connections) == connections


def test_greetings_are_skipped():
    """What a service says first over each connection answers nothing."""

    def script(server, connection):
        connection.send("welcome")
        connection.send('{"ready": true}')
        echoing(server, connection)

    with conversing(script) as server, sockets(greeting=2) as made:
        assert [post(made, server.url, body).body for body in (b"a", b"b")] == [b"a", b"b"]


def test_a_connection_that_is_lost_is_no_reply_and_replaced():
    """Lost while a request waits: it may have been processed. Lost while idle: nobody notices."""

    def script(server, connection):
        message = server.hear(connection)
        if len(server.connections) > 1:
            connection.send(message)
        connection.close_socket()

    with conversing(script) as server, sockets() as made:
        lost = named(made, server.url)
        assert isinstance(lost, NoReply)
        assert (lost.kind, lost.received) == ("reset", True)
        for number in range(2, 5):
            assert named(made, server.url).status == 200
            until(lambda: not made._open)
            assert len(server.connections) == number


@pytest.mark.parametrize(
    ("code", "status"),
    [
        *((1000, None), (1001, None), (1012, None), (3999, None), (1003, 400), (1007, 400), (1008, 403), (1009, 413)),
        *((1011, 500), (1013, 503), (1014, 502), (3000, 401), (3003, 403), (3008, 504)),
        *((4401, 401), (4403, 403), (4404, 404), (4429, 429), (4000, 500), (4999, 500)),
    ],
)
def test_a_close_code_is_the_status_that_means_the_same(code, status):
    """What means no more than that the connection is gone is no reply."""

    def script(server, connection):
        server.hear(connection)
        connection.close(code, "the reason")

    with conversing(script) as server, sockets() as made:
        got = named(made, server.url)
    if status is None:
        assert isinstance(got, NoReply)
        assert (got.kind, got.received) == ("reset", True)
    else:
        assert got.status == status
        body = json.loads(got.body)
        assert (body["code"], "the reason" in body["message"]) == (code, True)


def test_a_message_that_is_refused_while_it_is_sent_is_no_reply_or_too_large():
    """The service does not read on; whether its reason is heard depends on who is faster."""
    with conversing(echoing, max_size=1000) as server, sockets() as made:
        got = [post(made, server.url, b"x" * size) for size in (2_000, 8_000_000)]
        assert post(made, server.url).status == 200
    assert got[0].status == 413
    assert got[1].kind == "reset" if isinstance(got[1], NoReply) else got[1].status == 413


@pytest.mark.parametrize(
    ("code", "status"), [(4401, None), (3000, None), (4403, None), (3003, None), (1008, 400), (1011, 500), (4404, 404)]
)
def test_a_code_means_something_else_once_a_connection_is_good(code, status):
    """Its credentials have died, and so have those of others as old; a policy is about what was sent."""
    meet, over = threading.Barrier(2), threading.Event()

    def script(server, connection):
        old = len(server.connections) <= 2
        while message := server.hear(connection):
            if old and over.is_set():
                connection.close(code, "the reason")
                return
            if old:
                meet.wait(20)
            connection.send(message)

    with conversing(script) as server, sockets() as made, ThreadPoolExecutor(2) as pool:
        assert [got.status for got in pool.map(lambda uuid: named(made, server.url, uuid), (ONE, TWO))] == [200, 200]
        over.set()
        got = named(made, server.url)
        if status:
            assert got.status == status
        else:
            assert (got.kind, got.received) == ("reset", True)
            assert [named(made, server.url).status for _ in range(3)] == [200] * 3
            assert len(server.connections) == 3


def test_a_policy_is_about_content_where_others_are_answered():
    """Even as the first thing over a connection; before anything is answered it is about credentials."""

    def script(server, connection):
        if len(server.connections) != 2:
            server.hear(connection)
            connection.close(1008, "no")
        echoing(server, connection)

    with conversing(script) as server, sockets() as made:
        assert named(made, server.url).status == 403
        assert named(made, server.url).status == 200
        made.settle(ONE, fits=True)
        made._idle[server.url].clear()  # as if it were busy
        assert named(made, server.url).status == 400


def test_every_close_code_has_a_meaning():
    """There is none that a service could send, and that would break a run."""
    statuses = {status.value for status in HTTPStatus}
    assert all(status_of(code) is None or status_of(code) in statuses for code in range(1000, 5000))


def test_a_handshake_that_is_refused_is_a_reply():
    """Its status, headers and body are judged as those of any other; redirects go nowhere."""
    refusal = b'HTTP/1.1 401 No\r\nServer: api-gateway\r\nContent-Length: 26\r\n\r\n{"error_code":"APIG.0301"}'
    with serving(answering(refusal)) as server, sockets() as made:
        got = post(made, server.url)
        assert (got.status, got.headers["server"], json.loads(got.body)) == (
            401,
            "api-gateway",
            {"error_code": "APIG.0301"},
        )
    assert server.requests[0].startswith(b"GET /v1/infers/iris HTTP/1.1\r\n")
    redirect = b"HTTP/1.1 307 Go\r\nLocation: ws://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n"
    with serving(answering(redirect)) as server, sockets() as made:
        assert post(made, server.url).status == 307


def test_a_handshake_that_is_a_web_page_is_no_answer():
    """Somebody is there who speaks no websocket: the job ends, whatever the page says."""
    page = b'HTTP/1.1 200 OK\r\nServer: ModelArts\r\nContent-Length: 15\r\n\r\n{"status":"up"}'
    with serving(answering(page)) as server, sockets() as made:
        got = post(made, server.url)
    fault = judge(got.status, got.headers, got.body)
    assert fault.action is Action.STOP
    assert "the service does not speak websocket at this URL" in fault.message


ERRORS = [
    ({"erno": "MR.0105", "msg": "bad row"}, 500),
    ({"erno": "MR.0100", "msg": "Succeeded", "x": 1}, None),
    ({"error": "bad row"}, 500),
    ({"error": {"message": "bad row"}}, 500),
    ({"error": 0.2, "x": 1}, None),
    ({"error": None, "error_code": 0}, None),
    ({"error_code": "ModelArts.4503", "error_msg": "bad row"}, 500),
    ({"errorCode": "E1", "errorMsg": "bad row"}, 500),
    ({"code": 400, "message": "bad row"}, 400),
    ({"code": "429", "msg": "slow down"}, 429),
    ({"code": 404, "message": "no such row"}, 500),
    ({"code": 0, "message": "success"}, None),
    ({"code": 200, "message": "ok", "data": 1}, None),
    ({"code": 7, "message": "a", "label": 1}, None),
    ({"detail": "bad row"}, 500),
    ({"detail": "fine", "label": 1}, None),
    ({}, None),
]


@pytest.mark.parametrize(("message", "status"), ERRORS)
def test_a_message_may_tell_of_an_error(message, status):
    """In any of the forms that services have for it; a success has codes too, and a model an error of its own."""
    assert marked(json.dumps(message).encode()) == Marked(None, status)


@pytest.mark.parametrize("message", [b"", b"oops", b"[1]", b'"x"', b"\xff", b"{"])
def test_a_message_may_be_anything(message):
    """What is no JSON object says nothing of whose it is."""
    assert marked(message) == Marked(alien=True)


@pytest.mark.parametrize("meta", ['"x"', "5", '{"uuid": 7}', '{"uuid": " AB "}', "null", '{"uuid": ""}'])
def test_a_message_may_have_any_meta(meta):
    """Only a text can be a uuid."""
    expected = {'"x"': "", '{"uuid": " AB "}': "ab", '{"uuid": ""}': ""}.get(meta)
    assert marked(f'{{"meta": {meta}}}'.encode()).uuid == expected


@pytest.mark.parametrize("message", [json.dumps(one) for one, status in ERRORS if status] + ["Internal error"])
def test_an_error_answers_the_one_who_waits(message):
    """It is no result, where answers have no uuids; and no push, where they have."""

    def script(server, connection):
        connection.send(server.hear(connection))
        server.hear(connection)
        connection.send(message)
        server.stopping.wait()

    status = marked(message.encode()).status or 200
    with conversing(script) as server, sockets() as made:
        assert named(made, server.url).body == body_of(ONE)
        got = named(made, server.url, TWO)
        assert (got.status, got.body.decode()) == (status, message)
    with conversing(script) as server, sockets() as made:
        assert post(made, server.url, b"{}", uuid=ONE).status == 200
        made.settle(ONE, fits=True)
        assert post(made, server.url, b"{}", uuid=TWO).status == status


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: none\r\nConnection: Upgrade\r\n\r\n", "protocol"),
        (b"what do you want?\r\n\r\n", "protocol"),
    ],
)
def test_a_reply_that_is_no_handshake_is_no_reply(reply, kind):
    """The service may be another one than was thought."""
    with serving(answering(reply)) as server, sockets() as made:
        got = post(made, server.url)
    assert (got.kind, got.received) == (kind, False)
    assert "secret" not in repr(got)


def test_a_connection_that_ends_during_the_handshake_is_lost():
    """As over HTTP."""
    with serving(lambda server, connection: server.read(connection)) as server, sockets() as made:
        got = post(made, server.url)
    assert (got.kind, got.received) == ("reset", False)


@pytest.mark.parametrize(
    ("url", "kind"), [("ws://127.0.0.1:9/x", "refused"), ("http://no-such-host.invalid/x", "unknown-host")]
)
def test_a_service_that_is_not_there_is_no_reply(url, kind):
    """Nothing was sent."""
    with sockets() as made:
        got = post(made, url)
    assert (got.kind, got.received) == (kind, False)


@pytest.mark.parametrize("answers", [False, True])
def test_the_deadline_holds_over_all_of_it(answers):
    """A handshake without an answer, and an answer without an end."""

    def mute(server, connection):
        server.read(connection)
        server.stopping.wait()

    def endless(server, connection):
        server.hear(connection)
        connection.protocol.send_text(b"{", fin=False)
        while not server.stopping.wait(0.01):
            connection.protocol.send_continuation(b" ", fin=False)
            for data in connection.protocol.data_to_send():
                connection.socket.sendall(data)

    with conversing(endless) if answers else serving(mute) as server, sockets() as made:
        got = post(made, server.url, seconds=0.4)
    assert (got.kind, got.received) == ("timeout", answers)
    assert 0.4 <= got.seconds < 10


def test_tls_is_verified(tmp_path):
    """With the authority of the job file, and not without it."""
    made_by = authority(tmp_path)
    with conversing(echoing, made_by.server) as server:
        with sockets(verify=made_by.ca) as made:
            assert post(made, server.url).status == 200
            assert post(made, server.url.replace("wss", "https")).status == 200
        with sockets() as made:
            got = post(made, server.url)
            assert (got.kind, got.received) == ("tls", False)
        with sockets(verify=False) as made:
            assert post(made, server.url).status == 200


def test_a_host_header_is_whom_the_handshake_is_for(tmp_path):
    """What is called by its address gets the name in the job file, in TLS too."""
    made_by = authority(tmp_path, "127.0.0.1")
    with conversing(echoing) as server, sockets() as made:
        assert post(made, server.url, headers={"host": "inner.example"}).status == 200
        assert server.connections[0].request.headers.get_all("Host") == ["inner.example"]
    with conversing(echoing, made_by.server) as server, sockets(verify=made_by.ca) as made:
        assert post(made, server.url, headers={"Host": "other.example"}).kind == "tls"


@contextmanager
def proxied(monkeypatch, port):
    """Run a proxy that leads everybody to this port; yields what it was asked."""

    def script(server, connection):
        server.read(connection)
        with socket.create_connection(("127.0.0.1", port)) as onward:
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            there = threading.Thread(target=pour, args=(connection, onward))
            there.start()
            pour(onward, connection)
            there.join()

    def pour(source, sink):
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    with serving(script) as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        yield proxy


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("through", [False, True])
def test_a_host_header_is_a_name_and_no_address(tmp_path, monkeypatch, secure, through):
    """By proxy too the URL says where to; the name is in the handshake to the letter, as it may have been signed."""
    names = []
    made_by = Authority(tmp_path, "ours")
    context = made_by.context("inner.example") if secure else None
    if context:
        context.sni_callback = lambda _socket, name, _context: names.append(name)
    with ExitStack() as stack:
        server = stack.enter_context(conversing(echoing, context))
        port = int(server.url.split(":")[2].partition("/")[0])
        proxy = stack.enter_context(proxied(monkeypatch, port)) if through else None
        with sockets(verify=made_by.ca) as made:
            got = post(made, server.url, headers={"host": "Inner.example:443"})
            assert got.status == 200, got
        [connection] = server.connections
        assert connection.request.headers.get_all("Host") == ["Inner.example:443"]
    assert {one.lower() for one in names} == ({"inner.example"} if secure else set())
    assert [one.split(b" ")[1] for one in proxy.requests] == [b"127.0.0.1:%d" % port] if proxy else True


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("wss://Example.COM:443/x", "example.com"),
        ("ws://Example.COM:80/x", "example.com"),
        ("http://host:443/x", "host:443"),
        ("https://host:8443/x", "host:8443"),
        ("wss://[::1]:443/x", "[::1]"),
    ],
)
def test_without_a_host_header_it_is_the_urls(url, host):
    """In lower case, and without the port that goes without saying: so it is signed, too."""
    handshake = Handshake.to(url, HEADERS, None)
    assert ClientProtocol(parse_uri(handshake.uri)).connect().headers["Host"] == host


def test_no_header_is_ever_logged(caplog):
    """Credentials are among them, and whoever turns on all logging did not ask for those."""
    caplog.set_level(logging.DEBUG)
    with conversing(echoing, logger=logging.getLogger("its.own")) as server, sockets() as made:
        assert post(made, server.url).status == 200
    ours = [record for record in caplog.records if record.name != "its.own"]
    assert not [record for record in ours if "secret" in record.getMessage()]


def test_an_outage_prints_nothing(caplog, capsys):
    """Whoever asked is told; a traceback would only frighten. What is no outage is not kept quiet."""
    with sockets() as made:
        for error in (ConnectionResetError(), EOFError(), WebSocketException(), RuntimeError("a defect")):
            context = {"message": "Task exception was never retrieved", "exception": error}
            made._loop.call_soon_threadsafe(made._loop.call_exception_handler, context)
    assert [record.exc_info[1].args for record in caplog.records] == [("a defect",)]
    assert capsys.readouterr().err == ""


def test_a_proxy_of_the_environment_is_asked(monkeypatch):
    """As for HTTP, and passed by where NO_PROXY says so."""
    with conversing(echoing) as server, serving(answering(b"HTTP/1.1 403 No\r\n\r\n")) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
        with sockets() as made:
            got = post(made, server.url)
            assert (got.kind, got.received) == ("refused", False)
            assert proxy.requests[0].startswith(b"CONNECT 127.0.0.1:")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with sockets() as made:
            assert post(made, server.url).status == 200
        monkeypatch.delenv("NO_PROXY")
        monkeypatch.setenv("HTTP_PROXY", "socks5://127.0.0.1:9")
        with sockets() as made, pytest.raises(JobError, match="SOCKS"):
            post(made, server.url)


def test_what_cannot_be_sent_is_an_error_of_the_job():
    """Headers with line ends, and URLs that are none."""
    with sockets() as made:
        with pytest.raises(JobError, match="line ends") as refused:
            post(made, "ws://127.0.0.1:9/x", headers={"X-Auth-Token": "hidden\r\nX: y"})
        assert "hidden" not in str(refused.value)
        with pytest.raises(JobError, match="is not a URL"):
            post(made, "ws:///x")


def test_every_error_of_the_library_is_told_as_ours():
    """None of them ends a run as a defect."""

    def below(kind):
        return [kind, *(one for inner in kind.__subclasses__() for one in below(inner))]

    for kind in below(WebSocketException):
        error = kind.__new__(kind)
        got = unconnected("ws://host/x", error, received=False, seconds=0.0)
        assert got.kind in {"protocol", "refused"}
    assert unconnected("ws://host/x", UnicodeError("label"), received=False, seconds=0.0).kind == "protocol"


def test_nobody_waits_for_a_loop_that_has_ended():
    """A request that waits is let go, and one that comes later is not begun."""

    def script(server, connection):
        server.hear(connection)
        made._loop.call_soon_threadsafe(made._loop.stop)
        server.stopping.wait()

    with conversing(script) as server:
        made = WebSockets()
        for _ in range(2):
            got = named(made, server.url)
            assert isinstance(got, NoReply)
            assert got.kind == "reset"
        made.settle(ONE, fits=True)
        made.close()


def test_closing_says_goodbye():
    """The service sees a proper end, and not a loss."""
    ended = threading.Event()

    def script(server, connection):
        connection.send(server.hear(connection))
        for _ in connection:
            pass
        assert connection.close_code == 1000
        ended.set()

    with conversing(script) as server:
        with sockets() as made:
            assert isinstance(named(made, server.url), Reply)
        assert ended.wait(20)


def test_a_message_that_is_no_websocket_frame_is_no_reply():
    """Whoever breaks the protocol has not answered."""

    def script(server, connection):
        server.hear(connection)
        connection.socket.sendall(bytes([0x80 | Opcode.TEXT | 0x70, 0]))  # with bits that nobody has agreed on
        server.stopping.wait(20)

    with conversing(script) as server, sockets() as made:
        got = named(made, server.url)
    assert (got.kind, got.received) == ("protocol", True)
