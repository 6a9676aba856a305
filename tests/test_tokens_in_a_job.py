"""Tokens that die in the middle of a job: nothing is lost, IAM is asked once a lifetime, and nobody sees a secret."""

from __future__ import annotations

import base64
import bz2
import logging
import pickle
from contextlib import ExitStack
from datetime import timedelta

import apache_beam as beam
import pytest
import requests
from apache_beam.portability.api import beam_runner_api_pb2

from jobs import flowers, job_file, letters, loaded, process, proved, put, results, score, stats
from pipeline.beam import ScoreRows, ScoreSplits
from schemas.plan import Order

PASSWORD = "pass-word-9831"
SECRET = {"DEMO_PASSWORD": PASSWORD}
LIFETIME = 2.0
RENEWED = 0.8 * LIFETIME  # a fifth of its life before it dies


@pytest.fixture(autouse=True)
def _password(monkeypatch):
    """Let the sandbox's user have a password that is no word of any name, so that it can be searched for."""
    monkeypatch.setattr(
        "pipeline.sandbox.iam._is_demo_user", lambda identity: identity.password.user.password == PASSWORD
    )
    monkeypatch.setattr("jobs.PASSWORD", SECRET)


def tokens(url):
    """Return every token that the service was shown."""
    recorded = requests.get(f"{url}/stats?requests=1", timeout=30).json()["last_requests"]
    return {one["headers"]["x-auth-token"] for one in recorded}


def span(out):
    """Return the seconds from the first answer to the last."""
    column = results(out)["scored_at"].to_pylist()
    return (max(column) - min(column)) / timedelta(seconds=1)


def written(folder):
    """Return all that is in the files below a folder, and the texts inside its compressed tables."""
    yield from (path.read_bytes() for path in folder.rglob("*") if path.is_file())
    yield repr(results(folder).to_pylist()).encode()


def leaks(texts, secrets):
    """Return the secrets, or beginnings of them, that are in any of the texts."""
    return [secret for secret in secrets if any(secret[:40].encode() in text for text in texts)]


@pytest.fixture
def log():
    """Everything that any library logs, as one text."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(f"{record.name} {record.getMessage()} {record.exc_info}")
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield lines
    root.removeHandler(handler)
    root.setLevel(level)


def test_a_job_of_ten_token_lifetimes_loses_no_row(sandbox, tmp_path, log, capfd):
    """Twenty seconds with tokens of two: renewed ahead of expiry, also while requests wait for the rate; no secret."""
    url = sandbox(token_seconds=LIFETIME, record=1000)
    put(tmp_path / "in" / "iris.parquet", flowers(2_000))
    summary = score(job_file(tmp_path, url, service__limits={"rows": 10, "rate": "10/s"}))
    out, seen = tmp_path / "out", stats(url)
    assert (summary.exit_code, summary.scored, summary.dead, summary.left) == (0, 2_000, 0, 0)
    assert letters(out) == []
    assert proved(out) == ()
    assert span(out) > 19
    assert seen["rows_received"] == 2_000
    assert seen["by_status"] == {"200": 200}, "a token was sent that had died"
    assert span(out) / LIFETIME <= seen["tokens_issued"] <= span(out) / RENEWED + 2
    shown = tokens(url)
    assert len(shown) == seen["tokens_issued"]
    assert any("/v3/auth/tokens" in line for line in log), "the log is not verbose enough to prove anything"
    told = capfd.readouterr()
    texts = [*written(out), "\n".join(log).encode(), told.out.encode(), told.err.encode()]
    assert leaks(texts, {PASSWORD, *shown}) == []


def test_two_processes_with_many_threads_ask_iam_once_a_lifetime(sandbox, tmp_path):
    """Two jobs at once with the same credentials share their tokens, and print no secret."""
    url = sandbox(token_seconds=LIFETIME, record=1000)
    put(tmp_path / "in" / "iris.parquet", flowers(600))
    with ExitStack() as stack:
        started = []
        for name in ("one", "two"):
            keys = {"file": f"{name}.yaml", "output__path": name, "service__limits": {"rows": 10, "rate": "10/s"}}
            job = job_file(tmp_path, url, **keys)
            started.append(stack.enter_context(process("run", "--no-probe", job, env=SECRET)))
        told = [one.communicate(timeout=90) for one in started]
    assert [one.returncode for one in started] == [0, 0], told
    seen = stats(url)
    assert seen["rows_received"] == 1_200
    assert seen["by_status"] == {"200": 120}
    whole = results(tmp_path / "one")["scored_at"].to_pylist() + results(tmp_path / "two")["scored_at"].to_pylist()
    seconds = (max(whole) - min(whole)) / timedelta(seconds=1)
    assert seen["tokens_issued"] <= seconds / RENEWED + 2
    shown = tokens(url)
    assert len(shown) == seen["tokens_issued"]
    texts = [text.encode() for pair in told for text in pair]
    assert leaks([*texts, *written(tmp_path / "one"), *written(tmp_path / "two")], {PASSWORD, *shown}) == []


def graph(job):
    """Return the pipeline as runners get it: the graph, and the functions in it, unpacked."""
    pipeline = beam.Pipeline(options=beam.options.pipeline_options.PipelineOptions(flags=[]))
    _ = pipeline | beam.Create(["x"], reshuffle=False) | ScoreRows(job, "run")
    proto = pipeline.to_runner_api()
    yield proto.SerializeToString()
    for transform in proto.components.transforms.values():
        if transform.spec.urn == "beam:transform:pardo:v1":
            function = beam_runner_api_pb2.ParDoPayload.FromString(transform.spec.payload).do_fn
            yield bz2.decompress(base64.b64decode(function.payload))


def test_what_is_pickled_names_the_secret_and_does_not_hold_it(tmp_path, monkeypatch):
    """A graph goes to runners and into their logs: the reference is in it, what it stands for is not."""
    monkeypatch.setenv("DEMO_PASSWORD", PASSWORD)
    monkeypatch.setenv("API_KEY", "key-4711-0815")
    headers = {"X-Key": "${env:API_KEY}"}
    job = loaded(job_file(tmp_path, "http://127.0.0.1:9", service__headers=headers))
    pickles = [pickle.dumps(job), pickle.dumps(ScoreSplits(job, Order("run"))), *graph(job)]
    assert leaks(pickles, {PASSWORD, "key-4711-0815"}) == []
    assert sum(b"${env:DEMO_PASSWORD}" in one for one in pickles) >= 3
    assert PASSWORD not in repr(job) + str(job)
    again = pickle.loads(pickles[0])
    assert again == job
    assert again.service.auth.password.resolve() == PASSWORD


def test_a_worker_in_use_cannot_be_pickled(sandbox, tmp_path, monkeypatch):
    """Once the secrets are resolved, what holds them stays in its process."""
    monkeypatch.setenv("DEMO_PASSWORD", PASSWORD)
    put(tmp_path / "in" / "iris.parquet", flowers(10))
    dofn = ScoreSplits(loaded(job_file(tmp_path, sandbox())), Order("run-in-use"))
    dofn.setup()
    try:
        with pytest.raises(TypeError, match="cannot"):
            pickle.dumps(dofn)
    finally:
        dofn.teardown()
