"""Services and IAMs that quote what they were sent, the most talkative logs, every kind of end: no secret anywhere."""

from __future__ import annotations

import html
import io
import itertools
import json
import logging
import re
import signal
import stat
import tempfile
import threading
from base64 import b64encode, urlsafe_b64encode
from contextlib import ExitStack
from pathlib import Path
from unittest import mock
from urllib.parse import quote, quote_plus

import pytest
import service
from engine import engine, one_by_one
from rawserver import answering, authority, cut, serving
from tenacity import wait_none

import jobs
from pipeline import tokens
from pipeline.modelarts import ModelArts
from schemas.secret import strike

PASSWORD = 'pass/word+9831 "x"&<y>=='
KEY = "sk-key/4711+0815=&<z>~end-of-it"
TOKEN = "MII" + "Tk/9+" * 60 + "=="
SECRETS = [PASSWORD, KEY, TOKEN]
ACCESS = "ACCESSKEY01234567890"  # which is none
OWN = "X-Own-Key"
FORMS = {
    "plain": lambda text: text,
    "cut": lambda text: text[:24],
    "url": lambda text: quote(text, safe=""),
    "form": quote_plus,
    "html": html.escape,
    "base64": lambda text: b64encode(text.encode()).decode(),
    "base64url": lambda text: urlsafe_b64encode(text.encode()).decode(),
}
AUTHS = {
    "none": lambda _: {"type": "none"},
    "given": lambda _: {"type": "token", "token": "${env:TOKEN}"},
    "file": lambda _: {"type": "token", "token": "${file:token.txt}"},
    "password": lambda iam: {**jobs.token(iam), "password": "${env:PASSWORD}"},
    "aksk": lambda _: {
        "type": "aksk",
        "access_key": ACCESS,
        "secret_key": "${env:PASSWORD}",
        "security_token": "${env:TOKEN}",
    },
    "app-key": lambda _: {"type": "app-key", "key": "${env:ACCESS}", "secret": "${env:PASSWORD}"},
    "app-code": lambda _: {"type": "app-code", "code": "${env:TOKEN}"},
    "api-key": lambda _: {"type": "api-key", "key": "${env:TOKEN}", "header": "X-Api-Key", "prefix": "key="},
}
CARRIERS = ["Authorization", "X-Auth-Token", "X-Security-Token", "X-Apig-AppCode", "X-Api-Key", OWN]
ROW_FAULTS = ["400", "422", "500", "503", "504", "200 erno", "200 uuid", "200 not JSON", "200 short"]


def needles(secret):
    """Yield what must not be found of a secret: beginnings and inner parts of it, in every form."""
    for part in (secret[:20], secret[-20:]):
        yield from {form(part).encode() for name, form in FORMS.items() if not name.startswith("base64")}
        yield json.dumps(part)[1:-1].replace("/", "\\/").encode()
        yield part.encode().hex().encode()
    for shift in range(3):  # base64 of anything that has it inside
        inner = b64encode(secret.encode()[shift:])[4:24]
        yield inner
        yield inner.replace(b"+", b"-").replace(b"/", b"_")


def leaks(texts, secrets=SECRETS):
    """Return (where, which secret) for each that is found."""
    sought = [(secret[:6], list(needles(secret))) for secret in secrets]
    return [(where, name) for where, text in texts for name, forms in sought if any(form in text for form in forms)]


def words(secrets, form):
    """Quote secrets as some service may."""
    return " ".join(FORMS[form](secret) for secret in secrets)


def sent_in(call):
    """Return what a service can quote of a request's headers."""
    return [value for name, value in call.headers.items() if name in CARRIERS]


def signatures(calls):
    """Return those of all requests: each lets in whoever repeats the request soon."""
    headers = [one.headers.get("Authorization", "") for one in calls]
    return [header[-64:] for header in headers if "Signature=" in header]


class Talkative:
    """Answers each row with the fault that it is about, and then with a 400; quotes the secrets of each request.

    The first row is well.
    """

    def __init__(self):
        self._seen = set()

    def __call__(self, call):
        number = call.places[0]
        if number == 0:
            return service.score(call)
        fault = "400" if number in self._seen else ROW_FAULTS[number // len(FORMS) % len(ROW_FAULTS)]
        self._seen.add(number)
        secrets = sent_in(call)
        headers = {"Server": words(secrets, "plain"), "X-Request-Id": words(secrets, "cut")}
        return int(fault[:3]), headers, saying(fault, words(secrets, list(FORMS)[number % len(FORMS)]))


def saying(fault, said):
    """Return the body of a fault, with something quoted."""
    if fault == "200 not JSON":
        return said.encode()
    body = {
        "200 erno": {"erno": "MR.0105", "msg": f"no model for {said}"},
        "200 uuid": {"meta": {"uuid": said}, "data": {"resp_data": [1]}},
        "200 short": {"meta": {"uuid": ""}, "data": {"resp_data": []}, "error_msg": said},
    }
    return json.dumps(body.get(fault, {"error_code": "X.1", "error_msg": f"{said} is refused"})).encode()


def refusing(status, form):
    """Refuse every request, with what it was sent."""

    def answer(call):
        said = words(sent_in(call), form)
        return status, {"Location": said, "Server": said}, json.dumps({"error_code": "", "error_msg": said}).encode()

    return answer


class Slow:
    """Answers four requests, and when it is told to those that wait; then no more, so that nobody comes to an end."""

    def __init__(self):
        self.go, self._count = threading.Event(), itertools.count()

    def __call__(self, call):
        if self.go.is_set():
            return service.refusal(503, "ModelArts.4700")
        if next(self._count) >= 4:
            self.go.wait(60)
        return service.score(call)


def granting(server, connection):
    """Answer as IAM does."""
    while server.read(connection):
        body = json.dumps({"token": {"expires_at": "2999-01-01T00:00:00.000000Z"}}).encode()
        head = f"HTTP/1.1 201 Created\r\nX-Subject-Token: {TOKEN}\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)


def iam_quoting(status, form):
    """Refuse as IAM does, with the password."""
    body = json.dumps(
        {"error": {"code": status, "title": "No", "message": f"{FORMS[form](PASSWORD)} is wrong"}}
    ).encode()
    return answering(f"HTTP/1.1 {status} No\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)


class Place:
    """A job's folder, and all that is written and said while its runs go on."""

    def __init__(self, folder, caches, capfd):
        self.folder, self._caches, self._capfd = folder, caches, capfd
        self._log = io.StringIO()
        self.handler = logging.StreamHandler(self._log)
        self.handler.setFormatter(logging.Formatter("%(name)s %(message)s %(args)s %(pathname)s"))
        (folder / "token.txt").write_text(TOKEN)
        jobs.put(folder / "in" / "iris.parquet", self.rows())

    @staticmethod
    def rows():
        """Return as many rows as there are faults and forms; a row's number is its first measure."""
        table = jobs.flowers(len(FORMS) * len(ROW_FAULTS))
        numbers = [float(number) for number in range(table.num_rows)]
        return table.set_column(1, jobs.SEND[0], [numbers])

    def job(self, url, auth, iam="http://127.0.0.1:1", *, outage="0s"):
        """Write a job that calls the service with the secrets of this way in, and a header of its own."""
        service_keys = {"url": url, "auth": AUTHS[auth](iam), "headers": {OWN: "Bearer ${env:KEY}"}}
        limits = {"rows": 1, "in_flight": 4, "timeout": "1s"}
        retry = {"attempts": 3, "seconds": 20, "outage": outage}
        service_keys["limits"] = limits
        return jobs.job_file(self.folder, "", service=service_keys, retry=retry, errors={"allow": "100%"})

    def told(self, *more):
        """Return all that is on disk and was said, but for the file of the job's own token and the cache of tokens."""
        yield from more
        shown = self._capfd.readouterr()
        yield from (
            ("stdout", shown.out.encode()),
            ("stderr", shown.err.encode()),
            ("log", self._log.getvalue().encode()),
        )
        for root in (self.folder, self._caches, Path(tempfile.gettempdir())):
            for path in (path for path in root.rglob("*") if path.is_file()):
                yield "name", str(path).encode()
                if path.name == "token.txt" or path.parent.name == "tokens":
                    assert path.name == "token.txt" or stat.S_IMODE(path.stat().st_mode) == 0o600
                    continue
                yield str(path), path.read_bytes()
        if table := jobs.results(self.folder / "out"):
            yield "results", repr(table.to_pylist()).encode()

    def see_no_secret(self, *ran, calls=()):
        """Look for each secret in all of it, and for what these requests were signed with."""
        for one in ran:
            assert "Bearer ${env:KEY}" not in one.out  # told by their references in job.json alone
        told = self.told(*(("told", (one.out + one.err).encode()) for one in ran))
        assert leaks(told, [*SECRETS, *signatures(calls)[:20]]) == []


@pytest.fixture
def place(tmp_path, monkeypatch, capfd):
    """A folder, temporary files, a cache and an environment of its own; logs at the lowest level; no pauses."""
    for name in ("job", "cache", "tmp"):
        (tmp_path / name).mkdir()
    for name, value in {
        "PASSWORD": PASSWORD,
        "KEY": KEY,
        "TOKEN": TOKEN,
        "ACCESS": ACCESS,
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(tokens, "_shared", {})
    monkeypatch.setattr("pipeline.retry._BACKOFF", wait_none())
    found = Place(tmp_path / "job", tmp_path / "cache", capfd)
    root, level = logging.getLogger(), logging.getLogger().level
    root.addHandler(found.handler)
    root.setLevel(1)
    yield found
    root.removeHandler(found.handler)
    root.setLevel(level)


@pytest.fixture
def iam():
    """Grant tokens; yields the base URL."""
    with serving(granting) as server:
        yield f"http://127.0.0.1:{server.port}"


def test_the_search_finds_a_secret_in_every_form():
    """Else the tests below would show nothing."""
    for secret in SECRETS:
        for name, form in FORMS.items():
            assert leaks([(name, b"x " + form(secret).encode() + b" y")]) == [(name, secret[:6])]
        assert leaks([("inside", b64encode(f"user:{secret}".encode()))]), secret[:6]
    assert leaks([("none", b"pass key MII")]) == []


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("secret", SECRETS)
def test_what_others_quote_is_struck_in_every_form(secret, form):
    """Whole or cut, behind a word or in a text; the rest stays as it is."""
    for value in (secret, f"Bearer {secret}"):
        said = strike(f"token {FORMS[form](secret)} is unknown".encode(), [value])
        assert leaks([("said", said)]) == []
        assert said.startswith(b"token ***")
        assert said.endswith(b" is unknown")


@pytest.mark.parametrize("auth", AUTHS)
def test_a_service_that_quotes_its_requests_in_every_answer_gives_nothing_away(place, iam, auth):
    """In bodies of every status, in headers, in a uuid: dead letters tell the rest."""
    with service.recording(Talkative()) as recorded, engine(one_by_one):
        ran = jobs.call("run", place.job(recorded.url, auth, iam, outage="60s"), env={})
        shown = recorded.calls[0].headers
        assert KEY in shown[OWN]
        assert any(TOKEN in value for value in shown.values()) == (auth not in {"none", "app-key"})
        assert bool(signatures(recorded.calls)) == (auth in {"aksk", "app-key"})
    assert ran.code == 0, ran
    letters = jobs.letters(place.folder / "out")
    assert len(letters) == len(FORMS) * len(ROW_FAULTS) - 1
    assert all("***" in letter["message"] for letter in letters)
    assert max(len(letter["history"]) for letter in letters) == 2
    assert any("***" in one.get("server", "") for letter in letters for one in letter["history"])
    place.see_no_secret(ran, calls=recorded.calls)


@pytest.mark.parametrize("auth", AUTHS)
@pytest.mark.parametrize("status", [401, 403, 404, 307])
def test_a_refusal_of_the_job_that_quotes_its_secrets_is_told_without_them(place, iam, auth, status):
    """The one line, stop.json and the summary."""
    form = list(FORMS)[(status + len(auth)) % len(FORMS)]
    with service.recording(refusing(status, form)) as recorded, engine(one_by_one):
        ran = jobs.call("run", place.job(recorded.url, auth, iam), env={})
    assert ran.code == 4, ran
    assert "***" in ran.err
    place.see_no_secret(ran, calls=recorded.calls)


def test_what_is_no_secret_is_told(place):
    """An access key and the time of a signature say what is wrong with it."""

    def answer(call):
        said = f"Get secretKey failed,ak:{ACCESS},err:ak not exist; signed {call.headers['X-Sdk-Date']}"
        return 401, {}, json.dumps({"error_code": "APIG.0301", "error_msg": said}).encode()

    with service.recording(answer) as recorded, engine(one_by_one):
        ran = jobs.call("run", place.job(recorded.url, "aksk"), env={})
    (call,) = recorded.calls
    assert f"failed,ak:{ACCESS},err:ak not exist; signed {call.headers['X-Sdk-Date']} (" in ran.err


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("status", [401, 503])
def test_an_iam_that_quotes_the_password_gives_nothing_away(place, status, form):
    """Refusals and outages alike."""
    with serving(iam_quoting(status, form)) as server, engine(one_by_one):
        ran = jobs.call("run", place.job("http://127.0.0.1:1/x", "password", f"http://127.0.0.1:{server.port}"), env={})
        assert server.requests
    assert ran.code == (4 if status < 500 else 6), ran
    assert "***" in ran.err
    place.see_no_secret(ran)


def silent(server, connection):
    """Read, and say nothing."""
    server.read(connection)
    server.stopping.wait(60)


def broken(server, connection):
    """Read, and reset."""
    server.read(connection)
    cut(connection)


@pytest.mark.parametrize(
    ("script", "auth"), [(silent, "password"), (broken, "given"), (answering(b"\x16\x03\x01 what?\r\n\r\n"), "none")]
)
def test_a_service_that_does_not_answer_leaves_no_secret(place, iam, auth, script):
    """Timeouts, resets, and answers that are none."""
    with serving(script) as server, engine(one_by_one):
        ran = jobs.call("run", place.job(server.url, auth, iam), env={})
    assert ran.code == 6, ran
    place.see_no_secret(ran)


@pytest.mark.parametrize("whose", ["service", "iam"])
def test_a_failure_of_tls_leaves_no_secret(place, iam, tmp_path, whose):
    """Nobody vouches for who answers: nothing was sent to them, and nothing is told."""
    with serving(granting, authority(tmp_path / "ca").server) as server, engine(one_by_one):
        url = f"https://127.0.0.1:{server.port}"
        job = place.job(f"{url}/x", "password", iam) if whose == "service" else place.job(f"{iam}/x", "password", url)
        ran = jobs.call("run", job, env={})
        assert server.requests == []
    assert ran.code == 4, ran
    place.see_no_secret(ran)


def test_a_defect_leaves_no_secret(place, iam):
    """A traceback, and all that Beam has to say about it."""
    with (
        service.recording() as recorded,
        mock.patch.object(ModelArts, "read", side_effect=ZeroDivisionError("a defect")),
    ):
        ran = jobs.call("run", place.job(recorded.url, "password", iam), env={})
    assert ran.code == 1, ran
    assert "ZeroDivisionError" in ran.err
    place.see_no_secret(ran)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_is_ended_leaves_no_secret(place, iam, tmp_path, number):
    """At any moment, with the logs of all libraries on stderr."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import logging\nlogging.basicConfig(level=1)\n")
    slow = Slow()
    with ExitStack() as stack:
        recorded = stack.enter_context(service.recording(slow))
        stack.callback(slow.go.set)
        env = {"PYTHONPATH": str(tmp_path / "site"), "TMPDIR": str(tmp_path / "tmp")}
        running = stack.enter_context(jobs.process("run", place.job(recorded.url, "password", iam), env=env))
        jobs.until(lambda: len(recorded.calls) >= 5)
        running.send_signal(number)
        slow.go.set()
        out, err = running.communicate(timeout=60)
    assert running.returncode in {-number, 128 + number}
    assert re.search("^DEBUG:", err, re.MULTILINE), "the log is not verbose enough to show anything"
    place.see_no_secret(jobs.Ran(running.returncode, out, err))
