from __future__ import annotations

import gzip
import http.client
import logging
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import requests.exceptions
import urllib3.exceptions
from rawserver import OK, answering, authority, cut, serving

from pipeline.deadline import Exchange
from pipeline.errors import JobError
from pipeline.transport import _MISHAPS, NoReply, Reply, Transport, mishap

TOKEN = "MII-secret-token"
HEADERS = {"Content-Type": "application/json", "X-Auth-Token": TOKEN}


@pytest.fixture(autouse=True)
def _fence_out_of_reach(monkeypatch):
    """Leave the deadlines to the watchdog alone."""
    monkeypatch.setattr("pipeline.transport.FENCE_SECONDS", 60.0)


@contextmanager
def transport(**options):
    made = Transport(**{"verify": True, "cert": None, "connections": 64} | options)
    try:
        yield made
    finally:
        made.close()


def post(url, *, body=b"{}", headers=HEADERS, seconds=20.0, **options):
    with transport(**options) as made:
        return made.post(url, body=body, headers=headers, deadline_seconds=seconds)


def no_reply(outcome, kind, *, received):
    assert isinstance(outcome, NoReply), outcome
    assert (outcome.kind, outcome.received) == (kind, received), outcome
    assert "\n" not in outcome.message
    assert TOKEN not in repr(outcome)
    return outcome


def timed_out(outcome, seconds, *, received=True):
    no_reply(outcome, "timeout", received=received)
    assert seconds <= outcome.seconds < seconds + 10


def silent(server, connection):
    server.read(connection)
    server.stopping.wait()


def test_a_reply_is_status_headers_in_any_case_and_body():
    """What the service said comes back as it is; what was sent arrives as it was given."""
    with serving(answering(b"HTTP/1.1 429 Slow\r\nRetry-After: 3\r\nContent-Length: 4\r\n\r\nwait")) as server:
        outcome = post(server.url, body=b'{"a":1}')
    assert isinstance(outcome, Reply)
    assert (outcome.status, outcome.body, outcome.headers["retry-after"]) == (429, b"wait", "3")
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/infers/iris HTTP/1.1\r\n")
    assert b"X-Auth-Token: " + TOKEN.encode() in head
    assert b"User-Agent: bulkscore/" in head
    assert body == b'{"a":1}'


def test_a_header_of_ours_gives_way_to_a_given_one_in_any_case():
    """A header is sent once, as the job file has it."""
    with serving(answering(OK)) as server:
        post(server.url, headers={"user-agent": "mine", "Host": "service.internal"})
    head = server.requests[0].lower()
    assert head.count(b"user-agent:") == 1
    assert b"host: service.internal\r\n" in head


def test_ten_posts_use_one_connection():
    """An idle connection is used again."""
    with serving(answering(OK)) as server, transport() as made:
        for _ in range(10):
            assert made.post(server.url, body=b"{}", headers=HEADERS, deadline_seconds=20).status == 200
    assert (server.connections, len(server.requests)) == (1, 10)


def test_a_connection_that_the_server_closed_while_idle_is_replaced():
    """The next post does not fail because of it."""

    def once(server, connection):
        server.read(connection)
        connection.sendall(OK)

    with serving(once) as server, transport() as made:
        for number in range(1, 4):
            assert made.post(server.url, body=b"{}", headers=HEADERS, deadline_seconds=20).status == 200
            wait_until(lambda: not any(t.name == f"raw-{server.port}" for t in threading.enumerate()))
            assert server.connections == number


def wait_until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "never came true"
        time.sleep(0.001)


def test_the_connection_of_a_crash_is_not_used_again():
    """Some servers close it behind a 500: the next request would be lost with it."""
    crash = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\nno"
    with serving(answering(crash)) as server, transport() as made:
        for _ in range(3):
            assert made.post(server.url, body=b"{}", headers=HEADERS, deadline_seconds=20).body == b"no"
    assert (server.connections, len(server.requests)) == (3, 3)


def test_a_redirect_is_a_reply():
    """Nothing is sent anywhere else than the URL of the job."""
    with serving(
        answering(b"HTTP/1.1 307 Go\r\nLocation: http://other.invalid/\r\nContent-Length: 0\r\n\r\n")
    ) as server:
        assert post(server.url).status == 307


def test_a_gzip_reply_is_decoded():
    """The body is what the service meant."""
    packed = gzip.compress(b'{"data":1}')
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
    with serving(answering(head + packed)) as server:
        assert post(server.url).body == b'{"data":1}'


def test_a_gzip_reply_that_is_none_is_no_reply():
    """A body that cannot be decoded is not guessed at."""
    with serving(answering(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nok")) as server:
        no_reply(post(server.url), "protocol", received=True)


def test_a_chunked_reply_is_joined():
    """A reply without a length is read to its end."""
    with serving(
        answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n")
    ) as server:
        assert post(server.url).body == b"ok"


def test_headers_that_trickle_are_cut_at_the_deadline():
    """Bytes that keep coming do not prolong anything."""

    def script(server, connection):
        server.read(connection)
        server.trickle(connection, b"HTTP/1.1 200 OK\r\nX: ", b"x")

    with serving(script) as server:
        timed_out(post(server.url, seconds=0.3), 0.3)


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 1000000000", b"Connection: close", b"Transfer-Encoding: chunked"]
)
def test_a_body_that_trickles_is_cut_at_the_deadline(framing):
    """So it is however the end of the body is told, even if it is told by the end of the connection."""

    def script(server, connection):
        server.read(connection)
        drop = b"1\r\nx\r\n" if framing.endswith(b"chunked") else b"x"
        server.trickle(connection, b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n", drop)

    with serving(script) as server:
        timed_out(post(server.url, seconds=0.3), 0.3)


def test_no_answer_is_a_timeout():
    """A silent service is given up at the deadline."""
    with serving(silent) as server:
        timed_out(post(server.url, seconds=0.3), 0.3)


def test_a_server_that_never_reads_a_big_body_is_a_timeout():
    """Sending is bounded as well."""
    with serving(lambda server, _: server.stopping.wait()) as server:
        timed_out(post(server.url, body=bytes(12_000_000), seconds=0.5), 0.5)


def test_time_that_is_over_before_the_start_sends_nothing():
    """A deadline in the past is a timeout at once."""
    with serving(answering(OK)) as server:
        timed_out(post(server.url, seconds=-1.0), -1.0, received=False)
    assert server.requests == []


def test_a_connection_that_does_not_come_about_is_a_timeout():
    """A full backlog leaves the connecting socket without an answer."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.settimeout(0)
            one.connect_ex(address)
        timed_out(post(f"http://127.0.0.1:{address[1]}/", seconds=0.3), 0.3, received=False)
        for one in waiting:
            one.close()


def test_a_truncated_body_is_no_reply():
    """A reply that ends before its Content-Length is not an answer."""

    def script(server, connection):
        server.read(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")

    with serving(script) as server:
        assert "cut short" in no_reply(post(server.url), "protocol", received=True).message


def test_a_truncated_chunked_body_is_no_reply():
    """Nor is one whose last chunk never comes."""

    def script(server, connection):
        server.read(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")

    with serving(script) as server:
        no_reply(post(server.url), "protocol", received=True)


def test_what_is_not_http_is_no_reply():
    """A status line that is none is told apart from a lost connection."""
    with serving(answering(b"SSH-2.0-OpenSSH\r\n\r\n")) as server:
        no_reply(post(server.url), "protocol", received=True)


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"])
def test_a_reset_after_the_request_may_have_been_received(sent):
    """The service had the request in its hands."""

    def script(server, connection):
        server.read(connection)
        connection.sendall(sent)
        cut(connection)

    with serving(script) as server:
        no_reply(post(server.url), "reset", received=True)


def test_an_end_of_the_connection_instead_of_an_answer_is_a_reset():
    """A polite end without an answer is no better than a rude one."""
    with serving(lambda mine, connection: mine.read(connection)) as server:
        no_reply(post(server.url), "reset", received=True)


def test_a_reset_before_the_request_was_received_only_if_something_was_sent():
    """The reset may come while we still connect; later, nobody knows how far the request has got."""
    with serving(lambda _, connection: cut(connection)) as server, transport() as made:
        outcomes = [made.post(server.url, body=b"{}", headers=HEADERS, deadline_seconds=20) for _ in range(20)]
    assert {(one.kind, one.received) for one in outcomes} <= {("reset", True), ("refused", False)}


def test_a_refusal_that_comes_while_the_body_is_sent_is_read():
    """A gateway says 413 before it has read everything."""

    def script(_, connection):
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 413 Big\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 20):
            pass

    with serving(script) as server:
        assert post(server.url, body=bytes(12_000_000)).status == 413


def test_a_refused_connection_was_not_received():
    """Nobody listens, so nobody has processed anything."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        assert "refused" in no_reply(post(url), "refused", received=False).message


@pytest.mark.parametrize("host", ["nonexistent.invalid", "x" * 70 + ".invalid"])
def test_an_unknown_host_was_not_received(host):
    """A name that does not resolve is not a refused connection."""
    no_reply(post(f"http://{host}/"), "unknown-host", received=False)


def test_tls_is_verified_against_the_given_authority(tmp_path):
    """With the right authority, posts go through, over a kept connection."""
    mine = authority(tmp_path)
    with serving(answering(OK), mine.server) as server, transport(verify=mine.ca) as made:
        for _ in range(3):
            assert made.post(server.url, body=b"{}", headers=HEADERS, deadline_seconds=20).status == 200
    assert server.connections == 1


def test_the_authorities_of_the_environment_are_taken(tmp_path, monkeypatch):
    """REQUESTS_CA_BUNDLE works as with requests."""
    mine = authority(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", mine.ca)
    with serving(answering(OK), mine.server) as server:
        assert post(server.url).status == 200


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2"])
def test_a_foreign_authority_or_name_is_refused_before_anything_is_sent(tmp_path, address):
    """Neither an unknown authority nor a certificate for somebody else gets the token."""
    mine, other = authority(tmp_path / "mine", address), authority(tmp_path / "other", address)
    ca = other.ca if address == "127.0.0.1" else mine.ca
    with serving(answering(OK), mine.server) as server:
        no_reply(post(server.url, verify=ca), "tls", received=False)
    assert server.requests == []


def test_nothing_is_verified_where_the_job_says_so(tmp_path):
    """`verify: false` posts without a warning per request."""
    with serving(answering(OK), authority(tmp_path).server) as server:
        assert post(server.url, verify=False).status == 200


def test_tls_to_a_server_without_it_fails_in_tls():
    """An https URL of an http server is told apart from an outage."""

    def script(server, connection):
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        server.stopping.wait()

    with serving(script) as server:
        no_reply(post(server.url.replace("http:", "https:")), "tls", received=False)


def test_a_handshake_that_stalls_is_cut_at_the_deadline():
    """The watchdog reaches a connection before its TLS session stands."""
    with serving(lambda server, _: server.stopping.wait()) as server:
        timed_out(post(server.url.replace("http:", "https:"), seconds=0.3), 0.3, received=False)


def test_a_reply_that_trickles_over_tls_is_cut_at_the_deadline(tmp_path):
    """The deadline holds under TLS, too."""
    mine = authority(tmp_path)

    def script(server, connection):
        server.read(connection)
        server.trickle(connection, b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b"x")

    with serving(script, mine.server) as server:
        timed_out(post(server.url, verify=mine.ca, seconds=0.3), 0.3)


@pytest.mark.parametrize("option", ["verify", "cert"])
def test_certificates_that_cannot_be_read_are_an_error_of_the_job(tmp_path, option):
    """One line names the file."""
    (tmp_path / "bad.pem").write_text("nothing")
    for path in (tmp_path / "bad.pem", tmp_path / "absent.pem"):
        with pytest.raises(JobError, match=path.name) as caught:
            post("https://127.0.0.1/", **{option: str(path)})
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [f"{TOKEN}\r\nX: y", f"{TOKEN}\u4e2d"])
def test_a_header_that_cannot_be_sent_is_an_error_of_the_job_that_hides_its_value(value):
    """A line end in a secret stops the job without showing the secret."""
    with serving(answering(OK)) as server, pytest.raises(JobError) as caught:
        post(server.url, headers={"X-Auth-Token": value})
    assert TOKEN not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_url_that_is_none_is_an_error_of_the_job():
    """It is named."""
    with pytest.raises(JobError, match="'no-url'"):
        post("no-url")


def test_requests_go_through_the_proxy_of_the_environment(monkeypatch):
    """The proxy gets the whole URL and its own credentials, and the deadline holds there as well."""
    with serving(answering(OK)) as proxy:
        monkeypatch.setenv("http_proxy", f"http://me:pass@127.0.0.1:{proxy.port}")
        monkeypatch.setenv("no_proxy", "")
        assert post("http://service.invalid/v1").status == 200
    assert proxy.requests[0].startswith(b"POST http://service.invalid/v1 HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic" in proxy.requests[0]


def test_a_proxy_that_refuses_a_tunnel_has_received_nothing(monkeypatch):
    """The token stays here, and the password of the proxy out of the message."""
    with serving(answering(b"HTTP/1.1 407 Who\r\nContent-Length: 0\r\n\r\n")) as proxy:
        monkeypatch.setenv("https_proxy", f"http://me:pass@127.0.0.1:{proxy.port}")
        monkeypatch.setenv("no_proxy", "")
        outcome = no_reply(post("https://service.invalid/v1"), "refused", received=False)
    assert "pass" not in outcome.message
    assert TOKEN.encode() not in b"".join(proxy.requests)


def test_nothing_logs_a_header_value(caplog):
    """Not even at DEBUG, on success or failure."""
    caplog.set_level(logging.DEBUG)
    with serving(answering(OK)) as server:
        post(server.url)
    post(server.url)
    assert caplog.records
    assert all(TOKEN not in repr(vars(record)) + record.getMessage() for record in caplog.records)


def test_sixty_four_threads_share_a_transport():
    """Each thread gets the answer to its own request."""

    def echo(server, connection):
        while request := server.read(connection):
            body = request.partition(b"\r\n\r\n")[2]
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    def ask(made, url, number):
        body = str(number).encode()
        return made.post(url, body=body, headers=HEADERS, deadline_seconds=60).body == body

    with serving(echo) as server, transport() as made, ThreadPoolExecutor(64) as threads:
        assert all(threads.map(lambda number: ask(made, server.url, number), range(1280)))
    assert server.connections <= 64


def test_the_deadline_of_one_exchange_never_cuts_the_next_on_its_connection():
    """Exchanges that end just before their deadline leave a connection behind that is whole."""
    random.seed(1)

    def script(server, connection):
        while request := server.read(connection):
            server.stopping.wait(float(request.partition(b"\r\n\r\n")[2]))
            connection.sendall(OK)

    def ask(made, url):
        for _ in range(60):
            tight = made.post(url, body=b"%f" % random.uniform(0.004, 0.006), headers=HEADERS, deadline_seconds=0.006)
            assert isinstance(tight, Reply) or tight.kind == "timeout", tight
            roomy = made.post(url, body=b"0.004", headers=HEADERS, deadline_seconds=60)
            assert isinstance(roomy, Reply), roomy

    with serving(script) as server, transport() as made, ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(ask, made, server.url) for _ in range(8)]:
            done.result()


def test_a_detached_socket_is_not_shut_down_and_one_attached_too_late_is():
    """The two races between a thread and the watchdog, one after the other."""
    exchange = Exchange(0.0, lambda: 0.0, threading.Lock())
    ours, theirs = socket.socketpair()
    with ours, theirs:
        exchange.attach(ours)
        assert exchange.detach()
        exchange.expire()
        ours.sendall(b"whole")
        assert theirs.recv(10) == b"whole"
        exchange.attach(ours, sends=True)
        assert theirs.recv(10) == b""
        assert not exchange.sent
        assert not exchange.detach()


def test_the_watchdog_takes_a_shorter_deadline_that_comes_later():
    """A long exchange that is already running does not make a short one wait."""
    with serving(silent) as server, transport() as made, ThreadPoolExecutor(1) as other:
        long = other.submit(made.post, server.url, body=b"{}", headers=HEADERS, deadline_seconds=1.5)
        wait_until(lambda: server.requests)
        timed_out(made.post(server.url, body=b"{}", headers=HEADERS, deadline_seconds=0.2), 0.2)
        timed_out(long.result(), 1.5)


def test_a_silent_service_is_given_up_even_if_the_watchdog_is_dead(monkeypatch):
    """The sockets' own timeouts are the second fence."""
    monkeypatch.setattr("pipeline.transport.FENCE_SECONDS", 0.1)
    with serving(silent) as server, transport() as made:
        made._watchdog.close()
        timed_out(made.post(server.url, body=b"{}", headers=HEADERS, deadline_seconds=0.2), 0.2)


def test_a_closed_transport_refuses():
    """There is no connection any more, and no thread is left behind."""
    with serving(answering(OK)) as server:
        with transport() as made:
            made.post(server.url, body=b"{}", headers=HEADERS, deadline_seconds=20)
        no_reply(made.post(server.url, body=b"{}", headers=HEADERS, deadline_seconds=20), "refused", received=False)
    assert not any(thread.name == "deadlines" for thread in threading.enumerate())


def foreign_errors():
    for module in (requests.exceptions, urllib3.exceptions, http.client):
        for one in vars(module).values():
            if isinstance(one, type) and issubclass(one, Exception) and not issubclass(one, Warning):
                yield one


@pytest.mark.parametrize("error", sorted(set(foreign_errors()), key=repr), ids=lambda error: error.__qualname__)
def test_every_error_of_the_libraries_has_a_place_in_the_table(error):
    """A class that a new version brings is seen here."""
    kind, words = mishap(error.__new__(error))
    assert kind in {row[0] for row in _MISHAPS}
    assert words


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (requests.exceptions.ConnectTimeout, "timeout"),
        (requests.exceptions.ReadTimeout, "timeout"),
        (requests.exceptions.SSLError, "tls"),
        (requests.exceptions.ProxyError, "refused"),
        (requests.exceptions.ConnectionError, "reset"),
        (requests.exceptions.ChunkedEncodingError, "protocol"),
        (requests.exceptions.ContentDecodingError, "protocol"),
        (urllib3.exceptions.NameResolutionError, "unknown-host"),
        (urllib3.exceptions.NewConnectionError, "refused"),
        (urllib3.exceptions.ConnectTimeoutError, "timeout"),
        (urllib3.exceptions.ReadTimeoutError, "timeout"),
        (urllib3.exceptions.IncompleteRead, "protocol"),
        (http.client.RemoteDisconnected, "reset"),
        (http.client.BadStatusLine, "protocol"),
    ],
)
def test_the_table_says_what_an_error_means(error, kind):
    """The most specific row wins."""
    assert mishap(error.__new__(error))[0] == kind
