"""Jobs over what answers as TensorFlow Serving does, in the row form and in the column form."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tfserving
from service import recording

from jobs import ROOT, SEND, call, flowers, job_file, letters, put, results

FORMS = ["instances", "inputs"]
TYPED = {
    "f": pa.array([[row + 0.1, 2.0] for row in range(25)], pa.list_(pa.float32())),
    "i": range(-5, 20),
    "s": [f"text {row} é" for row in range(25)],
    "b": [row % 2 == 0 for row in range(25)],
    "image": pa.array([bytes([row, 255]) for row in range(25)], pa.binary()),
}


@pytest.fixture
def server():
    with recording(tfserving.serve) as service:
        yield service


def base(service):
    return service.url.removesuffix("/v1/infers/iris")


def job(folder, service, options, **keys):
    """Write a job of ten rows a request."""
    about = {"url": base(service), "protocol": "tensorflow", "options": {"model": "iris", **options}}
    about["limits"] = keys.pop("limits", {"rows": 10})
    return job_file(folder, "", service=about, retry={"attempts": 2, "outage": "30s"}, **keys)


def ran(folder, service, table, options, **keys):
    """Run a job over a table to its end; returns the answers by row."""
    put(folder / "in" / "rows.parquet", table)
    done = call("run", job(folder, service, options, **keys), "-q")
    assert done.code == 0, done.err
    assert "verified" in call("verify", folder / "out").out
    return [json.loads(one) for one in results(folder / "out")["prediction"].to_pylist()]


def test_the_job_that_comes_with_it_runs(tmp_path, server):
    """As it is, with every row's own answer."""
    out = tmp_path / "out"
    sets = ("--param", f"service={base(server)}", "--set", f"output.path={out}")
    done = call("run", ROOT / "jobs" / "tensorflow-iris.yaml", *sets)
    assert done.code == 0, done.err
    assert "verified" in call("verify", out).out
    rows = pq.read_table(ROOT / "jobs" / "data" / "iris.parquet").select(SEND).to_pylist()
    found = [json.loads(one) for one in results(out)["prediction"].to_pylist()]
    assert found == [round(sum(row.values()), 6) for row in rows]


@pytest.mark.parametrize("key", FORMS)
def test_all_types_arrive_and_come_back(tmp_path, server, key):
    """Bytes as base64 both ways; several outputs are one object a row, in either form; NaN is null."""
    table = pa.table({"id": range(25), **TYPED})
    found = ran(tmp_path, server, table, {"signature": "typed", "key": key}, input__send=list(TYPED))
    rows = table.drop(["id", "f", "image"]).to_pylist()
    assert [{name: answer[name] for name in ("i", "s", "b")} for answer in found] == rows
    assert [answer["f"] for answer in found] == [pytest.approx([row + 0.1, 2.0]) for row in range(25)]
    assert [answer["image_bytes"] for answer in found[:2]] == ["AP8=", "Af8="]
    assert {answer["size"] for answer in found} == {2}
    assert [answer["nan"] for answer in found] == [0.5 if row > 5 else None for row in range(25)]


def test_the_column_form_is_shorter(tmp_path, server):
    """Names once, and the same answers."""
    sizes, found = {}, {}
    for key in FORMS:
        (tmp_path / key).mkdir()
        before = len(server.calls)
        found[key] = ran(tmp_path / key, server, flowers(500), {"key": key}, limits={"rows": 100})
        sizes[key] = sum(len(one.body) for one in server.calls[before:])
    assert found["inputs"] == found["instances"]
    assert sizes["inputs"] < sizes["instances"] / 3


@pytest.mark.parametrize("key", FORMS)
def test_one_input_may_be_bare(tmp_path, server, key):
    """A row is the list of its columns, or the list that one column has."""
    options = {"signature": "crashing", "key": key}
    found = ran(tmp_path, server, flowers(25), {**options, "rows": "lists"})
    assert found == pytest.approx([sum(row.values()) for row in flowers(25).select(SEND).to_pylist()], abs=1e-4)
    (tmp_path / "one").mkdir()
    table = pa.table({"id": range(25), "x": [[row, 0.5] for row in range(25)]})
    found = ran(tmp_path / "one", server, table, {**options, "rows": "values"}, input__send=["x"])
    assert found == [row + 0.5 for row in range(25)]


@pytest.mark.parametrize("key", FORMS)
@pytest.mark.parametrize("signature", ["serving_default", "crashing"])
def test_rows_that_the_model_cannot_take_are_the_only_dead_letters(tmp_path, server, key, signature):
    """Refused with a 400, or a crash that is dressed as a 500: it is bounded, and the rows are found."""
    values = [-1.0 if row in {7, 8, 41} else value for row, value in enumerate(flowers(60)["sepal_length"].to_pylist())]
    table = flowers(60).set_column(1, "sepal_length", pa.array(values))
    options = {"key": key, "signature": signature, "rows": "objects" if signature == "serving_default" else "lists"}
    assert len(ran(tmp_path, server, table, options, errors__allow=3)) == 57
    told = letters(tmp_path / "out")
    assert [letter["source_row"] for letter in told] == [7, 8, 41]
    said = {"serving_default": "indices[0] = -1 is not in [0, 3)", "crashing": "Internal: the kernel has failed"}
    assert {letter["message"] for letter in told} == {said[signature]}


@pytest.mark.parametrize("key", FORMS)
def test_what_is_in_no_tensor_or_not_of_the_inputs_type_is_refused_alone(tmp_path, server, key):
    """Nulls, NaN and ragged lists before they are sent; what only the signature knows, in the server's words."""
    columns = {name: list(values) if isinstance(values, range) else values for name, values in TYPED.items()}
    columns["i"] = pa.array([2**31 if row == 4 else None if row == 9 else row for row in range(25)], pa.int64())
    columns["f"] = pa.array([[1.0, float("nan") if row == 14 else 2.0] for row in range(25)], pa.list_(pa.float32()))
    columns["s"] = [None if row == 19 else "text" for row in range(25)]
    table = pa.table({"id": range(25), **columns})
    options = {"signature": "typed", "key": key}
    found = ran(tmp_path, server, table, options, input__send=list(TYPED), errors__allow=4)
    assert len(found) == 21
    said = {letter["source_row"]: (letter["kind"], letter["message"]) for letter in letters(tmp_path / "out")}
    assert said == {
        4: ("rejected", "JSON Value: 2147483648 Type: Number is not of expected type: int32"),
        9: ("unreadable", "i is null, and TensorFlow Serving takes none"),
        14: ("unreadable", "f has nan, and JSON has no such number"),
        19: ("unreadable", "s is null, and TensorFlow Serving takes none"),
    }


@pytest.mark.parametrize("key", FORMS)
def test_rows_of_different_shapes_are_all_answered(tmp_path, server, key):
    """They cannot be in one request, and are asked apart."""
    table = pa.table({"id": range(40), "x": [[1.0] * (1 + row // 20) for row in range(40)]})
    options = {"signature": "crashing", "key": key, "rows": "values"}
    found = ran(tmp_path, server, table, options, input__send=["x"])
    assert found == [1.0] * 20 + [2.0] * 20


@pytest.mark.parametrize("key", FORMS)
def test_inputs_that_the_signature_does_not_have_stop_the_job(tmp_path, server, key):
    """No row dies of them: all have the same."""
    put(tmp_path / "in" / "rows.parquet", flowers(5))
    done = call("run", job(tmp_path, server, {"key": key}, input__rename={"petal_width": "width"}), "-q")
    assert done.code == 4
    assert "keys must be equal to: sepal_length,sepal_width,petal_length,petal_width" in done.err


def test_a_struct_is_no_tensor(tmp_path, server):
    """It is told before anything is sent."""
    put(tmp_path / "in" / "rows.parquet", pa.table({"id": [1], "x": [{"a": 1}]}))
    done = call("run", job(tmp_path, server, {}, input__send=["x"]), "-q")
    assert done.code == 2
    assert "input.send: column 'x' has type struct<a: int64>; TensorFlow Serving takes numbers" in done.err
    assert not server.calls
