"""Jobs whose IAM is a real one: Keystone grants the tokens, and the gateway asks it about each of them."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager

import keystone
import pytest

from jobs import call, flowers, job_file, process, proved, put, runs, score, stats, token, until

pytestmark = pytest.mark.timeout(900)  # the first one may install Keystone
SECONDS = 12  # that a token lives; a loaded machine takes a second to judge one
PROJECT = {"project": {"name": keystone.DEMO, "domain": {"name": keystone.DOMAIN}}}


@pytest.fixture(scope="module")
def iam(tmp_path_factory):
    """One Keystone for all tests here."""
    with keystone.running(tmp_path_factory.mktemp("keystone"), seconds=SECONDS) as running:
        yield running


@pytest.fixture
def tokens(monkeypatch, tmp_path):
    """The folder of the tokens that this test is granted."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bulkscore" / "tokens"


def job(folder, url, iam, *, rows=100, file="job.yaml", limits=(), auth=(), **keys):
    """Write a job of the demo user's."""
    put(folder / "in" / "iris.parquet", flowers(rows))
    account = token("", auth_url=iam.url, domain=keystone.DOMAIN, **dict(auth))
    shown = {"service__auth": account, "service__limits": {"rows": 10, "timeout": "60s", **dict(limits)}, **keys}
    return job_file(folder, url, file=file, **shown)


@contextmanager
def counting(iam):
    """Collect the statuses of the questions for tokens meanwhile."""
    before, asked = len(iam.asked("POST")), []
    yield asked
    asked += iam.asked("POST")[before:]


@pytest.mark.parametrize("by", ["name", "id"])
def test_a_password_gives_a_token_and_a_job_runs_through(sandbox, tmp_path, iam, tokens, by):
    """The project by its name or by its id; the token is granted once, and Keystone vouches for it."""
    auth = {}
    if by == "id":
        auth = {"project_id": iam.grant(PROJECT)[1]["project"]["id"], "project": None}
    url = sandbox(iam=iam.url, timeout=60.0)
    with counting(iam) as asked:
        summary = score(job(tmp_path, url, iam, auth=auth))
    assert (summary.exit_code, summary.scored, proved(tmp_path / "out")) == (0, 100, ())
    assert asked[0] == "201"
    assert set(stats(url)["by_status"]) <= {"200", "401"}
    assert stats(url)["tokens_issued"] == 0
    assert len(list(tokens.glob("*.json"))) == 1


def test_a_wrong_password_is_tried_once(sandbox, tmp_path, iam, tokens):
    """By two workers with many threads: a few more would lock the account. The next run tries it once more."""
    url = sandbox(iam=iam.url)
    path = job(tmp_path, url, iam, runner={"workers": 2})
    put(tmp_path / "in" / "more.parquet", flowers(300))
    with counting(iam) as asked, process("run", path, env={"DEMO_PASSWORD": "wrong"}) as running:
        _, err = running.communicate(timeout=100)
    assert running.returncode == 4, err
    assert f"IAM at {iam.url} refuses the credentials: 401" in err
    assert asked == ["401"]
    assert stats(url)["requests"] == 0
    assert list(tokens.glob("*.json")) == []


def test_a_token_of_a_domain_is_refused_by_the_service(sandbox, tmp_path, iam, monkeypatch):
    """Keystone grants it, and says that it has no project."""
    admin, known = iam.grant(PROJECT)
    role = next(one["id"] for one in known["roles"] if one["name"] == "member")
    path = f"/domains/{known['user']['domain']['id']}/users/{known['user']['id']}/roles/{role}"
    assert iam.tell("PUT", path, admin) == 204
    given, known = iam.grant({"domain": {"name": keystone.DOMAIN}})
    assert "project" not in known
    monkeypatch.setenv("TOKEN", given)
    put(tmp_path / "in" / "iris.parquet", flowers(30))
    url = sandbox(iam=iam.url, timeout=60.0)
    ran = call("run", job_file(tmp_path, url, service__auth={"type": "token", "token": "${env:TOKEN}"}))
    assert ran.code == 4, ran
    assert "400 ModelArts.0204 Token must contain projectId info." in ran.err
    assert stats(url)["requests"] == 1


def test_tokens_that_expire_in_keystone_lose_no_row(sandbox, tmp_path, iam, tokens):
    """A job of more than two lifetimes: whatever was granted first is dead when it ends."""
    url = sandbox(iam=iam.url, timeout=60.0)
    first = []

    def note():
        until(lambda: list(tokens.glob("*.json")))
        first.append(text_of(tokens))

    noting = threading.Thread(target=note)
    noting.start()
    with counting(iam) as asked:
        summary = score(job(tmp_path, url, iam, rows=300, limits={"rate": "1/s", "in_flight": 4}))
    noting.join()
    assert (summary.exit_code, summary.scored, summary.dead, summary.left) == (0, 300, 0, 0)
    assert proved(tmp_path / "out") == ()
    assert runs(tmp_path / "out")[-1]["seconds"] > 2 * SECONDS
    assert len(asked) >= 3
    assert set(asked) == {"201"}
    mine, _ = iam.grant(PROJECT)
    assert iam.tell("GET", "/auth/tokens", mine, X_Subject_Token=mine) == 200
    assert iam.tell("GET", "/auth/tokens", mine, X_Subject_Token=first[0]) == 404


def test_a_token_that_is_revoked_in_the_middle_is_renewed(sandbox, tmp_path, iam, tokens):
    """Long before its time, as when the user's rights change: 401 APIG.0307, a new token, no row lost."""
    url = sandbox(iam=iam.url, timeout=60.0)

    def revoke():
        until(lambda: stats(url)["ok"] >= 2)
        dead = text_of(tokens)
        revoked.append(iam.tell("DELETE", "/auth/tokens", dead, X_Subject_Token=dead))

    revoked = []
    revoking = threading.Thread(target=revoke)
    revoking.start()
    summary = score(job(tmp_path, url, iam, rows=150, limits={"rate": "1/s", "in_flight": 4}))
    revoking.join()
    assert revoked == [204]
    assert (summary.exit_code, summary.scored, summary.dead) == (0, 150, 0)
    assert stats(url)["by_status"]["401"] >= 1
    assert proved(tmp_path / "out") == ()


def text_of(tokens):
    """Return the token that the workers share now."""
    (path,) = tokens.glob("*.json")
    return json.loads(path.read_bytes())["text"]
