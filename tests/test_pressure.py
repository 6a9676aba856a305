"""A service that asks for time, answers nobody, or refuses nearly all: what a run does, in requests and rows."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest
from service import recording, refusal, score

from jobs import SEND, call, job_file, letters, proved, put, receipts, until
from jobs import score as run_job


def numbered(rows):
    """Return rows whose `sepal_length` is the row's number."""
    return pa.table({name: [float(row) for row in range(rows)] for name in SEND})


def plain(folder, url, *, rows, **keys):
    """Write an input and a job that needs no credentials, one row a request unless told otherwise."""
    put(folder / "in" / "rows.parquet", numbered(rows))
    keys = {
        "service__auth": {"type": "none"},
        "service__limits": {"rows": 1},
        "input": {"path": "in/*.parquet", "send": SEND},
        **keys,
    }
    return job_file(folder, "", service__url=url, **keys)


def test_retry_after_holds_for_everybody(tmp_path):
    """One request is told to wait two seconds: nobody asks in that time, and all is scored after it."""
    asked = []

    def answer(call):
        if 30 in call.places and not asked:
            asked.append(call)
            return refusal(429, "APIG.0308", Retry_After="2")
        return score(call)

    with recording(answer) as service:
        assert run_job(plain(tmp_path, service.url, rows=200)).exit_code == 0
    [told] = asked
    at_once = [call for call in service.calls if told.left < call.arrived < told.left + 0.2]
    held = [call for call in service.calls if told.left + 0.2 <= call.arrived < told.left + 1.8]
    assert held == [], f"asked in the meantime, beside {len(at_once)} that were on their way"


def test_while_nobody_is_answered_few_ask_and_the_first_answer_lets_all_go_on(tmp_path, caplog):
    """An outage in the middle of a run: probes one at a time, nothing dead, and at once on when it is over."""
    gone, back = threading.Event(), threading.Event()

    def answer(call):
        if call.places == [100]:
            gone.set()
        return refusal(502, "APIG.0202") if gone.is_set() and not back.is_set() else score(call)

    with recording(answer) as service, ThreadPoolExecutor(1) as pool:
        run = pool.submit(run_job, plain(tmp_path, service.url, rows=400))
        assert gone.wait(30)
        began = service.calls[-1].arrived
        until(lambda: service.calls[-1].arrived > began + 9)
        late = [call for call in service.calls if call.arrived > began + 7]
        assert len(late) <= 5, "probes are gentle"
        back.set()
        summary = run.result(timeout=60)
    assert (summary.exit_code, summary.scored, summary.dead) == (0, 400, 0)
    assert caplog.text.count("nobody is answered (502 ") == caplog.text.count("the service answers again") == 1
    assert proved(tmp_path / "out") == ()


def test_a_service_that_stays_out_ends_the_run_without_dead_letters(tmp_path):
    """Exit 6 after `retry.outage`, in the service's words; the same command goes on where it stood."""
    gone = threading.Event()

    def answer(call):
        if call.places == [50]:
            gone.set()
        return refusal(503, "APIG.0202") if gone.is_set() else score(call)

    with recording(answer) as service:
        job = plain(tmp_path, service.url, rows=100, retry={"outage": "3s"})
        told = call("run", job)
        assert told.code == 6
        assert "longer than retry.outage (3 s): 503 APIG.0202" in told.err
        assert letters(tmp_path / "out") == []
        done = sum(one["scored"] for one in receipts(tmp_path / "out").values())
        assert done >= 10
        service.answer = score
        before = len(service.calls)
        assert call("run", job).code == 0
        assert len(service.calls) - before == 100 - done


@pytest.mark.parametrize(("most", "rows"), [(1, 30), (17, 30)])
def test_max_requests_is_never_exceeded(tmp_path, most, rows):
    """Exit 6, what was asked is committed, and the same command goes on from there."""
    with recording() as service:
        job = plain(tmp_path, service.url, rows=rows)
        told = call("run", job, "--max-requests", most)
        assert told.code == 6
        assert "--max-requests is reached; the same command goes on from here" in told.err
        assert len(service.calls) == most
        assert sum(one["scored"] for one in receipts(tmp_path / "out").values()) == most
        assert call("run", job).code == 0
        assert len(service.calls) == rows


def test_max_requests_that_are_enough_change_nothing(tmp_path):
    """Exactly as many as there are."""
    with recording() as service:
        assert run_job(plain(tmp_path, service.url, rows=20), max_requests=20).exit_code == 0


def test_fewer_requests_than_workers_are_refused(tmp_path):
    """Each worker has its share of them, at least one."""
    job = plain(tmp_path, "http://127.0.0.1:9", rows=1, runner={"name": "flink", "workers": 4})
    told = call("run", job, "--max-requests", "3")
    assert (told.code, told.err) == (2, "ERROR --max-requests 3 is less than runner.workers (4)\n")


def bad_from(first):
    """Refuse all rows from one on."""
    return lambda call: refusal(400, "MR.0105") if max(call.places) >= first else score(call)


@pytest.mark.parametrize("allow", [0, 100, "1%"])
def test_a_run_clearly_past_its_allowance_ends_early(tmp_path, allow):
    """More dead letters than allowed, and more than half of a thousand rows: exit 3, and most rows are not asked."""
    with recording(bad_from(10)) as service:
        job = plain(tmp_path, service.url, rows=10_000, errors={"allow": allow})
        told = call("run", job)
    assert told.code == 3
    assert "stopped early: " in told.err
    assert f"rows are dead letters, and errors.allow is {allow}; " in told.err
    assert " rejected (400, MR.0105), such as 'no'; see why in file://" in told.err
    dead = len(letters(tmp_path / "out"))
    assert 990 <= dead < 5_000


def test_a_run_that_allows_them_goes_on(tmp_path):
    """Half of all rows may die, and do."""
    with recording(bad_from(600)) as service:
        summary = run_job(plain(tmp_path, service.url, rows=1200, errors={"allow": "50%"}))
    assert (summary.exit_code, summary.dead, summary.left) == (0, 600, 0)


def test_bad_rows_that_are_fewer_than_half_do_not_end_a_run(tmp_path):
    """Past the allowance, but not clearly: the run is done, and exit 3 says what came of it."""
    with recording(bad_from(1000)) as service:
        summary = run_job(plain(tmp_path, service.url, rows=1400))
    assert (summary.exit_code, summary.dead, summary.left) == (3, 400, 0)


@pytest.mark.parametrize(("status", "kind"), [(500, "exhausted"), (200, "mismatch")])
def test_the_last_rows_that_fail_together_die_and_do_not_wait_for_an_outage(tmp_path, status, kind):
    """Two rows are left, and the model fails on both: there is nobody else to compare them with."""

    def answer(call):
        if call.places in ([3], [7]):
            return (200, {}, b'{"data": {"resp_data": []}}') if status == 200 else refusal(500, "")
        return score(call)

    with recording(answer) as service:
        job = plain(tmp_path, service.url, rows=10, retry={"attempts": 3, "outage": "60s"})
        summary = run_job(job)
    assert (summary.exit_code, summary.scored, summary.dead) == (3, 8, 2)
    assert {letter["kind"] for letter in letters(tmp_path / "out")} == {kind}


def test_rows_on_which_the_model_fails_are_told_from_an_outage_by_their_halves(tmp_path):
    """Nothing is left but a request that the model answers with 500: its good half shows which row it is."""

    def answer(call):
        return refusal(500, "") if 13 in call.places else score(call)

    with recording(answer) as service:
        job = plain(
            tmp_path, service.url, rows=16, service__limits={"rows": 16}, retry={"attempts": 2, "outage": "60s"}
        )
        summary = run_job(job)
    assert (summary.exit_code, summary.scored, summary.dead) == (3, 15, 1)
    assert [letter["source_row"] for letter in letters(tmp_path / "out")] == [13]
