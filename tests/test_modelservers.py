"""Jobs whose services are real model servers: KServe's (V1 and V2) and MLServer (V2)."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack

import kserving
import mlserving
import pyarrow as pa
import pytest
from kserving import BROKEN, NEGATIVE, POISON

from jobs import ROOT, SEND, call, flowers, job_file, letters, process, proved, put, results, until

pytestmark = pytest.mark.timeout(900)  # the first one may install a server
SERVING = {"kserve": kserving, "mlserver": mlserving}
LISTS = {"protocol": "kserve", "options": {"model": "iris", "rows": "lists"}}
TENSOR = {"protocol": "open-inference", "options": {"model": "iris", "tensor": "input-0"}}
BYTES = {**TENSOR, "options": {**TENSOR["options"], "binary": True}}
WAYS = {
    "kserve, V1": ("kserve", LISTS),
    "kserve, V2": ("kserve", TENSOR),
    "kserve, V2 as bytes": ("kserve", BYTES),
    "mlserver, V2": ("mlserver", TENSOR),
}


@pytest.fixture(params=list(WAYS))
def way(request, model_server):
    """A server, and what a job says of its protocol."""
    name, about = WAYS[request.param]
    return model_server(name), about


def job(folder, url, about, table=None, **keys):
    """Write a job over flowers, in requests of ten."""
    put(folder / "in" / "a.parquet", flowers(60) if table is None else table)
    service = {"url": url, "limits": {"rows": 10}, **about}
    return job_file(folder, url, **{"service": service, "retry": {"attempts": 3, "outage": "60s"}, **keys})


def changed(table, values):
    """Return flowers with other first measures, by row."""
    first = [values.get(row, value) for row, value in enumerate(table[SEND[0]].to_pylist())]
    return table.set_column(table.schema.get_field_index(SEND[0]), SEND[0], pa.array(first))


@pytest.mark.parametrize(("name", "server"), [("kserve-iris", "kserve"), ("open-inference-iris", "mlserver")])
def test_a_shipped_job_scores_the_flowers(tmp_path, model_server, name, server):
    """As it stands, but for the address; the output is proved, and the species are right."""
    shutil.copytree(ROOT / "jobs" / "data", tmp_path / "jobs" / "data")
    path = tmp_path / "jobs" / f"{name}.yaml"
    shutil.copy(ROOT / "jobs" / path.name, path)
    given = ("--param", f"service={model_server(server).url}")
    done = call("run", path, "-q", *given)
    assert done.code == 0, done.err
    assert "150 results + 0 dead letters: verified" in call("verify", path, *given).out
    told = results(tmp_path / "results" / name).to_pylist()
    answers = [row["prediction"] if server == "mlserver" else json.loads(row["prediction"]) for row in told]
    named = [answer["predict"] if server == "mlserver" else answer for answer in answers]
    assert sum(answer == row["species"] for answer, row in zip(named, told, strict=True)) >= 145


def test_rows_that_the_model_crashes_on_are_the_only_dead_letters(tmp_path, way):
    """A 500 for its data is found by halving, in the server's own words; every other row has its answer."""
    server, about = way
    path = job(tmp_path, server.url, about, changed(flowers(60), {7: POISON, 8: POISON, 41: BROKEN}), errors__allow=3)
    done = call("run", path, "-q")
    assert done.code == 0, done.err
    found = {letter["source_row"]: letter for letter in letters(tmp_path / "out")}
    assert {row: (one["kind"], one["status"]) for row, one in found.items()} == {
        7: ("rejected", 500),
        8: ("rejected", 500),
        41: ("exhausted", 500),  # it may have been the model's own trouble, so it was asked again
    }
    assert NEGATIVE in found[7]["message"]
    assert found[7]["message"].startswith("ValueError")
    assert "the model has failed" in found[41]["message"]
    assert all(attempt["status"] == 500 for letter in found.values() for attempt in letter["history"])
    assert len(results(tmp_path / "out")) == 57
    assert not proved(tmp_path / "out")


def test_a_server_that_does_not_say_why_it_fails_is_asked_again_and_then_the_row_is_found(tmp_path):
    """MLServer without `debug`: each of its failures is the same text. Where all rows fail so the job is stopped."""
    (tmp_path / "wrong").mkdir()
    with mlserving.running(tmp_path / "server", debug=False) as server:
        table, retry = changed(flowers(30), {7: POISON}), {"attempts": 2, "outage": "60s"}
        done = call("run", job(tmp_path, server.url, TENSOR, table, retry=retry, errors={"allow": 1}), "-q")
        given = {"path": "in/*.parquet", "send": SEND[:3]}
        wrong = call("run", job(tmp_path / "wrong", server.url, TENSOR, retry=retry, input=given), "-q")
    assert done.code == 0, done.err
    [letter] = letters(tmp_path / "out")
    assert (letter["source_row"], letter["kind"], letter["message"]) == (7, "exhausted", "Internal Server Error")
    assert len(letter["history"]) == 2
    assert len(results(tmp_path / "out")) == 29
    assert not proved(tmp_path / "out")
    assert wrong.code == 4
    assert "the service refuses each of the first 3 rows: 500 Internal Server Error" in wrong.err


def test_requests_are_within_the_limit(tmp_path, way):
    """What is sent is never larger than `limits.body`, and has several rows; every row has its own answer."""
    server, about = way
    answers = []
    for body in ("1MB", "1000"):
        folder, before = tmp_path / body, len(server.calls)
        done = call("run", job(folder, server.url, about), "-q", "--set", f"service.limits={{body: {body}}}")
        assert done.code == 0, done.err
        answers.append(results(folder / "out")["prediction"].to_pylist())
    sizes = server.calls[before:]
    assert answers[0] == answers[1]
    assert max(sizes) <= 1000
    assert len(sizes) < 40


REFUSALS = [
    ("kserve", {**LISTS, "options": {"model": "nope", "rows": "lists"}}, SEND, "Model with name nope does not exist"),
    ("kserve", {**TENSOR, "options": {"model": "nope"}}, SEND, "Model with name nope does not exist"),
    ("kserve", {**TENSOR, "options": {"model": "iris", "version": "1"}}, SEND, "Model versioning not supported"),
    ("kserve", LISTS, SEND[:3], "the first 3 rows: 500 ValueError"),
    ("kserve", TENSOR, SEND[:3], "the first 3 rows: 500 ValueError"),
    ("kserve", {**LISTS, "options": {"model": "iris"}}, SEND, "must pass an index"),
    (
        "kserve",
        {**TENSOR, "options": {**TENSOR["options"], "outputs": ["no"]}},
        SEND,
        "Unexpected inference output 'no'",
    ),
    ("kserve", BYTES, SEND[:3], "the first 3 rows: 500 ValueError"),
    ("mlserver", BYTES, SEND, "UnicodeDecodeError"),  # it has no such extension over HTTP
    ("mlserver", {**TENSOR, "options": {"model": "nope"}}, SEND, "Model nope not found"),
    ("mlserver", {**TENSOR, "options": {"model": "iris", "version": "9"}}, SEND, "Model iris with version 9 not found"),
    ("mlserver", TENSOR, SEND[:3], "ValueError: X has 3 features"),
    ("mlserver", {**TENSOR, "options": {"model": "iris"}}, SEND, "only supports a single input tensor"),
    ("mlserver", {**TENSOR, "options": {**TENSOR["options"], "outputs": ["no"]}}, SEND, "no was received"),
]


@pytest.mark.parametrize(("name", "about", "send", "said"), REFUSALS, ids=[one[3] for one in REFUSALS])
def test_what_concerns_every_row_stops_the_job(tmp_path, model_server, name, about, send, said):
    """No model, no version, not its inputs, not its outputs: exit code 4, the server's words, and no dead letters."""
    path = job(tmp_path, model_server(name).url, about, input={"path": "in/*.parquet", "send": send})
    done = call("run", path, "-q")
    assert done.code == 4
    assert said in done.err
    assert not letters(tmp_path / "out")


def test_columns_of_a_table_are_tensors_where_the_server_is_told_so(tmp_path, model_server):
    """MLServer makes a table of them by a parameter of the request; the answers are those of one tensor."""
    answers = []
    for about in (TENSOR, {**TENSOR, "options": {"model": "iris", "parameters": {"content_type": "pd"}}}):
        folder = tmp_path / str(len(answers))
        assert call("run", job(folder, model_server("mlserver").url, about), "-q").code == 0
        answers.append(results(folder / "out")["prediction"].to_pylist())
    assert answers[0] == answers[1]
    assert len(set(answers[0])) > 1


@pytest.mark.parametrize("way", ["kserve, V1", "mlserver, V2"], indirect=True)
def test_a_model_that_is_not_ready_is_waited_for(tmp_path, way):
    """KServe says so with a 503, MLServer with a 400 while it loads: no row dies of it."""
    server, about = way
    path = job(tmp_path, server.url, {**about, "options": {**about["options"], "model": "waking"}})
    asked = (tmp_path / "out" / "job.json").exists
    with process("run", path) as started:
        until(lambda: asked() and server.refused("waking") >= 2, seconds=200)
        server.wake()
        _, said = started.communicate(timeout=300)
    assert started.returncode == 0, said
    assert not letters(tmp_path / "out")
    assert len(results(tmp_path / "out")) == 60


@pytest.mark.parametrize("way", ["kserve, V1", "mlserver, V2"])
def test_a_server_that_is_killed_and_started_again_in_the_middle_loses_nothing(tmp_path, way):
    """The job waits for it, and all rows have their answers."""
    name, about = WAYS[way]
    put(tmp_path / "in" / "a.parquet", flowers(600))
    with ExitStack() as stack:
        with SERVING[name].running(tmp_path / name) as server:
            service = {"url": server.url, "limits": {"rows": 10, "in_flight": 2, "rate": "20/s"}, **about}
            started = stack.enter_context(process("run", job_file(tmp_path, "", service=service)))
            until(lambda: len(server.calls) > 10, seconds=200)
            server.kill()
        with SERVING[name].running(tmp_path / name, port=server.port):
            out, err = started.communicate(timeout=300)
            assert started.returncode == 0, err
    assert " 0 retries" not in out + err
    assert len(results(tmp_path / "out")) == 600
    assert "verified" in call("verify", tmp_path / "out").out
