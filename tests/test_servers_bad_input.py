"""Rows that a protocol has no form for, among good ones, in jobs over real servers that give back their input."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from jobs import call, job_file, letters, proved, put, results

pytestmark = pytest.mark.timeout(900)  # the first one may install a server
PAIR = pa.list_(pa.float64(), 2)
NESTED = pa.list_(pa.list_(pa.int64()))
PAIRS = "fixed_size_list<double>[2]"
NOT_TEXT = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff"))
MATRIX = "fixed_size_list<fixed_size_list<double>[2]>[2]"
V2 = {"protocol": "open-inference", "options": {"model": "echo"}}
V1 = {"protocol": "kserve", "options": {"model": "echo", "rows": "values"}}
REFUSED = [
    # protocol, column, a good row, the bad one, the reason
    ("of another shape", V2, PAIRS, [1.0, 2.0], [1.0], "x is [1.0], which is no fixed_size_list<"),
    (
        "ragged",
        V2,
        MATRIX,
        [[1.0, 2.0], [3.0, 4.0]],
        [[1.0], [2.0, 3.0]],
        "x is [[1.0], [2.0, 3.0]], which is no",
    ),
    ("too deep", V2, PAIRS, [1.0, 2.0], [[1.0], [2.0]], "x is [[1.0], [2.0]], which is no fixed"),
    ("empty", V2, PAIRS, [1.0, 2.0], [], "x is [], which is no fixed_size_list<"),
    ("null", V2, PAIRS, [1.0, 2.0], None, "x is null, NaN or infinite"),
    ("null inside", V2, PAIRS, [1.0, 2.0], [1.0, None], "has such a value in it, and a tensor has none"),
    ("null of text", V2, "string", "a", None, "a tensor has none"),
    ("over uint8", V2, "uint8", 255, 256, "x is 256, which is no uint8"),
    ("below uint8", V2, "uint8", 0, -1, "x is -1, which is no uint8"),
    ("over int64", V2, "int64", 2**63 - 1, 2**63, "x is 9223372036854775808, which is no int64"),
    ("a fraction", V2, "int32", 1, 1.5, "x is 1.5, which is no int32"),
    ("text for a number", V2, "double", 1.0, "one", "which is no double"),
    ("infinite", V2, pa.float32(), 1.0, float("-inf"), "x is null, NaN or infinite"),
    ("NaN", V2, PAIR, [1.0, 2.0], [float("nan"), 2.0], "a tensor has none"),
    ("no UTF-8", V2, pa.string(), "a", NOT_TEXT, "x is not UTF-8"),
    ("over int64", V1, "int64", 2**63 - 1, 2**63, "x is 9223372036854775808, which is no int64"),
    ("text for a number", V1, "list<double>", [1.0], ["one"], "which is no list<"),
    ("no UTF-8", V1, pa.string(), "a", NOT_TEXT, "x is not UTF-8"),
]
TAKEN = [
    # protocol, column, a good row, the odd one, its answer
    ("mixed", V2, PAIRS, [1.0, 2.0], [1, 2.5], [1.0, 2.5]),
    ("the largest", V2, "uint64", 0, 2**64 - 1, 2**64 - 1),
    ("mixed", V1, "list<double>", [1.0], [1, 2.5], [1.0, 2.5]),
    ("ragged", V1, NESTED, [[1]], [[1, 2], [], [3]], [[1, 2], [], [3]]),
    ("empty", V1, "list<double>", [1.0], [], []),
    ("null", V1, "double", 1.0, None, None),
    ("null inside", V1, "list<double>", [1.0], [None, 1], [None, 1.0]),
    ("the largest", V1, "uint64", 0, 2**64 - 1, 2**64 - 1),
    ("NaN", V1, pa.float64(), 1.0, float("nan"), None),
]


SERVERS = {"kserve": "kserve", "open-inference": "mlserver"}


def ran(folder, model_server, about, kind, good, odd, **keys):
    """Run a job over three rows, of which the second is the odd one; returns answers and reasons by row."""
    declared = isinstance(kind, str)
    given = {"path": "in/*.jsonl" if declared else "in/*.parquet", "keep": ["id"], **keys}
    if declared:  # as the job file declares it
        given["columns"] = {"x": kind}
        (folder / "in").mkdir()
        rows = [json.dumps({"id": row, "x": value}) + "\n" for row, value in enumerate((good, odd, good))]
        (folder / "in" / "a.jsonl").write_text("".join(rows))
    else:
        odd = odd if isinstance(odd, pa.Array) else pa.array([odd], kind)
        column = pa.chunked_array([pa.array([good], kind), odd, pa.array([good], kind)])
        put(folder / "in" / "a.parquet", pa.table({"id": [0, 1, 2], "x": column}))
    service = {"url": model_server(SERVERS[about["protocol"]]).url, **about}
    done = call("run", job_file(folder, "", input=given, service=service, errors={"allow": 1}), "-q")
    assert done.code == 0, done.err
    assert not proved(folder / "out")
    answers = results(folder / "out").to_pylist()
    return {row["source_row"]: answer(row["prediction"]) for row in answers}, {
        letter["source_row"]: letter["message"] for letter in letters(folder / "out")
    }


def answer(text):
    """Return what the model gave back."""
    said = json.loads(text)
    return said["x"] if isinstance(said, dict) else said


def called(cases):
    return [f"{about['protocol']}, {name}" for name, about, *_ in cases]


@pytest.mark.parametrize(("about", "kind", "good", "bad", "why"), [one[1:] for one in REFUSED], ids=called(REFUSED))
def test_a_row_without_a_form_is_refused_alone(tmp_path, model_server, about, kind, good, bad, why):
    """It says the rule; the rows beside it have their answers."""
    answers, reasons = ran(tmp_path, model_server, about, kind, good, bad)
    assert answers == {0: good, 2: good}
    assert list(reasons) == [1]
    assert why in reasons[1]


@pytest.mark.parametrize(("about", "kind", "good", "odd", "said"), [one[1:] for one in TAKEN], ids=called(TAKEN))
def test_a_row_that_has_a_form_is_sent_in_it(tmp_path, model_server, about, kind, good, odd, said):
    """As the protocol has it, and it comes back."""
    answers, reasons = ran(tmp_path, model_server, about, kind, good, odd)
    assert repr(answers) == repr({0: good, 1: said, 2: good})
    assert not reasons


def test_numbers_that_json_lacks_are_refused_where_the_job_says_so(tmp_path, model_server):
    """V1 has null for them otherwise."""
    answers, reasons = ran(tmp_path, model_server, V1, pa.float64(), 1.0, float("inf"), nan="reject")
    assert answers == {0: 1.0, 2: 1.0}
    assert reasons == {1: "x is inf, and the job file says nan: reject"}


def test_lists_of_any_length_are_no_tensor(tmp_path):
    """The job says so before it asks for anything, and how to mend it."""
    put(tmp_path / "in" / "a.parquet", pa.table({"id": [1], "x": [[1.0]]}))
    service = {"url": "http://127.0.0.1:9", **V2}
    done = call("run", job_file(tmp_path, "", input={"path": "in/*.parquet", "keep": ["id"]}, service=service), "-q")
    assert done.code == 2
    assert "column 'x' has type list<" in done.err
    assert "a tensor's rows have one shape; give its length in input.columns: fixed_size_list<...>[N]" in done.err
