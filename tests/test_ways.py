"""Ways in, from a job file to the service's door: who gets in, who is turned away, at what price and in which words."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import requests
import service
import yaml

from jobs import call, flowers, job_file, letters, loaded, process, proved, put, results, score, stats, token
from pipeline.auth import open_auth
from pipeline.errors import Refused
from pipeline.sandbox.credentials import ENVIRONMENT
from pipeline.sign import Request

ROOT = Path(__file__).parent.parent
AKSK = {"type": "aksk", "access_key": "${env:DEMO_ACCESS_KEY}", "secret_key": "${env:DEMO_SECRET_KEY}"}
APP_KEY = {"type": "app-key", "key": "${env:DEMO_APP_KEY}", "secret": "${env:DEMO_APP_SECRET}"}
APP_CODE = {"type": "app-code", "code": "${env:DEMO_APP_CODE}"}
API_KEY = {"type": "api-key", "key": "${env:DEMO_API_KEY}"}
REQUEST = Request("POST", "http://127.0.0.1:9/x", {}, b"")
SANDBOX = ("modelarts", "file", "json", "mindspore")
WRONG = dict.fromkeys(("DEMO_SECRET_KEY", "DEMO_APP_SECRET", "DEMO_APP_CODE", "DEMO_API_KEY"), "wrong-but-long-enough")


@pytest.fixture(autouse=True)
def _demo(monkeypatch):
    """Have the sandbox's credentials in the environment."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def home(tmp_path):
    """A copy of the shipped jobs, for their outputs lie beside them."""
    shutil.copytree(ROOT / "jobs", tmp_path / "jobs")
    return tmp_path


def of_the_sandbox(path):
    """Whether the sandbox answers a shipped job; the others need their model server, and have tests of their own."""
    return yaml.safe_load(path.read_text())["service"].get("protocol", "modelarts") in SANDBOX


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "jobs").glob("*.yaml") if of_the_sandbox(path)))
def test_every_shipped_job_runs_with_one_command(home, name):
    """`python -m pipeline.sandbox JOB` has all it needs; nothing is lost and nothing dead."""
    line = [sys.executable, "-m", "pipeline.sandbox", f"jobs/{name}"]
    environment = {key: value for key, value in os.environ.items() if key not in ENVIRONMENT}
    done = subprocess.run(line, cwd=home, env=environment, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    scored, planned = map(int, re.match(r"(\d+) of (\d+) rows scored, 0 dead letters", done.stdout).groups())
    assert scored == planned > 0
    out = Path(re.search(r"^results: file://(.*)/results$", done.stdout, re.MULTILINE)[1])
    assert proved(out) == ()


@pytest.mark.parametrize("auth", [AKSK, APP_KEY, APP_CODE, API_KEY], ids=lambda auth: auth["type"])
def test_many_requests_at_once_are_all_let_in(sandbox, tmp_path, auth):
    """Each with credentials of its own; the secrets are in no file of the output."""
    url = sandbox()
    put(tmp_path / "in" / "iris.parquet", flowers(2_000))
    summary = score(job_file(tmp_path, url, service__auth=auth))
    out = tmp_path / "out"
    assert (summary.exit_code, summary.scored, proved(out)) == (0, 2_000, ())
    assert stats(url)["by_status"] == {"200": 200}
    written = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert not [name for name, value in ENVIRONMENT.items() if len(value) > 8 and value.encode() in written]


@pytest.mark.parametrize(
    ("auth", "words", "mend"),
    [
        (AKSK, "401 APIG.0301 Incorrect IAM authentication information: verify aksk signature fail", "access_key"),
        (
            AKSK | {"access_key": "A" * 20},
            f"401 APIG.0301 Incorrect IAM authentication information: Get secretKey failed,ak:{'A' * 20},err:ak not ex",
            "service.auth.access_key, secret_key",
        ),
        (APP_KEY, "401 APIG.0303 Incorrect app authentication information: verify app signature fail", "service.auth"),
        (APP_CODE, "401 APIG.0303 Incorrect app authentication information: app not found with", "service.auth"),
        (API_KEY, "401 APIG.0305 Incorrect authentication information", "service.auth.key, header and prefix"),
        ({"type": "none"}, "401 APIG.0301 Incorrect IAM authentication information", "set service.auth"),
    ],
    ids=["aksk", "unknown access key", "app-key", "app-code", "api-key", "none"],
)
def test_wrong_credentials_are_tried_by_one_request(sandbox, tmp_path, auth, words, mend):
    """Two workers; the run ends at once, with the platform's words and what to mend. Six would lock the key."""
    url = sandbox()
    put(tmp_path / "in" / "one.parquet", flowers(400))
    put(tmp_path / "in" / "two.parquet", flowers(400))
    job = job_file(tmp_path, url, service__auth=auth, runner={"workers": 2})
    with process("run", job, env={**ENVIRONMENT, **WRONG}) as running:
        out, err = running.communicate(timeout=60)
    assert (running.returncode, out[:27]) == (4, "800 rows: 0 scored, 0 dead "), err
    last = err.splitlines()[-1]
    assert words in last
    assert mend in last
    assert "wrong-but-long" not in err
    seen = stats(url)
    assert seen["by_status"] == {"401": 1}
    assert letters(tmp_path / "out") == []


def shifted(monkeypatch, seconds):
    """Let this machine's clock be wrong for all signatures."""
    monkeypatch.setattr("pipeline.score.open_auth", partial(open_auth, clock=lambda: time.time() + seconds))


@pytest.mark.parametrize("auth", [AKSK, APP_KEY], ids=lambda auth: auth["type"])
@pytest.mark.parametrize("ahead", [-1200, 1200, 86_400 * 400])
def test_a_wrong_clock_costs_one_request(sandbox, tmp_path, monkeypatch, auth, ahead):
    """The service's `Date` sets it right, for the whole job."""
    shifted(monkeypatch, ahead)
    url = sandbox()
    put(tmp_path / "in" / "iris.parquet", flowers(300))
    summary = score(job_file(tmp_path, url, service__auth=auth), probe=True)
    assert (summary.exit_code, summary.scored, summary.dead) == (0, 300, 0)
    assert stats(url)["by_status"]["401"] == 1
    assert results(tmp_path / "out")["attempts"].to_pylist().count(2) == 1


def test_a_wrong_clock_and_a_wrong_key_cost_two(sandbox, tmp_path, monkeypatch):
    """The second refusal is not the clock's."""
    shifted(monkeypatch, 1200)
    monkeypatch.setenv("DEMO_SECRET_KEY", "wrong-but-long-enough")
    url = sandbox()
    put(tmp_path / "in" / "iris.parquet", flowers(300))
    summary = score(job_file(tmp_path, url, service__auth=AKSK), probe=True)
    assert (summary.exit_code, stats(url)["requests"]) == (4, 2)
    assert "verify aksk signature fail" in summary.message


def test_a_clock_that_jumps_in_the_middle_loses_no_row(sandbox, tmp_path, monkeypatch):
    """As after a laptop's sleep: what is refused is signed once more."""
    url, reads = sandbox(), count()
    monkeypatch.setattr(
        "pipeline.score.open_auth", partial(open_auth, clock=lambda: time.time() + 3600 * (next(reads) > 20))
    )
    put(tmp_path / "in" / "iris.parquet", flowers(600))
    summary = score(job_file(tmp_path, url, service__auth=AKSK, service__limits={"rows": 10, "in_flight": 2}))
    assert (summary.exit_code, summary.scored, summary.dead) == (0, 600, 0)
    assert 1 <= stats(url)["by_status"]["401"] <= 5


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (400, "ModelArts.0204", "Token must contain projectId info."),
        (401, "ModelArts.0207", "Token must contain project of current region."),
        (401, "ModelArts.0212", "Token must contain project."),
        (403, "ModelArts.0203", "Invalid token."),
        (403, "ModelArts.0210", "The project id in the token does not match."),
        (401, "ModelArts.4203", "No permission to access."),
    ],
)
def test_a_token_of_another_scope_project_or_user_stops_the_job(tmp_path, status, code, words):
    """At its first request, in the platform's words; another token would be no better."""
    body = json.dumps({"error_code": code, "error_msg": words}).encode()
    put(tmp_path / "in" / "iris.parquet", flowers(50))
    with service.recording(lambda _: (status, {"Server": "ModelArts"}, body)) as recorded:
        auth = {"type": "token", "token": "${env:DEMO_PASSWORD}"}
        ran = call("run", job_file(tmp_path, "", service={"url": recorded.url, "auth": auth}))
    assert (ran.code, len(recorded.calls)) == (4, 1)
    assert f"the service refuses the job: {status} {code} {words}" in ran.err


def test_a_token_of_a_domain_stops_the_job(sandbox, tmp_path, monkeypatch):
    """A real one, which IAM gives to whoever asks for no project."""
    url = sandbox()
    user = {"name": "demo", "password": "demo", "domain": {"name": "demo"}}
    identity = {"methods": ["password"], "password": {"user": user}}
    asked = {"auth": {"identity": identity, "scope": {"domain": {"name": "demo"}}}}
    given = requests.post(f"{url}/v3/auth/tokens", json=asked, timeout=10).headers["X-Subject-Token"]
    monkeypatch.setenv("TOKEN", given)
    put(tmp_path / "in" / "iris.parquet", flowers(50))
    ran = call("run", job_file(tmp_path, url, service__auth={"type": "token", "token": "${env:TOKEN}"}))
    assert (ran.code, stats(url)["requests"]) == (4, 1)
    assert "400 ModelArts.0204 Token must contain projectId info." in ran.err
    assert given[:20] not in ran.err


@pytest.mark.parametrize(
    ("auth", "missing"),
    [
        ({**AKSK, "security_token": "${env:A}"}, {"access_key": "A", "secret_key": "B", "security_token": "A"}),
        (APP_KEY, {"key": "A", "secret": "B"}),
        (APP_CODE, {"code": "A"}),
        (API_KEY, {"key": "B"}),
        ({"type": "token", "token": ""}, {"token": "A"}),
        (token(""), {"password": "B"}),
    ],
    ids=["aksk", "app-key", "app-code", "api-key", "given token", "token"],
)
def test_a_secret_that_is_missing_is_named_before_anything_is_sent(tmp_path, auth, missing):
    """By `check` and by `run`, with the key's path and the variable; 127.0.0.1:9 is never asked."""
    url = "http://127.0.0.1:9"
    auth = {**auth, **{key: f"${{env:NO_{name}}}" for key, name in missing.items()}}
    auth |= {"auth_url": f"{url}/v3"} if "auth_url" in auth else {}
    put(tmp_path / "in" / "iris.parquet", flowers(50))
    job = job_file(tmp_path, url, service__auth=auth)
    for command in ("check", "run"):
        ran = call(command, job)
        assert ran.code == 2, ran
        for key, name in missing.items():
            assert f"service.auth.{key}: ${{env:NO_{name}}} is not set in the environment" in ran.err


@pytest.mark.parametrize("auth", [AKSK, APP_KEY], ids=lambda auth: auth["type"])
def test_a_body_that_cannot_be_signed_is_refused_by_check(tmp_path, auth):
    """12 MB, the gateway's limit for signatures; other ways in may have a service's 50 MB, and two hours."""
    put(tmp_path / "in" / "iris.parquet", flowers(50))
    large = {"service__limits": {"body": "20MB", "timeout": "7200s"}}
    ran = call("check", job_file(tmp_path, "http://127.0.0.1:9", service__auth=auth, **large))
    assert ran.code == 2
    assert "service.limits.body: 20000000 bytes are more than the gateway takes with a signature" in ran.err
    assert "allowed: at most 12MB, or another auth.type" in ran.err
    fits = {"service__limits": {"body": "12MB"}}
    assert call("check", job_file(tmp_path, "http://127.0.0.1:9", service__auth=auth, **fits)).code == 0
    assert call("check", job_file(tmp_path, "http://127.0.0.1:9", service__auth=API_KEY, **large)).code == 0


@pytest.mark.parametrize(
    ("keys", "header", "value"),
    [
        ({}, "Authorization", f"Bearer {ENVIRONMENT['DEMO_API_KEY']}"),
        ({"prefix": ""}, "Authorization", ENVIRONMENT["DEMO_API_KEY"]),
        ({"header": "X-Api-Key", "prefix": "key="}, "X-Api-Key", f"key={ENVIRONMENT['DEMO_API_KEY']}"),
    ],
)
def test_the_header_of_an_api_key_is_the_jobs_choice(tmp_path, keys, header, value):
    """The documents name it, and not what stands before the key."""
    put(tmp_path / "in" / "iris.parquet", flowers(5))
    with service.recording() as recorded:
        score(job_file(tmp_path, "", service={"url": recorded.url, "auth": {**API_KEY, **keys}}))
    assert {one.headers[header] for one in recorded.calls} == {value}


def test_a_host_in_capitals_is_signed_and_sent_in_one_form(sandbox, tmp_path):
    """Who verifies has what was sent, and nothing of the job file."""
    url = sandbox().replace("127.0.0.1", "LOCALHOST")
    put(tmp_path / "in" / "iris.parquet", flowers(5))
    assert score(job_file(tmp_path, url, service__auth=AKSK)).exit_code == 0


def test_temporary_keys_send_their_token_and_sign_it(tmp_path):
    """With every request; a gateway's own headers are not signed, since it may rewrite them."""
    put(tmp_path / "in" / "iris.parquet", flowers(5))
    auth = {**AKSK, "security_token": "${env:DEMO_APP_CODE}"}
    with service.recording() as recorded:
        score(job_file(tmp_path, "", service={"url": recorded.url, "auth": auth, "headers": {"x-stage": "RELEASE"}}))
    headers = recorded.calls[0].headers
    assert headers["X-Security-Token"] == ENVIRONMENT["DEMO_APP_CODE"]
    assert headers["x-stage"] == "RELEASE"
    assert "SignedHeaders=content-type;host;x-sdk-date;x-security-token;x-stage," in headers["Authorization"]
    assert {"X-Request-Id", "traceparent"} <= set(headers)


@pytest.mark.parametrize("auth", [AKSK, APP_KEY, APP_CODE, API_KEY], ids=lambda auth: auth["type"])
def test_what_is_open_cannot_be_pickled_and_shows_nothing(auth, tmp_path):
    """Secrets stay in the process that resolved them."""
    put(tmp_path / "in" / "iris.parquet", flowers(5))
    job = loaded(job_file(tmp_path, "http://127.0.0.1:9", service__auth=auth))
    opened = open_auth(job.service.auth)
    with pytest.raises(TypeError, match="holds secrets"):
        opened.__reduce_ex__(5)
    shown = repr(opened) + str(opened) + repr(job)
    assert not [value for value in ENVIRONMENT.values() if len(value) > 8 and value in shown]
    with pytest.raises(Refused):
        opened.refresh(opened.headers(REQUEST), {})
