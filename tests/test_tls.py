"""Jobs over TLS: who is believed, who we say we are, and what is said where it does not fit."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import contextmanager, suppress

import pytest
from certificates import Authority
from rawserver import answering, serving
from service import recording

from jobs import call, flowers, job_file, letters, put, results

NAME = "svc.example.com"


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path / "ours")


def plain(folder, url, *, rows=12, **service):
    """Write a job without credentials; the keys are those under `service`."""
    put(folder / "in" / "rows.parquet", flowers(rows))
    keys = {f"service__{key}": value for key, value in service.items()}
    return job_file(folder, "", **{"service__url": url, "service__auth": {"type": "none"}, **keys})


def refused(done, *words):
    """See that a run ended with one line, exit code 4, and these words."""
    assert done.code == 4, done
    [line] = [one for one in done.err.splitlines() if one.startswith("ERROR")]
    for one in words:
        assert one in line
    assert "\n" not in line


@pytest.mark.parametrize("name", ["127.0.0.1", NAME])
def test_a_private_authority_and_a_host_are_believed(tmp_path, authority, name):
    """An IP address needs its place in the certificate, or a `Host` that has."""
    headers = {"Host": f"{NAME}:443"} if name == NAME else {}
    with recording(tls=authority.context(name)) as service:
        job = plain(tmp_path, service.url, tls={"ca": authority.ca}, headers=headers)
        assert call("run", job).code == 0
    assert results(tmp_path / "out").num_rows == 12
    assert {one.headers["Host"] for one in service.calls} == {headers.get("Host", service.url.split("/")[2])}


def test_the_name_of_the_host_is_asked_for_in_the_handshake(tmp_path, authority):
    """A gateway with many services behind one address needs it."""
    asked = []
    context = authority.context(NAME)
    context.sni_callback = lambda _socket, name, _context: asked.append(name)
    with recording(tls=context) as service:
        done = call("run", plain(tmp_path, service.url, tls={"ca": authority.ca}, headers={"host": NAME}))
    assert (done.code, set(asked)) == (0, {NAME})


REFUSED = {
    "wrong host": ({"name": NAME}, {}, ["IP address mismatch", "service.headers.Host"]),
    "another host": ({"name": NAME}, {"Host": "other.example.com"}, ["mismatch", "service.headers.Host"]),
    "expired": ({"name": "127.0.0.1", "days": -1}, {}, ["certificate has expired", "renewed"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_certificate_that_does_not_verify_ends_the_job(tmp_path, authority, case):
    """At once, with one line that says what to mend, and before anything is sent."""
    options, headers, words = REFUSED[case]
    with recording(tls=authority.context(**options)) as service:
        job = plain(tmp_path, service.url, tls={"ca": authority.ca}, headers=headers)
        refused(call("run", job), *words, service.url.rpartition("/v1")[0])
    assert service.calls == []
    assert letters(tmp_path / "out") == []


def test_an_unknown_authority_ends_the_job(tmp_path, authority):
    """Whether none is named, or the wrong one."""
    other = Authority(tmp_path / "other", "another authority")
    for folder, tls in {"none": {}, "wrong": {"ca": other.ca}}.items():
        with recording(tls=authority.context("127.0.0.1")) as service:
            refused(call("run", plain(tmp_path / folder, service.url, tls=tls)), "service.tls.ca")
        assert service.calls == []


@pytest.mark.parametrize("whose", ["right", "absent", "wrong"])
def test_a_service_that_wants_our_certificate_gets_it(tmp_path, authority, whose):
    """Without it, or with somebody else's, the job ends."""
    other = Authority(tmp_path / "other", "another authority")
    certificate, key = {"right": authority, "wrong": other, "absent": authority}[whose].issue("client")
    ours = {} if whose == "absent" else {"cert": certificate, "key": key}
    with recording(tls=authority.context("127.0.0.1", asks_for=authority.ca)) as service:
        done = call("run", plain(tmp_path, service.url, tls={"ca": authority.ca, **ours}))
    if whose == "right":
        assert (done.code, results(tmp_path / "out").num_rows) == (0, 12)
    else:
        refused(done, "service.tls.cert")
        assert service.calls == []


def test_a_key_that_is_not_the_certificates_is_an_error_of_the_job(tmp_path, authority):
    """It is seen before anybody is called."""
    certificate, _ = authority.issue("client")
    _, key = authority.issue("another")
    done = call("run", plain(tmp_path, "https://127.0.0.1:9/", tls={"cert": certificate, "key": key}))
    assert done.code == 2
    assert "service.tls.cert" in done.err


def test_https_where_nobody_speaks_tls_ends_the_job(tmp_path):
    """A URL that should begin with http is no outage."""

    def script(server, connection):
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        server.stopping.wait()

    with serving(script) as server:
        refused(call("run", plain(tmp_path, server.url.replace("http:", "https:"))), "TLS failed", "http")


def test_what_is_not_verified_is_said_in_every_run(tmp_path, authority):
    """Whoever answers is believed where the job file says so; even a quiet run tells, and the output keeps it."""
    with recording(tls=authority.context("other.example.com", days=-1)) as service:
        job = plain(tmp_path, service.url, tls={"verify": False})
        runs = [call("run", job, "-q"), call("run", job, "-q")]
    assert [one.code for one in runs] == [0, 0]
    assert all("service.tls.verify is false" in one.err for one in runs)
    assert json.loads((tmp_path / "out" / "job.json").read_bytes())["service"]["tls"]["verify"] is False


def test_one_node_whose_certificate_is_over_is_left_out(tmp_path, authority):
    """The others go on; alone it would end the job."""
    with (
        recording(tls=authority.context("127.0.0.1")) as good,
        recording(tls=authority.context("127.0.0.1", days=-1)) as bad,
    ):
        job = plain(tmp_path, [good.url, bad.url], rows=200, tls={"ca": authority.ca}, limits={"rows": 1})
        assert call("run", job).code == 0
    assert (bad.calls, results(tmp_path / "out").num_rows) == ([], 200)


class Proxy:
    """A proxy that opens tunnels and passes requests on, to whatever name is asked for, at one address."""

    def __init__(self, port):
        self.port = port
        self.heads = []

    def __call__(self, _, connection):
        head = b""
        while b"\r\n\r\n" not in head:
            piece = connection.recv(65536)
            if not piece:
                return
            head += piece
        self.heads.append(head)
        with socket.create_connection(("127.0.0.1", self.port)) as beyond:
            if head.startswith(b"CONNECT "):
                connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                beyond.sendall(head)
            back = threading.Thread(target=pass_on, args=(beyond, connection))
            back.start()
            pass_on(connection, beyond)
            back.join()


def pass_on(source, target):
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for end in (source, target):
        with suppress(OSError):
            socket.socket.shutdown(end, socket.SHUT_RDWR)


@contextmanager
def proxied(monkeypatch, service, scheme):
    """Let the environment name a proxy, with a password, through which the service is reached."""
    port = int(service.url.split(":")[2].split("/")[0])
    proxy = Proxy(port)
    with serving(proxy) as listening:
        monkeypatch.setenv(f"{scheme}_PROXY", f"http://me:pa55word@127.0.0.1:{listening.port}")
        yield proxy


@pytest.mark.parametrize("scheme", ["HTTP", "HTTPS"])
def test_a_job_goes_through_the_proxy_of_the_environment(tmp_path, authority, monkeypatch, scheme):
    """The proxy looks the name up, and within a tunnel sees nothing of what is sent; its password is shown nowhere."""
    tls = authority.context(NAME) if scheme == "HTTPS" else None
    with recording(tls=tls) as service, proxied(monkeypatch, service, scheme) as proxy:
        url = f"{scheme.lower()}://{NAME}/v1/infers/iris"
        job = plain(tmp_path, url, tls={"ca": authority.ca} if tls else {}, headers={"X-Key": "hidden-key"})
        done = call("run", job)
    assert (done.code, results(tmp_path / "out").num_rows) == (0, 12)
    start = f"CONNECT {NAME}:443 " if tls else f"POST {url} "
    assert all(head.startswith(start.encode()) for head in proxy.heads)
    assert all(b"Proxy-Authorization: Basic bWU6cGE1NXdvcmQ=" in head for head in proxy.heads)
    assert all((b"hidden-key" in head) is (tls is None) for head in proxy.heads)
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert b"pa55word" not in written + done.err.encode() + done.out.encode()


def test_a_host_in_no_proxy_is_called_directly(tmp_path, monkeypatch):
    """As everywhere else."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with recording() as service:
        assert call("run", plain(tmp_path, service.url)).code == 0


@pytest.mark.parametrize("status", [b"403 Forbidden", b"407 Proxy Authentication Required", b"502 Bad Gateway"])
def test_a_proxy_that_refuses_a_tunnel_is_an_outage_that_names_it(tmp_path, monkeypatch, status):
    """The service is not there; what the proxy said is told, and its password is not."""
    with serving(answering(b"HTTP/1.1 %s\r\nContent-Length: 0\r\n\r\n" % status)) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:pa55word@127.0.0.1:{proxy.port}")
        job = plain(tmp_path, f"https://{NAME}/v1/infers/iris")
        done = call("run", job, "--set", "retry.outage=1s")
    assert done.code == 6
    assert "proxy" in done.err
    assert status[:3].decode() in done.err
    assert "pa55word" not in done.err
