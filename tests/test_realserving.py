"""The real MindSpore Serving 2.0.2: what is sent arrives bit for bit, and a job over it is proved."""

from __future__ import annotations

import json
from contextlib import ExitStack

import pyarrow as pa
import pytest
import realserving
import requests
from anyarrow import KINDS, build, values_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_instances import arrived, column_of, encoded, same, tensors

from jobs import call, job_file, letters, process, put, results, until
from pipeline.errors import JobError
from pipeline.gate import Gate

FEW = settings(max_examples=60, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def real():
    with realserving.running() as server:
        yield server.url


@pytest.fixture(scope="module")
def ask(real):
    session = requests.Session()

    def asked(method, lines):
        body = b'{"instances":[' + b",".join(lines) + b"]}"
        return session.post(f"{real}/model/demo:{method}", data=body, timeout=30).json()

    with session:
        yield asked


@FEW
@given(tensors())
def test_a_tensor_of_any_type_and_shape_arrives_bit_for_bit(ask, drawn):
    """With its type declared: what went in comes back, or is refused for its shape."""
    name, depth, arrays = drawn
    lines, refused = encoded(column_of(name, depth, arrays), name)
    taken = [array for row, array in enumerate(arrays) if row not in refused]
    for found, expected in zip(arrived(lines, ask), taken, strict=True):
        nan = expected.dtype.kind == "f" and bool((expected != expected).any())  # noqa: PLR0124 - its bits are its own
        assert nan or same(found, expected)


@FEW
@given(st.data(), KINDS)
def test_what_is_sent_is_taken(ask, data, kind):
    """Of any values of any type: each row is refused with a reason, or read by the server as by the sandbox's."""
    values = data.draw(st.lists(values_of(kind), min_size=1, max_size=4))
    try:
        lines, refused = encoded(build(values, kind))
    except JobError:
        return
    assert len(lines) + len(refused) == len(values)
    theirs, ours = arrived(lines, ask), arrived(lines)
    assert all(
        one == other if isinstance(one, str) else same(one, other) for one, other in zip(theirs, ours, strict=True)
    )


def test_large_tensors_arrive(ask):
    """One that travels as JSON, and one that travels as base64 by itself."""
    for count in (1000, 1001):
        column = pa.array([[value / 7 for value in range(count)]])
        [found] = arrived(encoded(column)[0], ask)
        assert found.tobytes() == pa.array(column[0].as_py(), pa.float32()).to_numpy().tobytes()


def test_a_stage_that_compares_types_strictly_takes_floats_however_they_travel(ask):
    """As a compiled model does; a whole number keeps its point."""
    for column, declared in ((pa.array([1.0]), None), (pa.array([[2.0] * 2000]), None), (pa.array([3]), "float32")):
        lines, _ = encoded(column, declared)
        assert "out" in ask("strict", lines)["instances"][0]
    assert "required float32" in ask("strict", encoded(pa.array([1]))[0])["error_msg"]


def job(folder, url, method="fail_neg", **keys):
    options = {"model": "demo", "method": method, **keys.pop("options", {})}
    about = {"service__url": url, "service__protocol": "mindspore", "service__options": options}
    return job_file(folder, url, service__auth={"type": "none"}, input__send=["x"], **about, **keys)


def test_a_job_with_failing_instances_has_exactly_those_as_dead_letters(tmp_path, real):
    """In requests of ten, with the server's own text."""
    values = [-number if number % 17 == 3 else number for number in range(200)]
    put(tmp_path / "in" / "a.parquet", pa.table({"id": values, "x": pa.array(values, pa.int32())}))
    done = call("run", job(tmp_path, real, errors={"allow": 20}))
    assert done.code == 0, done.err
    out = tmp_path / "out"
    assert [letter["source_row"] for letter in letters(out)] == [row for row in range(200) if values[row] < 0]
    assert all("negative not allowed" in letter["message"] for letter in letters(out))
    assert [json.loads(text)["out"] for text in results(out)["prediction"].to_pylist()] == [
        2 * value for value in values if value >= 0
    ]
    assert "verified" in call("verify", out).out


@pytest.mark.parametrize(
    ("options", "told", "mend"),
    [
        ({"model": "nosuch"}, "servable is not available, for ", "model or version in service.options"),
        ({"version": 2}, "version(2) , servable is not available, for ", "model or version in service.options"),
        ({"method": "nosuch"}, "method is not available", "method in service.options"),
    ],
)
def test_what_the_server_does_not_have_ends_the_job(tmp_path, monkeypatch, real, options, told, mend):
    """A wrong name, version or method, with the keys to mend; no dead letters are made of it."""
    monkeypatch.setattr(Gate, "ABSENT_SECONDS", 1.0)
    put(tmp_path / "in" / "a.parquet", pa.table({"id": range(20), "x": pa.array(range(20), pa.int32())}))
    done = call("run", job(tmp_path, real, options=options))
    assert done.code == 4, done.err
    [line] = [line for line in done.err.splitlines() if line.startswith("ERROR")]
    assert told in line
    assert f"mend service.url, or {mend}, and run it again" in line
    assert letters(tmp_path / "out") == []


def test_a_server_that_is_killed_and_started_again_in_the_middle_loses_nothing(tmp_path):
    """The job waits for it, and all rows have their answers."""
    port = realserving.free_port()
    put(tmp_path / "in" / "a.parquet", pa.table({"id": range(2000), "x": pa.array(range(2000), pa.int32())}))
    with ExitStack() as stack:
        with realserving.running(port=port, kill=True) as server:
            file = job(tmp_path, server.url, service__limits={"rows": 10, "in_flight": 2, "rate": "60/s"})
            started = stack.enter_context(process("run", file))
            until(lambda: server.calls.exists() and server.calls.stat().st_size > 100)
        with realserving.running(port=port):
            out, err = started.communicate(timeout=100)
            assert started.returncode == 0, err
    assert " 0 retries" not in out + err
    assert len(results(tmp_path / "out")) == 2000
    assert "verified" in call("verify", tmp_path / "out").out
