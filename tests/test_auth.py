from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from certificates import Authority
from rawserver import answering, authority, serving

from pipeline import tokens
from pipeline.auth import IamUnavailable, open_auth
from pipeline.errors import JobError, Refused
from pipeline.iam import Token, account_of, ask
from pipeline.sign import Request
from schemas.auth import NoAuth, TokenAuth

PASSWORD = "pass-word-9831"
HEADER = "X-Auth-Token"
REQUEST = Request("POST", "https://host/v1/infers/iris", {"Content-Type": "application/json"}, b"{}")

PROCESS = """
import json, sys, time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from pipeline.auth import open_auth
from pipeline.sign import Request
from schemas.auth import TokenAuth

REQUEST = Request("POST", "http://host/", {}, b"")
folder, seconds, values = Path(sys.argv[1]), float(sys.argv[2]), json.loads(sys.argv[3])
auth = open_auth(TokenAuth(**values), cache_dir=folder)
end = time.time() + seconds

def use(_):
    seen = {auth.headers(REQUEST)["X-Auth-Token"]}
    while time.time() < end:
        time.sleep(0.01)
        seen.add(auth.headers(REQUEST)["X-Auth-Token"])
    return seen

with ThreadPoolExecutor(8) as threads:
    print(json.dumps(sorted(set().union(*threads.map(use, range(8))))))
"""


class Clock:
    def __init__(self):
        self.now = 1_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture(autouse=True)
def _new_process(monkeypatch):
    """Forget what this process knows of any account."""
    monkeypatch.setattr(tokens, "_shared", {})


@pytest.fixture(autouse=True)
def _password(monkeypatch):
    monkeypatch.setenv("PASSWORD", "demo")


def settings(base, **changes):
    names = {"auth_url": f"{base}/v3", "user": "demo", "domain": "demo", "project": "demo"}
    return TokenAuth(**(names | {"password": "${env:PASSWORD}"} | changes))


def issued(base):
    with urllib.request.urlopen(f"{base}/stats") as reply:
        return json.load(reply)["tokens_issued"]


def reply(status, body, *headers):
    text = json.dumps(body).encode() if isinstance(body, dict) else body
    lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(text)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + text


def granting(*texts, life=1000):
    """Answer as IAM does, with the next of `texts` for each request; its clock is years off."""
    left = list(texts)

    def script(server, connection):
        while server.read(connection):
            text = left.pop(0) if len(left) > 1 else left[0]
            times = {"issued_at": "2001-01-01T00:00:00.000000Z", "expires_at": _at(life)}
            connection.sendall(reply(201, {"token": times}, f"X-Subject-Token: {text}"))

    return script


def _at(life):
    return f"2001-01-01T{life // 3600:02d}:{life // 60 % 60:02d}:{life % 60:02d}.000000Z"


def base_of(server):
    return f"{server.scheme}://127.0.0.1:{server.port}"


def asking(server, tmp_path, **options):
    return open_auth(settings(base_of(server)), cache_dir=tmp_path / "tokens", **options)


def run_processes(count, *arguments):
    command = [sys.executable, "-c", PROCESS, *map(str, arguments)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    outputs = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0] * count
    return [set(json.loads(output)) for output in outputs]


def test_no_auth_has_no_headers_and_its_refusal_says_what_to_do():
    """A service that asks for credentials after all stops the job."""
    auth = open_auth(NoAuth())
    assert auth.headers(REQUEST) == {}
    with pytest.raises(Refused, match=r"service\.auth"):
        auth.refresh({}, {})


def test_a_given_token_is_used_as_it_is_and_cannot_be_renewed(monkeypatch):
    """A 401 to it stops the job."""
    monkeypatch.setenv("TOKEN", "MII-given")
    auth = open_auth(TokenAuth(token="${env:TOKEN}"))
    assert auth.headers(REQUEST) == {HEADER: "MII-given"}
    with pytest.raises(Refused, match="the given token was refused") as caught:
        auth.refresh(auth.headers(REQUEST), {})
    assert "MII-given" not in str(caught.value)


def test_a_token_of_the_project_is_asked_for_as_iam_documents_it(tmp_path):
    """Password method, the user's domain by name, project scope by name with its domain, or by id alone."""
    with serving(granting("MII-1")) as server:
        asking(server, tmp_path).headers(REQUEST)
        by_id = settings(base_of(server), project=None, project_id="p1")
        open_auth(by_id, cache_dir=tmp_path / "tokens").headers(REQUEST)
    bodies = [json.loads(one.partition(b"\r\n\r\n")[2])["auth"] for one in server.requests]
    user = {"name": "demo", "domain": {"name": "demo"}, "password": "demo"}
    assert bodies[0]["identity"] == {"methods": ["password"], "password": {"user": user}}
    assert [body["scope"] for body in bodies] == [
        {"project": {"name": "demo", "domain": {"name": "demo"}}},
        {"project": {"id": "p1"}},
    ]
    assert server.requests[0].startswith(b"POST /v3/auth/tokens?nocatalog")


@pytest.mark.parametrize(
    ("times", "life"),
    [({"expires_at": "2001-01-01T00:16:40.000000Z"}, 1000), ({}, 86_400), ({"expires_at": "2000-12-31T00:00:00Z"}, 1)],
)
def test_a_token_that_comes_without_its_times_is_used_all_the_same(times, life):
    """Its life is counted from our clock, or is the documented day; it is never so short that every request asks."""
    now = datetime(2001, 1, 1, tzinfo=UTC).timestamp()
    script = answering(reply(201, {"token": times}, "X-Subject-Token: MII-1"))
    with serving(script) as server:
        token = ask(account_of(settings(base_of(server)), os.environ), verify=True, clock=lambda: now)
    assert (token.text, token.life) == ("MII-1", life)


def test_the_sandbox_grants_a_token_that_its_service_takes(sandbox, tmp_path):
    """The header is the one that the service looks at."""
    base = sandbox()
    headers = open_auth(settings(base), cache_dir=tmp_path).headers(REQUEST)
    body = b'{"data":{"req_data":[{"sepal_length":5.1,"sepal_width":3.5,"petal_length":1.4,"petal_width":0.2}]}}'
    request = urllib.request.Request(f"{base}/v1/infers/iris", body, {**headers, "Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200


def test_eight_threads_ask_once(sandbox, tmp_path):
    """Those who come while one asks wait for its token."""
    base = sandbox()
    auth = open_auth(settings(base), cache_dir=tmp_path)
    start = threading.Barrier(8)

    def use(_):
        start.wait()
        return auth.headers(REQUEST)[HEADER]

    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(use, range(8)))) == 1
    assert issued(base) == 1


def test_two_processes_of_eight_threads_ask_once(sandbox, tmp_path):
    """The token is shared through the file."""
    base = sandbox()
    values = settings(base).model_dump()
    first, second = run_processes(2, tmp_path, 0, json.dumps(values))
    assert first == second
    assert issued(base) == 1


def test_two_processes_of_eight_threads_ask_once_per_lifetime(sandbox, tmp_path):
    """Tokens that live 2 s are renewed 0.4 s ahead, by one thread of one process."""
    base = sandbox(token_seconds=2)
    start = time.monotonic()
    seen = run_processes(2, tmp_path, 5, json.dumps(settings(base).model_dump()))
    elapsed = time.monotonic() - start
    assert 3 <= issued(base) <= elapsed / 1.6 + 1
    assert len(set().union(*seen)) == issued(base)


def test_a_token_is_renewed_when_a_fifth_of_its_life_is_left(tmp_path):
    """Life is counted from the receipt by our clock, so that of IAM may be years off."""
    clock = Clock()
    with serving(granting("MII-1", "MII-2", life=1000)) as server:
        auth = asking(server, tmp_path, clock=clock)
        assert auth.headers(REQUEST)[HEADER] == "MII-1"
        clock.now += 799
        assert auth.headers(REQUEST)[HEADER] == "MII-1"
        clock.now += 1
        assert auth.headers(REQUEST)[HEADER] == "MII-2"
    assert len(server.requests) == 2


@pytest.mark.parametrize(("life", "due_at"), [(2, 1.6), (1000, 800), (1500, 1200), (86_400, 86_100)])
def test_renewal_is_at_most_five_minutes_ahead(life, due_at):
    """A day's token is not thrown away hours before its end."""
    token = Token("MII", 0.0, life)
    assert not token.due(due_at - 0.01)
    assert token.due(due_at)
    assert token.alive(life - 0.01)
    assert not token.alive(life)


def test_other_threads_go_on_with_a_valid_token_while_one_renews_it(tmp_path):
    """Only the thread that renews waits for IAM."""
    clock, go_on, asked = Clock(), threading.Event(), threading.Event()
    grant = granting("MII-1", "MII-2")

    def script(server, connection):
        if server.connections == 2:
            asked.set()
            go_on.wait(60)
        grant(server, connection)

    with serving(script) as server, ThreadPoolExecutor(1) as renewing:
        auth = asking(server, tmp_path, clock=clock)
        auth.headers(REQUEST)
        clock.now += 900
        renewed = renewing.submit(auth.headers, REQUEST)
        assert asked.wait(60)
        assert auth.headers(REQUEST)[HEADER] == "MII-1"
        go_on.set()
        assert renewed.result()[HEADER] == "MII-2"
        assert auth.headers(REQUEST)[HEADER] == "MII-2"


def test_a_valid_token_is_used_while_iam_is_out(tmp_path):
    """Renewal ahead that fails is tried again a little later, and does no harm before the token's end."""
    clock = Clock()
    with serving(granting("MII-1")) as server:
        auth = asking(server, tmp_path, clock=clock)
        auth.headers(REQUEST)
    clock.now += 900
    assert auth.headers(REQUEST)[HEADER] == "MII-1"
    with count_asks() as asks:
        assert auth.headers(REQUEST)[HEADER] == "MII-1"
        assert asks == []
        clock.now += 5
        assert auth.headers(REQUEST)[HEADER] == "MII-1"
        assert len(asks) == 1
    clock.now += 100
    with pytest.raises(IamUnavailable):
        auth.headers(REQUEST)


@contextlib.contextmanager
def count_asks():
    asks = []
    ask = tokens.ask
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "ask", lambda *arguments: (asks.append(1), ask(*arguments))[1])
        yield asks


def test_a_refused_token_is_replaced_once_for_all_threads(sandbox, tmp_path):
    """Eight threads that got a 401 to the same token make one question."""
    base = sandbox()
    auth = open_auth(settings(base), cache_dir=tmp_path)
    stale = auth.headers(REQUEST)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: auth.refresh(stale, {}), range(8)))
    assert auth.headers(REQUEST) != stale
    assert issued(base) == 2


def test_a_refused_token_is_replaced_by_what_another_process_has_got(tmp_path, monkeypatch):
    """The file is looked at before IAM is asked."""
    with serving(granting("MII-1", "MII-2", "MII-3")) as server:
        auth = asking(server, tmp_path)
        stale = auth.headers(REQUEST)
        monkeypatch.setattr(tokens, "_shared", {})
        other = asking(server, tmp_path)
        other.refresh(stale, {})
        auth.refresh(stale, {})
        assert auth.headers(REQUEST) == other.headers(REQUEST) == {HEADER: "MII-2"}


def test_a_refused_token_is_not_given_out_again_while_iam_is_out(tmp_path):
    """It would only be refused once more."""
    with serving(granting("MII-1")) as server:
        auth = asking(server, tmp_path)
        stale = auth.headers(REQUEST)
    for again in (lambda: auth.refresh(stale, {}), lambda: auth.headers(REQUEST)):
        with pytest.raises(IamUnavailable):
            again()


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, {"error": {"message": "Incorrect password", "code": "IAM.0062"}}, "401 IAM.0062 Incorrect password"),
        (401, {"error": {"message": "Unauthorized.", "code": 401, "title": "Unauthorized"}}, "401 Unauthorized."),
        (400, {"error_msg": "The format of message is error", "error_code": "AS.0001"}, "400 AS.0001 The format of"),
        (404, {"error_msg": "Not\nthere", "error_code": "APIGW.0101", "request_id": "1"}, "404 APIGW.0101 Not there"),
        (403, b"<html>Forbidden</html>", "403 Forbidden"),
    ],
)
def test_a_refusal_of_iam_stops_the_job_in_its_own_words_and_is_asked_for_once(tmp_path, status, body, said):
    """A wrong password that is tried again locks the account, so nobody in this process does."""
    with serving(answering(reply(status, body))) as server:
        auth = asking(server, tmp_path)
        with ThreadPoolExecutor(8) as threads:
            failures = [one.exception() for one in [threads.submit(auth.headers, REQUEST) for _ in range(8)]]
        with pytest.raises(Refused):
            asking(server, tmp_path).refresh({}, {})
    assert len(server.requests) == 1
    for failure in failures:
        assert isinstance(failure, Refused)
        assert str(failure).startswith(f"IAM at {base_of(server)}/v3 refuses the credentials: {said}")
        assert "; check " in str(failure)
        assert "\n" not in str(failure)


@pytest.mark.parametrize(
    ("status", "header", "seconds"),
    [(429, "Retry-After: 7", 7.0), (503, "X: y", None), (500, "Retry-After: soon", None)],
)
def test_an_iam_under_pressure_is_an_outage_not_a_refusal(tmp_path, status, header, seconds):
    """The caller waits as long as IAM says, and asks again."""
    body = {"error": {"message": "The throttling threshold has been reached", "code": "IAM.0012"}}
    with serving(answering(reply(status, body, header))) as server:
        auth = asking(server, tmp_path)
        for _ in range(2):
            with pytest.raises(IamUnavailable, match=f"{status} IAM.0012 The throttling") as caught:
                auth.headers(REQUEST)
            assert caught.value.retry_after == seconds
    assert len(server.requests) == 2


def test_those_who_waited_for_an_answer_that_failed_do_not_ask_again(tmp_path):
    """An IAM that is out is not asked by each of eight threads in turn."""
    asked, go_on = threading.Event(), threading.Event()

    def script(server, connection):
        server.read(connection)
        asked.set()
        go_on.wait(60)
        connection.sendall(reply(503, b""))

    def use(auth, begun):
        begun.release()
        auth.headers(REQUEST)

    with serving(script) as server, ThreadPoolExecutor(8) as threads:
        auth, begun = asking(server, tmp_path), threading.Semaphore(0)
        first = threads.submit(use, auth, begun)
        assert asked.wait(60)
        others = [threads.submit(use, auth, begun) for _ in range(7)]
        for _ in range(8):
            begun.acquire()
        time.sleep(0.1)  # from the line above to the lock there is nothing to wait for
        go_on.set()
        assert all(isinstance(one.exception(), IamUnavailable) for one in [first, *others])
    assert len(server.requests) == 1


def test_an_iam_that_refuses_connections_is_an_outage(tmp_path):
    """The message says what became of the question."""
    with serving(granting("MII-1")) as server:
        auth = asking(server, tmp_path)
    with pytest.raises(IamUnavailable, match=r"IAM at .* gives no answer: no connection: Connection refused"):
        auth.headers(REQUEST)


def test_an_answer_that_trickles_is_an_outage(tmp_path, monkeypatch):
    """The question has a deadline that holds."""
    monkeypatch.setattr("pipeline.iam.ASK_SECONDS", 0.3)

    def script(server, connection):
        server.read(connection)
        server.trickle(connection, b"HTTP/1.1 201 Created\r\nContent-Length: 100000\r\n\r\n", b" ")

    with serving(script) as server, pytest.raises(IamUnavailable):
        asking(server, tmp_path).headers(REQUEST)


@pytest.mark.parametrize(
    "answer",
    [
        reply(200, b"<html>Welcome</html>"),
        reply(201, {"token": {}}),
        reply(201, {"token": {"issued_at": "2001-01-01T00:00:00Z", "expires_at": "2001-01-02T00:00:00Z"}}),
        reply(201, {"token": {"issued_at": "then", "expires_at": "later"}}, "X-Subject-Token: MII"),
        reply(302, b"", "Location: http://127.0.0.1:1/elsewhere"),
    ],
)
def test_what_is_no_iam_is_a_refusal(tmp_path, answer):
    """An `auth_url` that leads elsewhere is the job file's to mend; the password is not sent on."""
    with serving(answering(answer)) as server, pytest.raises(Refused, match=r"check service\.auth\.auth_url"):
        asking(server, tmp_path).headers(REQUEST)


def test_an_iam_with_a_foreign_authority_is_a_refusal(tmp_path):
    """The password is not sent to whom nobody vouches for; with the authority it is."""
    mine = authority(tmp_path)
    with serving(granting("MII-1"), mine.server) as server:
        with pytest.raises(Refused, match="REQUESTS_CA_BUNDLE"):
            asking(server, tmp_path).headers(REQUEST)
        assert server.requests == []
    with serving(granting("MII-1"), mine.server) as server:
        assert asking(server, tmp_path, verify=mine.ca).headers(REQUEST) == {HEADER: "MII-1"}


def test_the_services_authority_is_believed_beside_those_of_everybody(tmp_path, monkeypatch):
    """A public IAM may be asked for a service with an authority of its own."""
    public, own = Authority(tmp_path / "public", "public"), Authority(tmp_path / "own", "own")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", public.ca)
    for number, vouching in enumerate((public, own)):
        with serving(granting("MII-1"), vouching.context("127.0.0.1")) as server:
            assert asking(server, tmp_path / str(number), verify=own.ca).headers(REQUEST) == {HEADER: "MII-1"}


def test_an_iam_on_another_host_than_the_service_is_always_verified(tmp_path):
    """Who believes any service does not send the password to whoever answers for IAM."""
    mine = authority(tmp_path)
    with serving(granting("MII-1"), mine.server) as server:
        with pytest.raises(Refused, match=r"REQUESTS_CA_BUNDLE or service\.tls\.ca"):
            asking(server, tmp_path, verify=False, hosts={"service.example.com"}).headers(REQUEST)
        assert server.requests == []
    with serving(granting("MII-1"), mine.server) as server:
        auth = asking(server, tmp_path, verify=False, hosts={"127.0.0.1"})
        assert auth.headers(REQUEST) == {HEADER: "MII-1"}


def test_the_cache_is_the_owners_alone(tmp_path):
    """The file has mode 0600 and the folder 0700, even if the folder was there with more."""
    folder = tmp_path / "tokens"
    folder.mkdir(mode=0o755)
    with serving(granting("MII-1")) as server:
        asking(server, tmp_path).headers(REQUEST)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = list(folder.iterdir())
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert sum(file.suffix == ".json" for file in files) == 1


def test_the_cache_is_where_the_environment_says(tmp_path):
    """XDG_CACHE_HOME, or else .cache at home."""
    with serving(granting("MII-1")) as server:
        for environ, folder in (
            ({"XDG_CACHE_HOME": str(tmp_path / "xdg")}, tmp_path / "xdg"),
            ({"HOME": str(tmp_path), "XDG_CACHE_HOME": "relative"}, tmp_path / ".cache"),
        ):
            changed = settings(base_of(server), domain=folder.name)
            open_auth(changed, environ={"PASSWORD": "demo"} | environ).headers(REQUEST)
            assert list((folder / "bulkscore" / "tokens").glob("*.json"))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]", b'{"text": 5, "obtained_at": "x", "life": null}'])
def test_a_corrupt_cache_file_is_replaced(tmp_path, monkeypatch, content):
    """It counts as absent."""
    with serving(granting("MII-1", "MII-2")) as server:
        asking(server, tmp_path).headers(REQUEST)
        file = next((tmp_path / "tokens").glob("*.json"))
        file.write_bytes(content)
        monkeypatch.setattr(tokens, "_shared", {})
        assert asking(server, tmp_path).headers(REQUEST) == {HEADER: "MII-2"}
        assert b"MII-2" in file.read_bytes()


def test_an_unusable_cache_folder_does_not_fail_the_job(tmp_path):
    """The token is kept in memory, for all that open the same account."""
    (tmp_path / "tokens").write_text("a file is in the way")
    with serving(granting("MII-1", "MII-2")) as server:
        assert (
            asking(server, tmp_path).headers(REQUEST) == asking(server, tmp_path).headers(REQUEST) == {HEADER: "MII-1"}
        )


def test_a_changed_password_does_not_find_the_old_token(tmp_path, monkeypatch):
    """Everything that asks for a token is in the key of its file."""
    with serving(granting("MII-1", "MII-2")) as server:
        asking(server, tmp_path).headers(REQUEST)
        monkeypatch.setenv("PASSWORD", "other")
        assert asking(server, tmp_path).headers(REQUEST) == {HEADER: "MII-2"}
    assert len(list((tmp_path / "tokens").glob("*.json"))) == 2


@pytest.mark.parametrize("missing", ["auth_url", "user", "domain", "password"])
def test_a_missing_key_is_an_error_of_the_job(missing):
    """It is named."""
    with pytest.raises(JobError, match=rf"service\.auth\.{missing}"):
        open_auth(settings("http://127.0.0.1:1", **{missing: None}))


def test_neither_project_nor_project_id_is_an_error_of_the_job():
    """The services do not take tokens of another scope."""
    with pytest.raises(JobError, match="neither project nor project_id"):
        open_auth(settings("http://127.0.0.1:1", project=None))


@pytest.mark.parametrize("status", [201, 401, 503])
def test_no_secret_is_in_a_log_record_an_error_or_a_repr(tmp_path, monkeypatch, caplog, status):
    """Not at DEBUG level, and not even if IAM repeats the password in its answer."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("PASSWORD", PASSWORD)
    shown = []
    echo = {"error": {"message": f"{PASSWORD} is wrong", "code": status}}
    script = granting("MII-secret-token") if status == 201 else answering(reply(status, echo))
    with serving(script) as server:
        auth = asking(server, tmp_path)
        try:
            shown.append(list(auth.headers(REQUEST)))
        except (Refused, IamUnavailable) as error:
            shown += [str(error), repr(error), error.args, error.__cause__, error.__context__]
        shown += [repr(auth), str(auth), repr(vars(auth)), [str(path) for path in Path(tmp_path).rglob("*")]]
    assert caplog.records
    shown += [repr(vars(record)) + record.getMessage() for record in caplog.records]
    for secret in (PASSWORD, "MII-secret-token"):
        assert secret not in repr(shown)
        assert secret.encode() not in b"".join(path.name.encode() for path in Path(tmp_path).rglob("*"))


def test_an_auth_is_not_pickled(tmp_path):
    """Secrets stay on the worker that resolved them."""
    with serving(granting("MII-1")) as server:
        for auth in (asking(server, tmp_path), open_auth(NoAuth())):
            with pytest.raises(TypeError, match="secrets"):
                pickle.dumps(auth)


def test_an_outage_pickles_with_what_it_says():
    """It may cross to another process."""
    outage = pickle.loads(pickle.dumps(IamUnavailable("IAM is out", 7.0)))
    assert (str(outage), outage.retry_after) == ("IAM is out", 7.0)
