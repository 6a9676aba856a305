"""Typed predictions: declared fields become columns of a struct, and an answer that does not fit is a dead letter."""

from __future__ import annotations

import csv
import json
import re
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jobs
from pipeline.arrowtypes import types_of
from pipeline.converse import Scored
from pipeline.encode import RowEncoder
from pipeline.errors import JobError
from pipeline.forms import FORMS
from pipeline.ids import row_namer
from pipeline.modelarts import ModelArts
from pipeline.pack import Block, Limits, pack
from pipeline.plan import Range
from pipeline.storage import Store
from pipeline.write import RangeWriter
from schemas.options import ModelArtsOptions
from schemas.plan import Source, Work
from schemas.tables import Attempt

AT = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
FIELDS = {"label": pa.string(), "score": pa.float64(), "count": pa.int64(), "scores": pa.list_(pa.float32())}
FITTING = '{"label": "setosa", "score": 1, "count": 3.0, "scores": [1, 0.5], "other": {"dropped": true}}'
NOT_WRITTEN = "is not written; declare the type without _view"
FITTED = {"label": "setosa", "score": 1.0, "count": 3, "scores": [1.0, 0.5]}


def score(out, answers, form="parquet", prediction=FIELDS):
    """Write one request with these answers; returns the writer and its receipt."""
    rows = len(answers)
    source = Source(0, "file:///data/a.parquet", "a.parquet", 1, "v1", rows)
    table = jobs.flowers(rows).to_batches()[0]
    encoded = RowEncoder(table.schema, jobs.SEND, rename={}).encode(table)
    block = Block(0, encoded, row_namer("iris", source.path)(0, rows), table.select(["id"]))
    [chunk] = pack([block], Limits(12_000_000), ModelArts(ModelArtsOptions()).frame)
    kept = pa.schema([table.schema.field("id")])
    writing = RangeWriter(
        Store(str(out)), Work(source, 0, rows), Range(0, rows), kept,
        run="r1", clock=lambda: 0.0, now=lambda: AT, form=form, prediction=prediction,
    )  # fmt: skip
    before = (Attempt(AT.isoformat(), "slower", 503),)
    writing.add(chunk, [Scored(chunk, pa.array(answers, pa.string()), 2, 0.25, AT, history=before)])
    return writing, writing.close(), chunk


def test_declared_fields_are_a_struct(tmp_path):
    """An integer fits a double, 3.0 an integer; fields not declared are dropped, absent ones are null."""
    score(tmp_path, [FITTING, "{}", '{"label": null, "scores": [null]}'])
    results = jobs.results(tmp_path)
    assert results.schema.field("prediction").type == pa.struct(list(FIELDS.items()))
    nothing = dict.fromkeys(FIELDS)
    assert results["prediction"].to_pylist() == [FITTED, nothing, {**nothing, "scores": [None]}]
    assert not (tmp_path / "errors").exists()


def test_without_declared_fields_the_answer_is_text_exactly_as_it_came(tmp_path):
    """Nothing is read, so nothing can fail to fit."""
    answers = ["{ }", "3.10", '"x"', "null"]
    score(tmp_path, answers, prediction={})
    assert jobs.results(tmp_path)["prediction"].to_pylist() == answers


@pytest.mark.parametrize(
    ("answer", "field", "shown"),
    [
        ('{"score": "high"}', "score", '"high"'),
        ('{"count": 3.5, "label": "x"}', "count", "3.5"),
        ('{"count": 9223372036854775808}', "count", "9223372036854775808"),
        ('{"label": 3}', "label", "3"),
        ('{"scores": [1, "x"]}', "scores", '"x"'),
        ("[1]", "", "[1]"),
        ("null", "", "null"),
    ],
)
def test_an_answer_that_does_not_fit_is_a_dead_letter(tmp_path, answer, field, shown):
    """It names the field and shows the raw answer; the other rows of the request are results at their places."""
    writing, receipt, chunk = score(tmp_path, [FITTING, answer, FITTING])
    results, [letter] = jobs.results(tmp_path), jobs.letters(tmp_path)
    assert results["source_row"].to_pylist() == results["request_row"].to_pylist() == [0, 2]
    assert results["prediction"].to_pylist() == [FITTED, FITTED]
    assert results["id"].to_pylist() == ["iris-00000", "iris-00002"]
    assert results["row_uuid"].to_pylist() == chunk.row_uuids.take(pa.array([0, 2])).to_pylist()
    assert letter["message"].startswith(field)
    assert shown in letter["message"]
    assert letter["message"].endswith(f"; the answer is {answer}")
    assert (letter["kind"], letter["status"], letter["code"]) == ("mismatch", 200, None)
    assert (letter["source_row"], letter["row_uuid"]) == (1, chunk.row_uuids[1].as_py())
    assert (letter["request_uuid"], letter["keep"]) == (chunk.uuid, {"id": "iris-00001"})
    assert letter["row"] == json.loads(chunk.line(1))
    before, last = letter["history"]
    assert (before["action"], before["status"]) == ("slower", 503)
    assert (last["action"], last["status"], last["time"]) == ("mismatch", 200, AT.isoformat())
    assert letter["message"].startswith(last["message"])
    assert (writing.scored, writing.dead) == (receipt.scored, receipt.dead) == (2, 1)
    assert receipt.requests == 2


def test_where_no_answer_fits_there_is_no_results_object(tmp_path):
    """All rows of the request are dead letters."""
    _, receipt, _ = score(tmp_path, ["1", "2"])
    assert (receipt.scored, receipt.dead, receipt.results) == (0, 2, None)
    assert [one["source_row"] for one in jobs.letters(tmp_path)] == [0, 1]


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_every_answer_is_a_result_or_a_dead_letter(tmp_path_factory, fits):
    """Whichever of them fit: each row once, at its place, with its own answer."""
    out = tmp_path_factory.mktemp("out")
    score(out, [f'{{"count": {row}}}' if fit else f'{{"count": "{row}"}}' for row, fit in enumerate(fits)])
    results = jobs.results(out)
    rows = results["request_row"].to_pylist() if results else []
    assert rows == [row for row, fit in enumerate(fits) if fit]
    assert [one["count"] for one in results["prediction"].to_pylist()] == rows if results else not any(fits)
    gone = jobs.letters(out)
    assert [one["source_row"] for one in gone] == [row for row, fit in enumerate(fits) if not fit]
    assert all(f'"{one["source_row"]}"' in one["message"] for one in gone)


@pytest.mark.parametrize("form", FORMS)
def test_declared_fields_in_every_form(tmp_path, form):
    """A struct in Parquet, an object in JSONL, its JSON text in CSV."""
    score(tmp_path, [FITTING], form)
    [path] = (tmp_path / "results").iterdir()
    assert path.suffix == f".{form}"
    with path.open(encoding="utf-8", newline="") as file:
        if form == "parquet":
            found = pq.read_table(path)["prediction"][0].as_py()
        elif form == "jsonl":
            found = json.loads(file.read())["prediction"]
        else:
            found = json.loads(next(csv.DictReader(file))["prediction"])
    assert found == FITTED


def test_a_type_that_json_is_not_read_as_is_an_error_of_the_job(tmp_path):
    """One line that names the key, and what to do."""
    with pytest.raises(JobError, match=r"^output\.prediction: JSON is not read as run_end_encoded.*; declare another"):
        score(tmp_path, ["{}"], prediction={"x": pa.run_end_encoded(pa.int32(), pa.string())})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("string_view", rf"output\.prediction\.x: string_view {NOT_WRITTEN}"),
        ("list<binary_view>", rf"output\.prediction\.x: list<.*binary_view> {NOT_WRITTEN}"),
        ("list_view<int64>", rf"output\.prediction\.x: list_view<.*int64> {NOT_WRITTEN}"),
        ("month_day_nano_interval", r"output\.prediction: .*month_day_nano_interval.*"),
    ],
)
def test_a_type_that_answers_are_not_read_as_is_refused_before_anything_is_written(tmp_path, form, kind, told):
    """By `plan` and `run` alike, in one line that names the key: a later run could not mend an output of it."""
    jobs.put(tmp_path / "in" / "a.parquet", jobs.flowers(2))
    keys = {"output__prediction": {"x": kind}, "output__format": form, "retry": {"attempts": 1, "outage": "1s"}}
    path = jobs.job_file(tmp_path, "http://127.0.0.1:9", **keys)
    planned, done = jobs.call("plan", path), jobs.call("run", path)
    assert planned == done
    assert (done.code, done.out) == (2, "")
    assert re.fullmatch(f"ERROR {told}\n", done.err)
    assert jobs.files(tmp_path / "out") in ([], [".lock"])


def test_a_job_with_declared_fields(tmp_path, sandbox):
    """From the job file to the results: what the service adds is dropped, what it does not say as declared is told."""
    jobs.put(tmp_path / "in" / "a.parquet", jobs.flowers(20))
    path = jobs.job_file(tmp_path, sandbox(), output__prediction={"predictresult": "string", "none": "double"})
    assert jobs.score(path).exit_code == 0
    predictions = jobs.results(tmp_path / "out")["prediction"]
    assert predictions.type == pa.struct(list(types_of({"predictresult": "string", "none": "double"}).items()))
    assert {one["none"] for one in predictions.to_pylist()} == {None}
    assert all(one["predictresult"] for one in predictions.to_pylist())
    assert jobs.proved(tmp_path / "out") == ()


def test_a_declared_field_that_no_answer_has_is_told_once(tmp_path, sandbox):
    """Absent is null, so that a slip in a name gives a column of nulls: it is scored, and said."""
    jobs.put(tmp_path / "in" / "a.parquet", jobs.flowers(20))
    jobs.put(tmp_path / "in" / "b.parquet", jobs.flowers(20))
    path = jobs.job_file(tmp_path, sandbox(), output__prediction={"predictresult": "string", "scorse": "list<double>"})
    done = jobs.command("run", path)
    assert done.code == 0, done.err
    told = "no answer so far has scorse, so output.prediction.scorse is null; see that the name is right"
    assert done.err.count("output.prediction") == done.err.count(told) == 1
