"""The start: the first rows one at a time, and what follows from their answers."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest
from schedules import Every
from service import recording, refusal, score

from jobs import PASSWORD, SEND, call, files, job_file, letters, loaded, put, receipts, until
from jobs import score as run_job
from pipeline.errors import Refused
from pipeline.gate import Case, Gate, Place, Unfit
from pipeline.gather import draft
from pipeline.ledger import Planned, read_stop
from pipeline.plan import remaining
from pipeline.progress import Progress
from pipeline.score import Scorer
from pipeline.status import Action
from pipeline.stopping import Stopping
from pipeline.storage import Store
from pipeline.trial import FOLDER, Trial
from schemas.plan import Order

REFUSED = Case(Unfit("the service refuses each of {}", "400 no", "input.send"), Place("in", 0), "url")
UNFIT = Case(Unfit("the answers to {} do not fit", "200 no", "input.send"), Place("in", 1), "url")


def numbered(rows):
    """Return rows whose `sepal_length` is the row's number."""
    return pa.table({name: [float(row) for row in range(rows)] for name in SEND})


def plain(folder, url, *, rows=40, files=1, **keys):
    """Write an input and a job that needs no credentials, ten rows a request."""
    for number in range(files):
        put(folder / "in" / f"{number}.parquet", numbered(rows))
    keys = {"service__auth": {"type": "none"}, "input": {"path": "in/*.parquet", "send": SEND}, **keys}
    return job_file(folder, "", service__url=url, **keys)


def refusing(*places, status=400, code="MR.0105"):
    """Refuse requests that hold one of these rows."""
    return lambda call: refusal(status, code) if set(places) & set(call.places) else score(call)


def test_a_shut_gate_lets_one_through_and_another_where_that_one_waits():
    """At most three rows in all, until one has its answer."""
    gate = Gate(is_open=False)
    assert gate.admits(0, 0)
    assert not gate.admits(1, 0)
    assert gate.admits(1, 1)
    assert gate.admits(2, 2)
    assert not gate.admits(3, 3)
    gate.ended(["a"], REFUSED)
    assert gate.admits(1, 1)
    assert not gate.admits(2, 2)
    gate.ended(["b"], REFUSED)
    told = r"each of the first 3 rows: 400 no \(row 0 of in, url\); mend input.send, or.*--no-probe"
    with pytest.raises(Refused, match=told):
        gate.ended(["c"], REFUSED)
    assert gate.admits(5, 0), "nobody waits for a job that is refused"


def test_an_open_gate_is_open_whatever_dies():
    """Rows that are refused later on are bad rows."""
    gate = Gate(is_open=True)
    gate.ended(map(str, range(100)), REFUSED)
    for _ in range(100):
        gate.failed("a", Action.MISFIT, UNFIT)
    assert gate.admits(100, 0)


@pytest.mark.parametrize(("action", "often"), [(Action.MISFIT, 2), (Action.RETRY, 5)])
def test_rows_that_fail_again_and_again_are_judged_before_they_have_died(action, often):
    """Each counts once, however often it fails: three are needed, and room for them is left."""
    gate = Gate(is_open=False)
    for row in "ab":
        for _ in range(often + 3):
            gate.failed(row, action, UNFIT)
        gate.ended([row], UNFIT)
    assert gate.admits(0, 0)
    for _ in range(often - 1):
        gate.failed("c", action, UNFIT)
    with pytest.raises(Refused, match="the answers to the first 3 rows do not fit: 200 no"):
        gate.failed("c", action, UNFIT)


def test_a_row_that_is_judged_while_it_rests_leaves_its_room_to_others():
    """Else the third row would wait until it dies."""
    gate = Gate(is_open=False)
    for _ in range(2):
        gate.failed("a", Action.MISFIT, UNFIT)
    assert gate.admits(2, 2)


def unlucky(schedule, rows):
    """Let so many rows fail for their content in any order; each is asked twice, and may die then, or be asked on.

    Returns how many have begun, and why the job is refused, if it is.
    """
    gate, failures, dead = Gate(is_open=False), [], set()
    try:
        while True:
            under_way = [row for row in range(len(failures)) if row not in dead]
            begins = len(failures) < rows and gate.admits(len(under_way), len(under_way))
            steps = [(row, end) for row in under_way for end in (False, True) if failures[row] < 3 or end]
            if not steps and not begins:
                return len(failures), None
            schedule.at((tuple(failures), frozenset(dead)))
            chosen = schedule.choose(len(steps) + begins)
            if chosen == len(steps):
                failures.append(0)
                continue
            row, end = steps[chosen]
            failures[row] += 1
            gate.failed(str(row), Action.MISFIT, UNFIT)
            if end:
                dead.add(row)
                gate.ended([str(row)], UNFIT)
    except Refused as error:
        return len(failures), error


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_in_whatever_order_first_rows_fail_three_end_the_job_and_fewer_do_not(rows):
    """No order leaves the third row outside, and none lets a fourth one in."""
    ends = set()

    def scenario(schedule):
        begun, error = unlucky(schedule, rows)
        ends.add((begun, error is not None))

    Every().play(scenario)
    assert ends == {(min(rows, 3), rows >= 3)}


def test_first_rows_that_fail_for_several_reasons_are_told_by_the_first_in_the_input():
    """No matter which was heard first, and what is said of all is true of all."""
    gate = Gate(is_open=False)
    gate.ended(["c"], REFUSED._replace(place=Place("in", 10)))
    gate.ended(["b"], REFUSED._replace(place=Place("in", 9)))
    with pytest.raises(
        Refused, match=r"^not one of the first 3 rows has an answer that fits: 200 no \(row 2 of in, url"
    ):
        gate.ended(["a"], UNFIT._replace(place=Place("in", 2)))


def test_a_shut_gate_counts_for_how_long_the_model_is_said_to_be_absent():
    """In a row: whatever else is said, somebody is starting there."""
    gate = Gate(is_open=False)
    assert [gate.absent(now) for now in (100.0, 130.0)] == [0.0, 30.0]
    gate.present()
    assert [gate.absent(now) for now in (140.0, 200.0)] == [0.0, 60.0]


def test_an_open_gate_waits_for_an_absent_model():
    """It was there before."""
    gate = Gate(is_open=True)
    assert [gate.absent(now) for now in (100.0, 10_000.0)] == [0.0, 0.0]


def test_until_the_first_answer_nobody_else_asks(tmp_path):
    """Three splits are there from the beginning; two of them wait for the first request of the third."""
    first = threading.Event()

    def answer(call):
        first.wait(20)
        return score(call)

    with recording(answer) as service, ThreadPoolExecutor(1) as pool:
        run = pool.submit(run_job, plain(tmp_path, service.url, files=3), probe=True)
        until(lambda: service.in_flight == 1)
        time.sleep(0.3)  # what must not happen has had time to
        assert len(service.calls) == 1
        first.set()
        assert run.result().exit_code == 0


@pytest.mark.parametrize("limit", [1, 10])
def test_first_rows_that_are_all_refused_end_the_job(tmp_path, limit):
    """Exit 4 after a few requests, with the service's words and the mend; no dead letter is made of it."""
    with recording(refusing(*range(40))) as service:
        job = plain(tmp_path, service.url, service__limits={"rows": limit})
        told = call("run", job)
    assert told.code == 4
    [line] = [line for line in told.err.splitlines() if line.startswith("ERROR")]
    assert "refuses each of the first 3 rows: 400 MR.0105 no" in line
    assert "mend input.send, input.rename or service.options, or score anyway with --no-probe" in line
    assert len(service.calls) <= 3 if limit == 1 else 30
    assert (letters(tmp_path / "out"), receipts(tmp_path / "out")) == ([], {})


def test_no_probe_scores_anyway(tmp_path):
    """Whoever knows that the first rows are bad."""
    with recording(refusing(0, 1, 2, 3, 4)) as service:
        told = call("run", plain(tmp_path, service.url, service__limits={"rows": 1}), "--no-probe")
    assert told.code == 3
    assert [letter["source_row"] for letter in letters(tmp_path / "out")] == [0, 1, 2, 3, 4]


def test_two_bad_rows_at_the_start_are_two_bad_rows(tmp_path):
    """The third one has its answer: the contract holds."""
    with recording(refusing(0, 1)) as service:
        summary = run_job(plain(tmp_path, service.url, service__limits={"rows": 1}), probe=True)
    assert (summary.exit_code, summary.scored, summary.dead) == (3, 38, 2)


def test_letters_of_short_files_before_a_refused_contract_are_taken_back(tmp_path):
    """Two files of one row are done before the third one tells: neither they nor their letters are kept."""
    with recording(refusing(*range(40))) as service:
        job = plain(tmp_path, service.url, rows=1, files=5, service__limits={"rows": 1})
        told = call("run", job)
    assert told.code == 4
    assert (letters(tmp_path / "out"), receipts(tmp_path / "out")) == ([], {})
    with recording() as service:
        assert call("run", job, "--set", f"service.url={service.url}").code == 0
        assert len(service.calls) == 5


@pytest.mark.parametrize("rows", [1, 2])
def test_an_input_of_a_row_or_two_that_are_refused_ends_with_dead_letters(tmp_path, rows):
    """They are too few to tell, and nobody waits for a third."""
    with recording(refusing(0, 1)) as service:
        summary = run_job(plain(tmp_path, service.url, rows=rows, service__limits={"rows": 1}), probe=True)
    assert (summary.exit_code, summary.dead) == (3, rows)


def test_a_first_row_that_the_model_fails_on_keeps_no_other_waiting(tmp_path):
    """While it waits for its next attempts the second row is tried."""
    with recording(refusing(0, status=500, code="")) as service:
        job = plain(tmp_path, service.url, service__limits={"rows": 1}, retry={"attempts": 6})
        summary = run_job(job, probe=True)
    assert (summary.exit_code, summary.scored, summary.dead) == (3, 39, 1)
    asked = [call.places[0] for call in service.calls]
    assert asked[0] == 0
    assert asked.index(39) < len(asked) - 1 - asked[::-1].index(0), "all others were done before it died"


def test_one_worker_tries_and_the_others_wait_for_it(tmp_path):
    """The first name is the one who tries; its answer opens the gate for the others, and for who comes later."""
    store = Store(str(tmp_path))
    one, other = Trial(store, "run"), Trial(store, "run")
    assert one.mine
    assert not other.mine
    assert one.mine
    assert Trial(store, "another run").mine
    assert not other.is_over
    one.end()
    assert other.is_over
    assert not Trial(store, "another run").is_over


def scorers(folder, url, count):
    """Open the scorers of several workers of one job, each with its share of the work."""
    job = loaded(plain(folder, url, files=count, runner={"name": "flink", "workers": count}))
    plan = draft(job, Store(job.output.path), Planned([]), "plan").plan
    work = remaining({source.number: source for source in plan.sources}, plan.splits, [])
    order = Order("run")
    made = [Scorer(job, order, stopping=Stopping(), progress=Progress()) for _ in range(count)]
    return made, [[one for one in work if one.source.number == number] for number in range(count)]


def test_a_wrong_key_is_tried_once_by_all_workers_together(tmp_path, monkeypatch):
    """The others see `stop.json` before they ask."""
    monkeypatch.setenv("DEMO_PASSWORD", PASSWORD["DEMO_PASSWORD"])
    with recording(lambda _: refusal(403, "APIG.0302")) as service:
        made, work = scorers(tmp_path, service.url, 4)
        with ThreadPoolExecutor(4) as pool:
            ended = [
                pool.submit(lambda one, its: [one.score(part) for part in its], *pair)
                for pair in zip(made, work, strict=True)
            ]
            assert [part for one in ended for part in one.result() if part] == []
        for one in made:
            one.close()
    assert len(service.calls) == 1
    assert all(isinstance(one.stopping.reason, Refused) for one in made)


@pytest.mark.parametrize("end", ["contract", "requests"])
def test_what_ends_one_worker_is_told_to_all(tmp_path, end):
    """A refused contract and the last request are in `stop.json`, with their exit codes."""
    answer, order = (refusing(*range(40)), Order("run")) if end == "contract" else (score, Order("run", max_requests=1))
    with recording(answer) as service:
        job = loaded(plain(tmp_path, service.url, service__limits={"rows": 1}))
        plan = draft(job, Store(job.output.path), Planned([]), "plan").plan
        scorer = Scorer(job, order, stopping=Stopping(), progress=Progress())
        for work in remaining({source.number: source for source in plan.sources}, plan.splits, []):
            scorer.score(work)
        scorer.close()
    assert read_stop(scorer.store, "run").exit_code == (4 if end == "contract" else 6)


def test_the_first_answer_opens_the_gate_for_all_workers(tmp_path):
    """All rows are scored, and the first of all requests was alone."""
    with recording() as service:
        made, work = scorers(tmp_path, service.url, 3)
        with ThreadPoolExecutor(3) as pool:
            ended = [
                pool.submit(lambda one, its: [one.score(part) for part in its], *pair)
                for pair in zip(made, work, strict=True)
            ]
            covered = [receipt.scored for one in ended for part in one.result() for receipt in part]
        for one in made:
            one.close()
        assert sum(covered) == 120
        first, second = service.calls[:2]
        assert second.arrived >= first.left


def test_nothing_of_a_trial_is_left_behind(tmp_path):
    """Neither a run's own names, nor those of one that was killed."""
    with recording() as service:
        job = plain(tmp_path, service.url)
        assert run_job(job).exit_code == 0
        Store(str(tmp_path / "out")).write(f"{FOLDER}/20260101T000000-abcdef-1", b"")
        assert run_job(job).exit_code == 0
    assert not [name for name in files(tmp_path / "out") if name.startswith(FOLDER)]
