"""Jobs over what answers as OpenAI's API does when it has too much to do, or will not do it."""

from __future__ import annotations

import json

import modelservers
import pyarrow as pa
import pytest
from service import recording

from jobs import job_file, letters, proved, put, results, score

TEXTS = [f"text {'x' * number}" for number in range(30)]
OPTIONS = {
    "openai-chat": {"model": "m", "messages": [{"role": "user", "content": {"$column": "text"}}]},
    "openai-embeddings": {"model": "m", "input": {"$column": "text"}},
}
PROTOCOLS = list(OPTIONS)


def refusing(status, error, *, when, **headers):
    """Answer as the API does, but for the calls that `when` says: those with an error, as OpenAI has it."""
    seen = []

    def serve(call):
        seen.append(call)
        if when(len(seen), call):
            return status, {"Content-Type": "application/json", **headers}, json.dumps({"error": error}).encode()
        return modelservers.serve(call)

    return serve


def ran(folder, protocol, serve, texts=TEXTS, **keys):
    """Run a job over texts, three in a request where that can be; returns its summary."""
    put(folder / "in" / "texts.parquet", pa.table({"id": range(len(texts)), "text": texts}))
    with recording(serve) as service:
        url = service.url.removesuffix("/v1/infers/iris")
        about = {"url": url, "protocol": protocol, "options": OPTIONS[protocol]}
        about["limits"] = {"in_flight": 2, "rows": 1 if protocol == "openai-chat" else 3}
        retry = {"attempts": 3, "outage": "60s"}
        given = {"path": "in/*.parquet", "keep": ["id"]}
        return score(job_file(folder, url, input=given, service=about, retry=retry, **keys))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_rate_limit_costs_no_row(tmp_path, protocol):
    """Who answers 429 is asked again when it says, as often as it says."""
    error = {"message": "Rate limit reached", "type": "requests", "param": None, "code": "rate_limit_exceeded"}
    serve = refusing(429, error, when=lambda number, _: number in {4, 5, 6, 7}, **{"Retry-After": "1"})
    summary = ran(tmp_path, protocol, serve)
    assert (summary.exit_code, summary.scored, summary.dead) == (0, len(TEXTS), 0)
    assert not proved(tmp_path / "out")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_who_has_no_quota_left_is_told_at_once(tmp_path, protocol):
    """Though it is a 429 too: no waiting brings it back, and no row dies of it."""
    error = {"message": "You exceeded your current quota", "type": "insufficient_quota", "code": "insufficient_quota"}
    summary = ran(tmp_path, protocol, refusing(429, error, when=lambda number, _: number > 3))
    assert summary.exit_code == 4
    assert "429 insufficient_quota You exceeded your current quota" in summary.message
    assert letters(tmp_path / "out") == []


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("status", "kind"), [(400, "rejected"), (422, "rejected"), (500, "exhausted")])
def test_a_text_that_is_not_taken_is_the_only_dead_letter(tmp_path, protocol, status, kind):
    """However that is dressed: requests are halved until it is alone, and it is bounded."""
    error = {"message": "it is too long", "type": "server_error", "param": None, "code": "context_length_exceeded"}
    serve = refusing(status, error, when=lambda _, call: b"bad" in call.body)
    texts = [*TEXTS[:7], "bad", *TEXTS[7:]]
    summary = ran(tmp_path, protocol, serve, texts, errors__allow=1)
    assert (summary.exit_code, summary.scored) == (0, len(TEXTS))
    (letter,) = letters(tmp_path / "out")
    assert (letter["source_row"], letter["kind"], letter["status"]) == (7, kind, status)
    assert (letter["code"], letter["message"]) == ("context_length_exceeded", "it is too long")
    assert 7 not in results(tmp_path / "out")["id"].to_pylist()
    assert not proved(tmp_path / "out")
