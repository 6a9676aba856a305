"""Jobs whose service is a real model server that speaks OpenAI's protocols: LitServe."""

from __future__ import annotations

import json

import litserving
import pyarrow as pa
import pytest

from jobs import job_file, letters, proved, put, results, score

pytestmark = pytest.mark.timeout(900)  # the first one may install LitServe
TEXTS = [f"text {'x' * number}" for number in range(24)]
CHAT = {"model": "m", "messages": [{"role": "user", "content": {"$column": "text"}}]}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One LitServe for all tests here."""
    with litserving.running(tmp_path_factory.mktemp("litserve")) as url:
        yield url


def job(folder, url, protocol, options, texts=TEXTS, **keys):
    """Write a job over texts."""
    put(folder / "in" / "texts.parquet", pa.table({"id": list(range(len(texts))), "text": texts}))
    service = {"url": url, "protocol": protocol, "options": options, "limits": {"timeout": "60s"}}
    retry = {"attempts": 2, "outage": "60s"}
    return job_file(folder, url, input={"path": "in/*.parquet", "keep": ["id"]}, service=service, retry=retry, **keys)


def answered(folder):
    """Return each row's answer by its number."""
    table = results(folder / "out")
    return dict(zip(table["id"].to_pylist(), table["prediction"].to_pylist(), strict=True))


@pytest.mark.parametrize("stream", [False, True])
def test_each_row_has_its_own_completion(tmp_path, server, stream):
    """Whole, or as a stream of chunks, with the end and the usage that the server tells."""
    path = job(tmp_path, server, "openai-chat", {**CHAT, "stream": stream})
    assert score(path).exit_code == 0
    assert not proved(tmp_path / "out")
    found = {number: json.loads(answer) for number, answer in answered(tmp_path).items()}
    assert {number: one["content"] for number, one in found.items()} == {
        number: f"I have read {len(text)}" for number, text in enumerate(TEXTS)
    }
    assert {one["finish_reason"] for one in found.values()} == {"stop"}
    assert all("total_tokens" in one["usage"] for one in found.values())


@pytest.mark.parametrize("form", ["base64", "float"])
def test_each_row_has_its_own_vector(tmp_path, server, form):
    """Many rows a request, in either encoding."""
    options = {"model": "m", "input": {"$column": "text"}, "parameters": {"encoding_format": form}}
    path = job(tmp_path, server, "openai-embeddings", options, output__prediction={"embedding": "list<float>"})
    summary = score(path)
    assert (summary.exit_code, summary.scored) == (0, len(TEXTS))
    assert summary.requests < len(TEXTS)
    assert not proved(tmp_path / "out")
    vectors = {number: {"embedding": [len(text), 0.5, -0.25]} for number, text in enumerate(TEXTS)}
    assert answered(tmp_path) == vectors


@pytest.mark.parametrize("protocol", ["openai-chat", "openai-chat, streamed", "openai-embeddings"])
def test_what_the_model_crashes_on_is_the_only_dead_letter(tmp_path, server, protocol):
    """It answers 500, or says so in the middle of a stream: that is bounded, and the row is found."""
    texts = [*TEXTS[:5], litserving.CRASH, *TEXTS[5:]]
    name, _, streamed = protocol.partition(", ")
    options = (
        {**CHAT, "stream": bool(streamed)} if name == "openai-chat" else {"model": "m", "input": {"$column": "text"}}
    )
    assert score(job(tmp_path, server, name, options, texts, errors__allow=1)).exit_code == 0
    assert [letter["source_row"] for letter in letters(tmp_path / "out")] == [5]
    assert len(answered(tmp_path)) == len(TEXTS)
    assert not proved(tmp_path / "out")
