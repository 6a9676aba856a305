"""Jobs whose service is the real MLflow: `mlflow models serve`."""

from __future__ import annotations

import json
from contextlib import ExitStack

import mlflowserving
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
from realserving import free_port

from jobs import ROOT, SEND, call, flowers, job_file, letters, process, put, results, until

pytestmark = pytest.mark.timeout(900)  # the first one may install MLflow
IRIS = ROOT / "jobs" / "data" / "iris.parquet"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The saved models."""
    return mlflowserving.saved(tmp_path_factory.mktemp("mlflow"))


@pytest.fixture(scope="module")
def iris(models):
    with mlflowserving.running(models, "iris") as url:
        yield url


@pytest.fixture(scope="module")
def picky(models):
    with mlflowserving.running(models, "picky") as url:
        yield url


def job(folder, url, options, **keys):
    """Write a job of few rows a request."""
    about = {"url": url, "protocol": "mlflow", "options": options, "limits": {"rows": 10, "timeout": "60s"}}
    return job_file(folder, url, **{"service": about, "retry": {"attempts": 2, "outage": "300s"}, **keys})


def ran(folder, url, table, options, **keys):
    """Run a job over a table to its end; returns the answers by row."""
    put(folder / "in" / "rows.parquet", table)
    done = call("run", job(folder, url, options, **keys), "-q")
    assert done.code == 0, done.err
    assert "verified" in call("verify", folder / "out").out
    return [json.loads(one) for one in results(folder / "out")["prediction"].to_pylist()]


def test_the_job_that_comes_with_it_runs(tmp_path, iris):
    """As it is; most flowers are told right."""
    out = tmp_path / "out"
    file = ROOT / "jobs" / "mlflow-iris.yaml"
    done = call("run", file, "--param", f"service={iris}", "--set", f"output.path={out}")
    assert done.code == 0, done.err
    assert "verified" in call("verify", out).out
    rows = results(out).to_pylist()
    assert len(rows) == 150
    assert sum(json.loads(row["prediction"]) == row["species"] for row in rows) > 140


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"key": "dataframe_split"},
        {"key": "instances"},
        {"key": "inputs"},
    ],
)
def test_however_rows_are_listed_each_has_its_own_answer(tmp_path, iris, options):
    """The same as of a request by hand, with that row alone."""
    table = pq.read_table(IRIS).take(list(range(0, 150, 6)))
    rows = table.select(SEND).to_pylist()
    asked = [requests.post(f"{iris}/invocations", json={"dataframe_records": [row]}, timeout=60) for row in rows]
    found = ran(tmp_path, iris, table, options, input__keep=["id", "species"])
    assert found == [one.json()["predictions"][0] for one in asked]


@pytest.mark.parametrize("options", [{"key": "instances"}, {"key": "inputs"}])
@pytest.mark.parametrize("rows", ["lists", "values"])
def test_tensors_have_an_answer_a_row(tmp_path, picky, options, rows):
    """Of several columns as lists, or of one that has lists, with the parameters that the model takes."""
    options = {**options, "rows": rows, "params": {"factor": 2.0}}
    if rows == "lists":
        found = ran(tmp_path, picky, flowers(25), options)
        assert found == pytest.approx([2 * sum(row.values()) for row in flowers(25).select(SEND).to_pylist()])
    else:
        table = pa.table({"id": range(25), "x": [[float(row), 0.5] for row in range(25)]})
        found = ran(tmp_path, picky, table, options, input__send=["x"])
        assert found == [2 * (row + 0.5) for row in range(25)]


def test_types_arrive_as_they_are_meant(tmp_path, picky):
    """Whole numbers and floats, text and lists, what is missing; and typed answers are read."""
    columns = {
        "x": pa.array([1, 2, 3]),
        "f": pa.array([1.0, None, 2.5]),
        "t": ["a", "", "é"],
        "many": [[1], [], [1, 2]],
        "b": [True, False, True],
    }
    prediction = {"half": "float", "seen": "string", "nothing": "double", "whole": "int64"}
    put(tmp_path / "in" / "rows.parquet", pa.table({"id": range(3), **columns}))
    file = job(tmp_path, picky, {"key": "dataframe_split"}, input__send=list(columns), output__prediction=prediction)
    done = call("run", file, "-q")
    assert done.code == 0, done.err
    seen = "['int', 'float', 'str', 'list', 'bool']"
    assert results(tmp_path / "out")["prediction"].to_pylist() == [
        {"half": row / 2, "seen": seen, "nothing": None, "whole": row} for row in (1, 2, 3)
    ]


def test_a_model_that_answers_by_columns_answers_each_row(tmp_path, picky):
    """Instances arrive there as arrays by name, and an object of arrays comes back."""
    table = pa.table({"id": range(25), "x": range(25), "y": [0.5] * 25})
    found = ran(tmp_path, picky, table, {"key": "instances"}, input__send=["x", "y"])
    assert found == [{"sum": row + 0.5, "first": row} for row in range(25)]


@pytest.mark.parametrize(
    "options",
    [{}, {"key": "dataframe_split"}, {"key": "instances", "rows": "lists"}, {"key": "inputs", "rows": "values"}],
)
def test_rows_that_the_model_cannot_take_are_the_only_dead_letters(tmp_path, picky, options):
    """With what the model has raised, which MLflow tells by a trace alone."""
    values = [-number if number in {3, 4, 27} else number for number in range(40)]
    table = pa.table({"id": range(40), "x": values})
    found = ran(tmp_path, picky, table, options, input__send=["x"], errors__allow=3)
    assert len(found) == 37
    told = letters(tmp_path / "out")
    assert [letter["source_row"] for letter in told] == [3, 4, 27]
    assert {letter["kind"] for letter in told} == {"rejected"}
    assert all(letter["message"].startswith("ValueError: negative not allowed (") for letter in told)


def test_rows_with_something_missing_are_refused_alone(tmp_path, iris):
    """A table has missing values, and this model takes none: the reason is the model's own."""
    measures = [None if row in {2, 13} else value for row, value in enumerate(flowers(20)["petal_width"].to_pylist())]
    table = flowers(20).set_column(4, "petal_width", pa.array(measures))
    assert len(ran(tmp_path, iris, table, {}, errors__allow=2)) == 18
    told = letters(tmp_path / "out")
    assert [letter["source_row"] for letter in told] == [2, 13]
    assert all(letter["message"].startswith("ValueError: Input X contains NaN. Log") for letter in told)


def test_a_ragged_row_is_refused_alone_where_rows_are_a_tensor(tmp_path, picky):
    """And rows of other shapes than most are answered apart."""
    shapes = [[[row, 1.0], [2.0, 0.5]] for row in range(20)]
    shapes[3], shapes[11] = [[1.0, 2.0], [3.0]], [[1.0, 2.0, 3.0]]
    table = pa.table({"id": range(20), "x": shapes})
    options = {"key": "inputs", "rows": "values"}
    found = ran(tmp_path, picky, table, options, input__send=["x"], errors__allow=1)
    assert [letter["source_row"] for letter in letters(tmp_path / "out")] == [3]
    assert "inhomogeneous shape" in letters(tmp_path / "out")[0]["message"]
    assert found == [6.0 if row == 11 else row + 3.5 for row in range(20) if row != 3]


def test_columns_that_the_model_does_not_know_stop_the_job(tmp_path, iris):
    """No row dies of them: all have the same."""
    put(tmp_path / "in" / "rows.parquet", flowers(5))
    done = call("run", job(tmp_path, iris, {}, input__rename={"petal_width": "width"}), "-q")
    assert done.code == 4
    assert "Model is missing inputs ['petal_width']. Note that there were extra inputs: ['width']." in done.err


def test_a_server_that_is_killed_and_started_again_in_the_middle_loses_nothing(tmp_path, models):
    """The job waits for it, and all rows have their answers."""
    port = free_port()
    put(tmp_path / "in" / "rows.parquet", pa.table({"id": range(2000), "x": range(2000)}))
    with ExitStack() as stack:
        with mlflowserving.running(models, "picky", port=port, kill=True) as url:
            limits = {"rows": 10, "in_flight": 2, "rate": "40/s"}
            patience = {"outage": "300s"}  # with two attempts, who is answered last makes the others' trouble their own
            options = {"key": "inputs", "rows": "values"}
            file = job(tmp_path, url, options, input__send=["x"], service__limits=limits, retry=patience)
            started = stack.enter_context(process("run", file))
            log = models / f"picky-{port}" / "server.log"
            until(lambda: log.read_text().count(" 200 ") > 30)
        with mlflowserving.running(models, "picky", port=port):
            out, err = started.communicate(timeout=100)
            assert started.returncode == 0, err
    assert " 0 retries" not in out + err
    answers = [json.loads(one) for one in results(tmp_path / "out")["prediction"].to_pylist()]
    assert answers == [float(row) for row in range(2000)]
    assert "verified" in call("verify", tmp_path / "out").out
