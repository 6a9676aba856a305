"""Starts without hope: the user is told at once what keeps the first rows from an answer that fits."""

from __future__ import annotations

import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pyarrow as pa
import pytest
from engine import Killed, engine, one_by_one
from service import recording, refusal, score
from test_gate import numbered, plain

from jobs import call, letters, put, receipts, results
from jobs import score as run_job
from pipeline.errors import Refused, StorageFailed
from pipeline.jsonrows import JsonRows
from pipeline.outcomes import Declared
from pipeline.progress import Progress
from pipeline.score import Scorer
from pipeline.stopping import Stopping

TYPED = {"predictresult": "string", "score": "double"}
WRONG = {"predictresult": "double", "score": "double"}


def answering(body):
    """Answer all requests with the same."""
    return lambda _: (200, {}, body)


def scored_as(*answers):
    """Answer the rows with these, in turn."""

    def answer(call):
        found = [answers[place % len(answers)] for place in call.places]
        return 200, {}, json.dumps({"data": {"resp_data": found}}).encode()

    return answer


asked, told = threading.Event(), threading.Event()
"""That a held row is asked, and that another worker was refused."""

UNREADABLE = "the answers to {} do not fit: 200 the reply cannot be read"
HOPELESS = {
    "another form": (answering(b'{"scores": [1]}'), UNREADABLE),
    "no JSON": (answering(b"<html>"), UNREADABLE),
    "two answers": (
        answering(b'{"data": {"resp_data": [{}, {}]}}'),
        "the answers to {} do not fit: 200 1 rows were sent",
    ),
    "a failing model": (lambda _: (500, {}, b'{"detail": "no"}'), "the service refuses each of {}: 500 no"),
}


@pytest.mark.parametrize(("answer", "said"), HOPELESS.values(), ids=HOPELESS)
def test_first_rows_that_fail_again_and_again_end_the_job_before_they_have_died(tmp_path, answer, said):
    """Exit 4 while each of them has attempts left; the line names the first row's place, and nothing is kept."""
    with recording(answer) as service:
        told = call("run", plain(tmp_path, service.url, retry={"attempts": 100}))
    asked = Counter(call.places[0] for call in service.calls)
    assert (told.code, set(asked)) == (4, {0, 1, 2})
    assert min(asked.values()) >= 2
    [line] = [line for line in told.err.splitlines() if line.startswith("ERROR")]
    assert said.format("the first 3 rows") in line
    assert f"(row 0 of {(tmp_path / 'in' / '0.parquet').as_uri()}, {service.url})" in line
    assert (letters(tmp_path / "out"), receipts(tmp_path / "out")) == ([], {})


def test_a_first_row_that_fails_once_is_asked_again(tmp_path):
    """One reply that does not fit may be chance: all are scored."""
    seen = Counter()

    def answer(call):
        seen[call.places[0]] += 1
        return (200, {}, b"<html>") if len(call.places) == 1 and seen[call.places[0]] == 1 else score(call)

    with recording(answer) as service:
        summary = run_job(plain(tmp_path, service.url), probe=True)
    assert (summary.exit_code, summary.scored) == (0, 40)


def test_first_rows_that_fail_again_and_again_go_on_when_another_has_its_answer(tmp_path):
    """The contract holds, so they have all attempts that are left to them."""
    seen = Counter()

    def answer(call):
        seen[call.places[0]] += 1
        return (200, {}, b"<html>") if call.places[0] < 2 and seen[call.places[0]] < 4 else score(call)

    with recording(answer) as service:
        summary = run_job(plain(tmp_path, service.url, service__limits={"rows": 1}), probe=True)
    assert (summary.exit_code, summary.scored) == (0, 40)


@pytest.mark.parametrize("rows", [1, 2])
def test_rows_that_are_too_few_to_tell_have_all_their_attempts(tmp_path, rows):
    """They end as dead letters, with each of them."""
    with recording(answering(b"<html>")) as service:
        summary = run_job(plain(tmp_path, service.url, rows=rows, retry={"attempts": 3}), probe=True)
    assert (summary.exit_code, summary.dead, summary.scored) == (3, rows, 0)
    assert [len(letter["history"]) for letter in letters(tmp_path / "out")] == [3] * rows


@pytest.mark.parametrize("limit", [1, 10])
def test_a_prediction_that_fits_no_row_ends_the_job(tmp_path, limit):
    """Exit 4 with the field, a value and its row; nothing is kept, and with the field mended all rows are scored."""
    with recording(scored_as({"predictresult": "setosa", "score": 1.0})) as service:
        job = plain(tmp_path, service.url, service__limits={"rows": limit}, output={"path": "out", "prediction": WRONG})
        told = call("run", job)
        assert (told.code, len(service.calls)) == (4, 3 if limit == 1 else 2)
        [line] = [line for line in told.err.splitlines() if line.startswith("ERROR")]
        rows = 3 if limit == 1 else 11
        assert f"the answers to the first {rows} rows do not fit output.prediction.predictresult: " in line
        assert 'predictresult is "setosa", which is no double (row 0 of ' in line
        assert "mend output.prediction.predictresult (bulkscore probe shows what fits), or score anyway" in line
        assert (letters(tmp_path / "out"), receipts(tmp_path / "out")) == ([], {})
        mended = call("run", job, "--set", "output.prediction.predictresult=string", "--changed", "rescore")
        assert (mended.code, results(tmp_path / "out").num_rows) == (0, 40)


def test_a_prediction_that_fits_no_row_is_scored_anyway_without_a_trial(tmp_path):
    """All rows are dead letters, as who asks for that wants it."""
    with recording(scored_as({"predictresult": "setosa"})) as service:
        job = plain(tmp_path, service.url, output={"path": "out", "prediction": WRONG})
        told = call("run", job, "--no-probe")
    assert (told.code, len(letters(tmp_path / "out"))) == (3, 40)


@pytest.mark.parametrize("rows", [1, 2])
def test_answers_of_rows_that_are_too_few_to_tell_are_dead_letters(tmp_path, rows):
    """Nobody waits for a third."""
    with recording(scored_as({"predictresult": "setosa"})) as service:
        job = plain(tmp_path, service.url, rows=rows, output={"path": "out", "prediction": WRONG})
        assert call("run", job).code == 3
    assert [letter["kind"] for letter in letters(tmp_path / "out")] == ["mismatch"] * rows


def test_one_answer_that_is_as_declared_shows_that_the_prediction_holds(tmp_path):
    """The two rows before it are dead letters, and all others results."""
    with recording(lambda call: scored_as({"score": "?"} if call.places[0] < 2 else {"score": 1.0})(call)) as service:
        job = plain(tmp_path, service.url, service__limits={"rows": 1}, output={"path": "out", "prediction": TYPED})
        summary = run_job(job, probe=True)
    assert (summary.exit_code, summary.scored, summary.dead) == (3, 38, 2)


def test_a_declared_field_that_no_answer_has_is_no_sign_of_a_wrong_contract(tmp_path, caplog):
    """It is null, and told once, as ever."""
    with recording(scored_as({"score": 1.0})) as service:
        job = plain(tmp_path, service.url, output={"path": "out", "prediction": {"label": "string"}})
        told = call("run", job)
    assert told.code == 0
    assert "no answer so far has label, so output.prediction.label is null" in caplog.text


def test_rows_without_a_fitting_answer_for_several_reasons_end_the_job(tmp_path):
    """One is refused, one has an answer in another form, one an answer that is not as declared."""

    def answer(call):
        place = call.places[0]
        return [refusal(400, "MR.0105"), (200, {}, b"<html>"), scored_as({"score": "?"})(call)][place % 3]

    with recording(answer) as service:
        job = plain(tmp_path, service.url, service__limits={"rows": 1}, output={"path": "out", "prediction": TYPED})
        told = call("run", job)
    assert told.code == 4
    assert "not one of the first 3 rows has an answer that fits: 400 MR.0105 no (row 0 of " in told.err
    assert receipts(tmp_path / "out") == {}


def test_what_an_earlier_run_has_scored_is_kept_where_the_contract_is_refused_later(tmp_path):
    """New files come, and the service answers in another way than it did."""
    with recording() as service:
        job = plain(tmp_path, service.url, output={"path": "out", "prediction": TYPED})
        assert call("run", job).code == 0
        kept = receipts(tmp_path / "out")
        put(tmp_path / "in" / "1.parquet", numbered(40))
        service.answer = scored_as({"predictresult": "setosa", "score": "high"})
        told = call("run", job)
    assert (told.code, receipts(tmp_path / "out")) == (4, kept)
    assert 'do not fit output.prediction.score: score is "high", which is no double (row 0 of ' in told.err


def test_a_first_file_is_told_by_its_own_uri(tmp_path):
    """Files have no rows."""
    (tmp_path / "in").mkdir()
    for number in range(4):
        (tmp_path / "in" / f"{number}.bin").write_bytes(b"x")
    with recording(answering(b"<html>")) as service:
        keys = {"service__protocol": "file", "service__options": {"field": "images"}, "service__limits": {}}
        told = call("run", plain(tmp_path, service.url, files=0, input={"path": "in/*.bin", "format": "files"}, **keys))
    assert told.code == 4
    assert f" ({(tmp_path / 'in' / '0.bin').as_uri()}, {service.url}); mend service.options.field or form" in told.err


def test_a_prediction_that_fits_no_row_is_found_by_one_of_several_workers(tmp_path):
    """The others, processes of their own, ask nobody, and see why the run ends."""
    keys = {"runner": {"workers": 3}, "output": {"path": "out", "prediction": WRONG}}
    with recording(scored_as({"predictresult": "setosa", "score": 1.0})) as service:
        done = call("run", plain(tmp_path, service.url, files=3, service__limits={"rows": 1}, **keys))
    assert (done.code, len(service.calls)) == (4, 3)
    assert "do not fit output.prediction.predictresult" in done.err
    assert (letters(tmp_path / "out"), receipts(tmp_path / "out")) == ([], {})


@pytest.fixture
def impatient(monkeypatch):
    """Let workers wait for no other one that tries the service first, as they do when it takes too long."""
    monkeypatch.setattr("pipeline.score.TRIAL_SECONDS", -1e9)


@contextmanager
def workers(job, order, count):
    """Open the scorers of several workers."""
    made = [Scorer(job, order, stopping=Stopping(), progress=Progress()) for _ in range(count)]
    yield made
    for one in made:
        one.close()


def before(job, order, work):
    """A worker commits the death of its only row, and ends; then another one is refused."""
    with workers(job, order, 2) as (short, refused):
        assert [receipt.dead for receipt in short.score(work[0])] == [1]
        for one in work[1:]:
            refused.score(one)
    assert isinstance(refused.stopping.reason, Refused)


def after(job, order, work):
    """A worker asks its only row; another one is refused; only then the row is answered, and its death committed."""
    with workers(job, order, 2) as (short, refused), ThreadPoolExecutor(1) as pool:
        ended = pool.submit(short.score, work[0])
        asked.wait(60)
        for one in work[1:]:
            refused.score(one)
        assert isinstance(refused.stopping.reason, Refused)
        told.set()
        assert [receipt.dead for receipt in ended.result()] == [1]


def lost(job, order, work):
    """The runner fails when a worker was refused."""
    before(job, order, work)
    raise StorageFailed("the runner is gone")


def killed(job, order, work):
    """The run is killed when a worker was refused."""
    before(job, order, work)
    raise Killed


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("pipeline", [before, after, lost, killed])
def test_letters_of_any_worker_are_taken_back_where_nobody_was_ever_answered(tmp_path, pipeline):
    """Whichever order they come in, and whatever ends the run: with the contract mended all rows are scored."""
    asked.clear()
    told.clear()

    def answer(_):
        if pipeline is after and not asked.is_set():  # the first request of all
            asked.set()
            told.wait(60)
        return refusal(400, "MR.0105")

    keys = {"runner": {"name": "flink", "workers": 2}, "service__limits": {"rows": 1}}
    with recording(answer) as service:
        job = plain(tmp_path, service.url, rows=1, files=5, **keys)
        with engine(pipeline), suppress(Killed):
            assert run_job(job, probe=True).exit_code == (6 if pipeline is lost else 4)
            assert (letters(tmp_path / "out"), receipts(tmp_path / "out")) == ([], {})
        service.answer = score
        with engine(one_by_one):
            summary = run_job(job, probe=True)
    assert (summary.exit_code, summary.scored, summary.dead) == (0, 5, 0)


def test_letters_are_kept_where_another_row_had_its_answer(tmp_path):
    """The contract held before the service was stopped."""

    def answer(call):
        asked_before = len(service.calls) - 1
        return [refusal(400, "MR.0105"), score(call), refusal(403, "APIG.0302")][min(asked_before, 2)]

    with recording(answer) as service:
        job = plain(tmp_path, service.url, rows=1, files=4, service__limits={"rows": 1})
        with engine(one_by_one):
            summary = run_job(job, probe=True)
    assert (summary.exit_code, summary.scored, summary.dead, summary.left) == (4, 1, 1, 2)


def judged(prediction, *texts, promised=()):
    """Return what is said of answers."""
    kinds = {name: pa.type_for_alias(kind) for name, kind in prediction.items()}
    return Declared(kinds, JsonRows(kinds, loose=False, promised=promised)).unfit(pa.array(texts))


@pytest.mark.parametrize(
    ("texts", "key", "why"),
    [
        (['{"a": "x", "b": 1}'], "output.prediction.a", 'a is "x", which is no double'),
        (['{"a": 1, "b": "x"}', "7"], "output.prediction.b", 'b is "x", which is no int64'),
        (['{"a": "x", "b": "x"}'], "output.prediction.a", 'a is "x", which is no double'),
        (["[1]", '{"a": "x"}'], "output.prediction", "[1] is not an object"),
        (["null"], "output.prediction", "null is not an object"),
    ],
)
def test_the_first_answer_says_which_field_does_not_fit(texts, key, why):
    """Of an answer that is no object it is none of them."""
    found = judged({"a": "double", "b": "int64"}, *texts)
    assert (found.said, found.why) == (f"the answers to {{}} do not fit {key}", why)
    assert found.mend.startswith(f"{key} ")


def test_an_answer_without_any_field_that_is_promised_fits_none_of_them():
    """Its fields are null, which each of them may be."""
    found = judged({"a": "double"}, '{"b": 1}', promised=["a"])
    assert (found.said, found.why) == ("the answers to {} do not fit output.prediction", "it has none of a")


@pytest.mark.parametrize("texts", [['{"a": 1}'], ['{"b": "x"}'], ['{"a": "x"}', '{"a": 1}'], ['{"a": null}']])
def test_one_answer_that_fits_is_enough(texts):
    """A field that is absent is null, and fits."""
    assert judged({"a": "double"}, *texts) is None
