"""The real MindSpore Serving 2.0.2: what is sent arrives bit for bit, and a job over it is proved."""

from __future__ import annotations

import json
from base64 import b64encode
from contextlib import ExitStack

import numpy as np
import pyarrow as pa
import pytest
import realserving
import requests
from anyarrow import KINDS, build, values_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_instances import arrived, encoded, same, see_numbers, see_tensors, see_texts, tensors

from jobs import ROOT, call, job_file, letters, process, put, results, until
from pipeline.errors import JobError
from pipeline.gate import Gate
from pipeline.mindspore import MindSpore
from pipeline.status import Action
from schemas.options import MindSporeOptions

pytestmark = pytest.mark.timeout(900)  # the first one may install MindSpore Serving
FEW = settings(max_examples=60, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def real():
    with realserving.running() as server:
        yield server.url


@pytest.fixture(scope="module")
def models():
    with realserving.running("iris", "digits") as server:
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
    see_tensors(drawn, ask)


@FEW
@given(tensors())
def test_numbers_as_json_arrive_as_what_they_are(ask, drawn):
    """Scalars and nested arrays: as the server's int32, float32 or bool, or refused."""
    see_numbers(drawn, ask)


@FEW
@given(st.text(), st.binary())
def test_text_and_bytes_arrive_as_they_are(ask, text, content):
    """However they travel."""
    see_texts(text, content, ask)


@pytest.mark.parametrize("name", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_the_limits_of_integers_come_back_as_they_went_in(tmp_path, real, name):
    """Through a job and its typed answers, to the last digit."""
    limits = np.iinfo(name)
    values = pa.array([limits.min, limits.max, limits.max - 1], name)
    done, out = scored(tmp_path, real, values, types={"x": name}, output__prediction={"out": name})
    assert done.code == 0, done.err
    assert results(out)["prediction"].to_pylist() == [{"out": value} for value in values.to_pylist()]


def test_floats_come_back_as_they_went_in(tmp_path, real):
    """Those of 64 bits as tensors; what JSON has no number for is null in the reply, as the server says it."""
    values = pa.array([[0.1, 1e300, 5e-324], [float("nan"), float("inf"), -0.0]])
    done, out = scored(tmp_path, real, values, types={"x": "float64"})
    assert done.code == 0, done.err
    assert answers(out) == [[0.1, 1e300, 5e-324], [None, None, -0.0]]


def test_a_picture_of_floats_arrives(ask):
    """224 x 224 x 3 of them."""
    [array] = arrays = [np.random.default_rng(1).random((224, 224, 3), np.float32)]
    see_tensors(("float32", 3, arrays), ask)
    assert array.nbytes == 602_112


# The document's own examples


def document(folder):
    """Write the rows of the document's request; its pictures are shown there as their first and last letters."""
    pictures = [b"\x89PNG\r\n\x1a\n zero", b"\x89PNG\r\n\x1a\n one"]
    boxes = [[[1, 1], [2, 3], [3, 4]], [[2, 2], [5, 5], [6, 6]]]
    table = pa.table({"tag": ["one", "two"], "box": pa.array(boxes, pa.list_(pa.list_(pa.int32()))), "image": pictures})
    put(folder / "in" / "a.parquet", table)
    return boxes, pictures


@pytest.mark.parametrize("types", [{}, {"image": "bytes"}, {"box": "int16", "tag": "str"}])
def test_the_documents_request_is_made_of_parquet_rows(tmp_path, real, types):
    """What its method is given is what the rows have, with or without the types that may be left out."""
    boxes, pictures = document(tmp_path)
    sent = {"send": ["tag", "box", "image"], "path": "in/*.parquet"}
    assert call("run", job(tmp_path, real, "document", input=sent, options={"types": types})).code == 0
    assert answers(tmp_path / "out", None) == [
        {"box": box, "image": b64encode(picture).decode(), "kind": types.get("box", "int32"), "tag": tag}
        for tag, box, picture in zip(["one", "two"], boxes, pictures, strict=True)
    ]


@pytest.mark.parametrize(
    ("method", "values", "form", "found"),
    [
        ("fail_neg", [1, 2], "instances", [2, 4]),
        ("fail_neg", [1, -2], "instances", [2, "negative not allowed"]),
        ("fail_own", [-1, -2], "instances", ["-1 is negative", "-2 is negative"]),
        ("fail_neg", [-1, -2], "error_msg", ["negative not allowed"] * 2),
    ],
)
def test_each_form_of_the_servers_reply_is_what_became_of_each_row(tmp_path, real, method, values, form, found):
    """All answered, some failed, all failed, in words of their own or in the same ones: an error at the top."""
    said = requests.post(f"{real}/model/demo:{method}", json={"instances": [{"x": one} for one in values]}, timeout=30)
    assert list(said.json()) == [form]
    put(tmp_path / "in" / "a.parquet", pa.table({"id": range(2), "x": pa.array(values, pa.int32())}))
    done = call("run", job(tmp_path, real, method, errors={"allow": 2}), "--no-probe")
    assert done.code == 0, done.err
    scored = results(tmp_path / "out")
    told = {} if scored is None else dict(zip(scored["source_row"].to_pylist(), answers(tmp_path / "out"), strict=True))
    dead = {letter["source_row"]: letter for letter in letters(tmp_path / "out")}
    assert sorted([*told, *dead]) == [0, 1]
    for row, expected in enumerate(found):
        if row in told:
            assert told[row] == expected
        else:
            assert dead[row]["kind"] == "rejected"
            assert dead[row]["message"].endswith(f"error msg: {expected}")


def test_a_request_that_the_server_cannot_read_is_refused_for_its_content(real):
    """The last of its forms: one error at the top."""
    said = requests.post(f"{real}/model/demo:echo", data=b'{"instances":[{"x":[1,2.0]}]}', timeout=30)
    fault = MindSpore(MindSporeOptions()).read(said.status_code, said.headers, said.content, uuid="", rows=1)
    assert (fault.action, fault.message) == (
        Action.REJECT,
        "Parser request failed, json array, elements type is not equal",
    )


# Bad input, from files


def lists(*values, kind=None):
    return pa.array(values, pa.list_(kind or pa.int64()))


BAD = {
    "ragged arrays": (lists([[1, 2], [3]], [[4]], kind=pa.list_(pa.int64())), None, [" is ragged", [[4]]]),
    "empty lists": (lists([], [5]), None, [" is empty", [5]]),
    "empty lists of a type": (lists([], [5]), "int64", [[], [5]]),
    "nulls": (pa.array([None, 1]), None, [" is null", 1]),
    "nulls in a list": (lists([1, None], [2, 3]), None, [" has a null in it", [2, 3]]),
    "integers out of range": (pa.array([2**31, -(2**31)]), None, [" is 2147483648, outside int32", -(2**31)]),
    "integers of 64 bits": (pa.array([2**31, 2**63 - 1]), "int64", [2**31, 2**63 - 1]),
    "integers out of their type": (pa.array([128, 127]), "int8", [" is 128, which is no int8", 127]),
    "floats out of range": (pa.array([1e39, 0.5]), None, [" is 1e+39, outside float32", 0.5]),
    "non-finite floats": (pa.array([float("nan"), 0.5]), None, [" is nan, and JSON has no such number", 0.5]),
    "the same in a list": (lists([0.5, float("inf")], [0.5], kind=pa.float32()), None, ["[1] is inf", [0.5]]),
    "infinity of a type": (pa.array([float("inf"), 0.5]), "float32", [None, 0.5]),
    "text that is not UTF-8": (pa.array([b"\xff", b"ok"]).view(pa.string()), None, ["UTF-8", "ok"]),
    "bytes that are no text": (pa.array([b"\xff", b"ok"]), "str", [" is not UTF-8", "ok"]),
    "rows of different shape": (lists([1, 2, 3], [4]), None, [[1, 2, 3], [4]]),
    "tensors of different shape": (lists([[1], [2]], [[3, 4]], kind=lists([1]).type), "uint8", [[[1], [2]], [[3, 4]]]),
}


@pytest.mark.parametrize(("values", "declared", "expected"), BAD.values(), ids=BAD)
def test_bad_input_is_a_dead_letter_with_the_rule_or_right(tmp_path, real, values, declared, expected):
    """Nothing that the server misreads is sent, and the rows beside it are answered."""
    wrong = [row for row, one in enumerate(expected) if isinstance(one, str) and one != "ok"]
    done, out = scored(tmp_path, real, values, types={"x": declared} if declared else {}, errors={"allow": 1})
    assert done.code == 0, done.err
    dead = {letter["source_row"]: letter for letter in letters(out)}
    assert list(dead) == wrong
    assert all(dead[row]["kind"] == "unreadable" and expected[row] in dead[row]["message"] for row in wrong)
    assert answers(out) == [one for row, one in enumerate(expected) if row not in wrong]
    assert "verified" in call("verify", out).out


def test_integers_among_floats_are_floats(tmp_path, real):
    """JSON lines may have both in one list, which the server would refuse."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text('{"x": [1, 2.5]}\n{"x": [1.0, 2]}\n{"x": [3, 4]}\n')
    given = {"path": "in/*.jsonl", "columns": {"x": "list<double>"}}
    done = call("run", job(tmp_path, real, "bits", input=given))
    assert done.code == 0, done.err
    assert [one["dtype"] for one in answers(tmp_path / "out", None)] == ["float32"] * 3


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


def scored(folder, url, values, types, **keys):
    """Run a job over values of x that asks for them back; returns how it ended, and its output."""
    put(folder / "in" / "a.parquet", pa.table({"id": range(len(values)), "x": values}))
    return call("run", job(folder, url, "echo", options={"types": types}, **keys)), folder / "out"


def answers(out, name="out"):
    """Return what was answered, in order."""
    found = [json.loads(text) for text in results(out)["prediction"].to_pylist()]
    return [one[name] for one in found] if name else found


def job(folder, url, method="fail_neg", **keys):
    options = {"model": "demo", "method": method, **keys.pop("options", {})}
    about = {"service__url": url, "service__protocol": "mindspore", "service__options": options}
    return job_file(folder, url, **{"service__auth": {"type": "none"}, "input__send": ["x"], **about, **keys})


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


@pytest.mark.parametrize("name", ["mindspore-iris", "mindspore-digits"])
def test_the_jobs_that_come_with_it_run_as_they_do_against_the_sandbox(tmp_path, models, sandbox, name):
    """By one command, with the same answers, and their outputs are proved."""
    found = []
    for url in (models, sandbox()):
        out = tmp_path / str(len(found))
        done = call("run", ROOT / "jobs" / f"{name}.yaml", "--param", f"service={url}", "--set", f"output.path={out}")
        assert done.code == 0, done.err
        assert "verified" in call("verify", out).out
        found.append(judged(results(out)))
    (labels, scores), (same_labels, same_scores) = found
    assert labels == same_labels
    assert np.allclose(scores, same_scores, rtol=0, atol=1e-6)


def judged(table):
    """Return labels and scores."""
    rows = table["prediction"].to_pylist()
    return [row["label"] for row in rows], [row.get("score", row.get("scores")) for row in rows]


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
