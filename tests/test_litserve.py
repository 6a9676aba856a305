"""Jobs whose service is a real model server that speaks OpenAI's protocols: LitServe."""

from __future__ import annotations

import json
from contextlib import ExitStack

import litserving
import pyarrow as pa
import pytest
from realserving import free_port

from jobs import ROOT, call, job_file, letters, process, proved, put, results, score, until

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
    retry = {"attempts": 2, "outage": "300s"}
    return job_file(folder, url, input={"path": "in/*.parquet", "keep": ["id"]}, service=service, retry=retry, **keys)


def answered(folder):
    """Return each row's answer by its number."""
    table = results(folder / "out")
    return dict(zip(table["id"].to_pylist(), table["prediction"].to_pylist(), strict=True))


@pytest.mark.parametrize("name", ["openai-chat", "openai-embeddings"])
def test_the_jobs_that_come_with_it_run(tmp_path, server, name):
    """As they are, with every text's own answer, of any language."""
    out = tmp_path / "out"
    sets = ("--param", f"service={server}", "--set", f"output.path={out}")
    done = call("run", ROOT / "jobs" / f"{name}.yaml", *sets)
    assert done.code == 0, done.err
    assert "verified" in call("verify", out).out
    lines = (ROOT / "jobs" / "data" / "texts.jsonl").read_text("utf-8").splitlines()
    texts = {row["id"]: row["text"] for row in map(json.loads, lines)}
    expected = {
        "openai-chat": lambda text: {"content": f"I have read {len(text)}", "finish_reason": "stop"},
        "openai-embeddings": lambda text: {"embedding": [len(text), 0.5, -0.25]},
    }
    found = dict(zip(*(results(out)[column].to_pylist() for column in ("id", "prediction")), strict=True))
    assert found == {number: expected[name](text) for number, text in texts.items()}


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
def test_what_the_model_crashes_on_are_the_only_dead_letters(tmp_path, server, protocol):
    """It answers 500, or says so in the middle of a stream: that is bounded, and the rows are found."""
    texts = [*TEXTS[:5], litserving.CRASH, *TEXTS[5:15], litserving.CRASH, litserving.CRASH, *TEXTS[15:]]
    name, _, streamed = protocol.partition(", ")
    options = (
        {**CHAT, "stream": bool(streamed)} if name == "openai-chat" else {"model": "m", "input": {"$column": "text"}}
    )
    assert score(job(tmp_path, server, name, options, texts, errors__allow=3)).exit_code == 0
    assert [letter["source_row"] for letter in letters(tmp_path / "out")] == [5, 16, 17]
    assert all(len(letter["history"]) == 2 for letter in letters(tmp_path / "out"))
    assert len(answered(tmp_path)) == len(TEXTS)
    assert not proved(tmp_path / "out")


def test_what_is_no_text_is_refused_in_the_servers_words(tmp_path, server):
    """At once, with the place that it has in the request; a null is not even sent."""
    put(tmp_path / "in" / "texts.parquet", pa.table({"id": [0, 1], "text": pa.array([5, None])}))
    service = {"url": server, "protocol": "openai-chat", "options": CHAT}
    file = job_file(tmp_path, server, input={"path": "in/*.parquet"}, service=service, errors__allow=2)
    assert score(file).exit_code == 0
    server_said, never_sent = sorted(letters(tmp_path / "out"), key=lambda letter: letter["source_row"])
    assert (server_said["kind"], server_said["status"], len(server_said["history"])) == ("rejected", 422, 1)
    assert "body.messages.0.content.str: Input should be a valid string" in server_said["message"]
    assert (never_sent["kind"], never_sent["history"]) == ("unreadable", [])


@pytest.mark.parametrize("protocol", ["openai-chat", "openai-embeddings"])
def test_a_server_that_is_killed_and_started_again_in_the_middle_loses_nothing(tmp_path, protocol):
    """The job waits for it, and all rows have their answers, a stream that was cut among them."""
    port, texts = free_port(), ["x" * number for number in range(1, 1501)]
    (tmp_path / "server").mkdir()
    options = {**CHAT, "stream": True} if protocol == "openai-chat" else {"model": "m", "input": {"$column": "text"}}
    with ExitStack() as stack:
        with litserving.running(tmp_path / "server", port=port, kill=True) as url:
            file = job(tmp_path, url, protocol, options, texts)
            keys = json.loads(file.read_text())
            keys["retry"] = {
                "outage": "300s"
            }  # with two attempts, who is answered last makes the others' trouble their own
            rate, rows = {"openai-chat": ("150/s", 1), "openai-embeddings": ("40/s", 4)}[protocol]
            keys["service"]["limits"] |= {"rows": rows, "in_flight": 4, "rate": rate}
            file.write_text(json.dumps(keys))
            started = stack.enter_context(process("run", file))
            log = tmp_path / "server" / "server.log"
            until(lambda: log.read_text().count(" 200 ") > 60)
        with litserving.running(tmp_path / "server", port=port):
            out, err = started.communicate(timeout=100)
            assert started.returncode == 0, (err, letters(tmp_path / "out")[:1])
    assert " 0 retries" not in out + err
    found = answered(tmp_path)
    said = {
        "openai-chat": lambda one: one["content"].removeprefix("I have read "),
        "openai-embeddings": lambda one: one["embedding"][0],
    }
    assert {row: int(said[protocol](json.loads(one))) for row, one in found.items()} == {
        row: row + 1 for row in range(1500)
    }
    assert not proved(tmp_path / "out")
