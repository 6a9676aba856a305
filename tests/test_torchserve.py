"""Jobs whose service is the real TorchServe, or the multi-model-server that it comes from."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torchserving

from jobs import ROOT, SEND, call, flowers, job_file, letters, put, results

pytestmark = pytest.mark.timeout(900)  # the first one may install them


@pytest.fixture(scope="module", params=sorted(torchserving.SOFTWARE))
def server(request):
    with torchserving.running(request.param) as server:
        yield server.url


def ran(folder, url, table, options, **keys):
    """Run a job over a table to its end; returns the answers by row."""
    about = {"url": url, "protocol": "torchserve", "options": options, "limits": {"rows": 10, "timeout": "60s"}}
    put(folder / "in" / "rows.parquet", table)
    done = call("run", job_file(folder, url, service=about, retry={"attempts": 2, "outage": "60s"}, **keys), "-q")
    assert done.code == 0, done.err
    assert "verified" in call("verify", folder / "out").out
    return [json.loads(one) for one in results(folder / "out")["prediction"].to_pylist()]


def sums(table):
    return [round(sum(row.values()), 6) for row in table.select(SEND).to_pylist()]


def test_the_job_that_comes_with_it_runs(tmp_path, server):
    """As it is, with every row's own answer."""
    out = tmp_path / "out"
    file = ROOT / "jobs" / "torchserve-iris.yaml"
    done = call("run", file, "--param", f"service={server}", "--set", f"output.path={out}")
    assert done.code == 0, done.err
    assert "verified" in call("verify", out).out
    found = [json.loads(one) for one in results(out)["prediction"].to_pylist()]
    assert found == sums(pq.read_table(ROOT / "jobs" / "data" / "iris.parquet"))


@pytest.mark.parametrize("options", [{"model": "iris"}, {"model": "bare"}, {"model": "bare", "rows": "lists"}])
def test_each_row_has_its_own_answer(tmp_path, server, options):
    """Under `predictions`, or in a bare list; the reply has no media type."""
    assert ran(tmp_path, server, flowers(45), options) == sums(flowers(45))


def test_rows_that_the_handler_cannot_take_are_the_only_dead_letters(tmp_path, server):
    """It dresses them as a 503 of its own, which says no more than that: it is bounded, and the rows are found."""
    values = [-1.0 if row in {7, 8, 31} else value for row, value in enumerate(flowers(40)["sepal_length"].to_pylist())]
    table = flowers(40).set_column(1, "sepal_length", pa.array(values))
    assert len(ran(tmp_path, server, table, {"model": "iris"}, errors__allow=3)) == 37
    told = letters(tmp_path / "out")
    assert [letter["source_row"] for letter in told] == [7, 8, 31]
    assert {(letter["status"], letter["code"], letter["message"]) for letter in told} == {
        (503, "InternalServerException", "Prediction failed")
    }


def test_a_model_that_is_not_there_stops_the_job(tmp_path, server):
    """No row dies of a wrong name."""
    put(tmp_path / "in" / "rows.parquet", flowers(5))
    about = {"url": server, "protocol": "torchserve", "options": {"model": "nope"}}
    done = call("run", job_file(tmp_path, server, service=about), "-q")
    assert done.code == 4
    assert "Model not found: nope" in done.err


def test_tokens_are_sent_and_a_wrong_one_stops_the_job(tmp_path):
    """TorchServe refuses one with a 400, like a row: no row dies of it."""
    put(tmp_path / "in" / "rows.parquet", flowers(25))
    with torchserving.running("torchserve", free=False) as server:
        key = json.loads(server.tokens.read_text())["inference"]["key"]
        service = {"url": server.url, "protocol": "torchserve", "options": {"model": "iris"}}
        service["auth"] = {"type": "api-key", "key": "${env:API_KEY}"}
        file = job_file(tmp_path, server.url, service=service, retry={"outage": "60s"})
        refused = call("run", file, "-q", env={"API_KEY": "wrong"})
        assert refused.code == 4, refused.err
        assert "400 InvalidKeyException Token Authorization failed" in refused.err
        assert call("run", file, "-q", env={"API_KEY": key}).code == 0
    assert not letters(tmp_path / "out")
    assert "verified" in call("verify", tmp_path / "out").out
