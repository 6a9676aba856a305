"""One split from its rows to its receipts, without Beam: what is committed, whatever happens on the way."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count

import pyarrow as pa
import pytest
from service import recording, refusal, score

from jobs import PASSWORD, SEND, files, flowers, job_file, letters, loaded, put, receipts, results, stats, until
from jobs import score as run_job
from pipeline import course, read_csv, records, write
from pipeline.errors import JobError, Refused, StorageFailed
from pipeline.gather import draft
from pipeline.ledger import Planned, read_stop
from pipeline.plan import remaining
from pipeline.progress import Progress
from pipeline.score import Scorer, _Turns
from pipeline.stopping import Stopping
from pipeline.storage import Store
from pipeline.write import RangeWriter
from schemas.plan import NO_END, Order

RUN = "run-1"


@pytest.fixture(autouse=True)
def _password(monkeypatch):
    monkeypatch.setenv("DEMO_PASSWORD", PASSWORD["DEMO_PASSWORD"])


def numbered(start, rows):
    """Return rows whose `sepal_length` is the row's number."""
    return pa.table({name: [float(start + row) for row in range(rows)] for name in SEND})


def plain(folder, url, **keys):
    """Load a job that needs no credentials, ten rows a request unless told otherwise."""
    keys = {
        "service__auth": {"type": "none"},
        "retry__outage": "20s",
        "input": {"path": "in/*.parquet", "send": SEND},
        **keys,
    }
    return loaded(job_file(folder, "", service__url=url, **keys))


def work_of(job):
    """Plan a job; return what is to be done, in order."""
    plan = draft(job, Store(job.output.path), Planned([]), "plan").plan
    return remaining({source.number: source for source in plan.sources}, plan.splits, [])


@contextmanager
def scoring(job, *, run=RUN):
    """Open a scorer; at the end all that it reserved must be given back."""
    scorer = Scorer(job, Order(run, probe=False), stopping=Stopping(), progress=Progress())
    try:
        yield scorer
    finally:
        scorer.stopping.stop()
        scorer.close()
    caller = scorer._caller
    assert (caller._costs, caller._budget._held) == ({}, 0), "a reservation was not given back"
    assert (caller._places._window.in_flight, caller._under_way) == (0, 0)


def ranges(found):
    """Return the rows that receipts cover."""
    return sorted((one.start, one.stop) for one in found)


def scored_rows(out):
    """Return the rows that have results, in the order of the output."""
    table = results(out)
    return table["source_row"].to_pylist() if table else []


def test_a_split_is_scored_and_committed(tmp_path):
    """One receipt covers it; each result has its own row's answer, and says which request it was in."""
    put(tmp_path / "in" / "rows.parquet", numbered(0, 95))
    with recording() as service, scoring(plain(tmp_path, service.url)) as scorer:
        [receipt] = scorer.score(work_of(scorer.job)[0])
        counted = scorer.progress.read()
    assert (receipt.start, receipt.stop, receipt.scored, receipt.dead, receipt.end) == (0, 95, 95, 0, True)
    assert (receipt.requests, receipt.run, len(service.calls)) == (10, RUN, 10)
    rows = results(tmp_path / "out").to_pylist()
    assert [row["source_row"] for row in rows] == list(range(95))
    assert [row["request_row"] for row in rows] == [number % 10 for number in range(95)]
    assert all(f'"score": {row["source_row"]}.0' in row["prediction"] for row in rows)
    assert {call.headers["X-Request-Id"] for call in service.calls} == {row["request_uuid"] for row in rows}
    assert (counted["rows"], counted["requests"], counted["in_flight"], counted["receipts"]) == (95, 10, 0, 1)


def test_a_part_of_a_source_is_scored_alone(tmp_path):
    """Rows outside the range are not asked, and the receipt does not end the source."""
    put(tmp_path / "in" / "rows.parquet", numbered(0, 100))
    with recording() as service, scoring(plain(tmp_path, service.url)) as scorer:
        [work] = work_of(scorer.job)
        [receipt] = scorer.score(type(work)(work.source, 33, 66))
    assert (receipt.start, receipt.stop, receipt.end) == (33, 66, False)
    assert sorted(place for call in service.calls for place in call.places) == list(range(33, 66))


def test_what_receipts_cover_is_not_asked_again(tmp_path):
    """A range in the middle is done: the holes on both sides are scored, each with its own receipt."""
    put(tmp_path / "in" / "rows.parquet", numbered(0, 100))
    with recording() as service, scoring(plain(tmp_path, service.url)) as scorer:
        [work] = work_of(scorer.job)
        scorer.score(type(work)(work.source, 40, 60))
        assert ranges(scorer.score(work)) == [(0, 40), (60, 100)]
        assert scorer.score(work) == []
    assert sorted(place for call in service.calls for place in call.places) == list(range(100))
    assert scored_rows(tmp_path / "out") == list(range(100))


def test_what_is_done_on_both_sides_of_a_gap_is_committed(tmp_path):
    """Told to stop while one request waits to be tried again, a split keeps what it has before and behind it."""
    put(tmp_path / "in" / "rows.parquet", numbered(0, 50))

    def answer(call):
        return refusal(503, "ModelArts.4700") if 20 in call.places else score(call)

    with recording(answer) as service, scoring(plain(tmp_path, service.url)) as scorer, ThreadPoolExecutor(1) as split:
        ended = split.submit(scorer.score, work_of(scorer.job)[0])
        until(lambda: service.answered >= 5 and scorer._caller._under_way == scorer._caller._resting == 1)
        scorer.stopping.stop()
        assert ranges(ended.result(timeout=20)) == [(0, 20), (30, 50)]
    assert scored_rows(tmp_path / "out") == [*range(20), *range(30, 50)]
    assert letters(tmp_path / "out") == []
    with recording() as service, scoring(plain(tmp_path, service.url), run="run-2") as scorer:
        assert ranges(scorer.score(work_of(scorer.job)[0])) == [(20, 30)]
    assert [call.places for call in service.calls] == [list(range(20, 30))]
    assert scored_rows(tmp_path / "out") == list(range(50))


def test_a_request_long_in_trouble_keeps_nothing_from_being_committed(tmp_path, monkeypatch):
    """It is set aside: what was answered before and behind it has its receipts, and so has it in the end."""
    monkeypatch.setattr(course, "ASIDE_SECONDS", 0.0)
    monkeypatch.setattr(write, "OBJECT_SECONDS", 0.0)
    put(tmp_path / "in" / "rows.parquet", numbered(0, 50))
    back = threading.Event()

    def answer(call):
        return score(call) if back.is_set() or 10 not in call.places else refusal(502, "APIG.0202")

    out = tmp_path / "out"
    with recording(answer) as service, scoring(plain(tmp_path, service.url)) as scorer, ThreadPoolExecutor(1) as split:
        ended = split.submit(scorer.score, work_of(scorer.job)[0])
        until(lambda: sum(one["scored"] for one in receipts(out).values()) >= 30)
        assert not ended.done()
        back.set()
        found = ranges(ended.result(timeout=60))
    assert (10, 20) in found
    assert sum(stop - start for start, stop in found) == 50
    assert sorted(scored_rows(out)) == list(range(50))


def test_a_refusal_met_by_one_split_ends_the_others(tmp_path):
    """One split is told that the service is gone, another one waits for minutes: both are back at once."""
    for part in range(2):
        put(tmp_path / "in" / f"{part}.parquet", numbered(part * 20, 20))
    backing_off = threading.Event()

    def answer(call):
        if 0 in call.places:
            return refusal(503, "ModelArts.4700")
        if 20 in call.places:
            backing_off.wait(20)
            return refusal(404, "APIG.0101")
        return score(call)

    with recording(answer) as service, scoring(plain(tmp_path, service.url)) as scorer, ThreadPoolExecutor(2) as splits:
        ended = [splits.submit(scorer.score, work) for work in work_of(scorer.job)]
        until(lambda: scorer._caller._resting >= 1)
        backing_off.set()
        found = [future.result(timeout=20) for future in ended]
        assert isinstance(scorer.stopping.reason, Refused)
    stop = read_stop(Store(str(tmp_path / "out")), RUN)
    assert (type(stop), "404" in str(stop)) == (Refused, True)
    covered = sorted((receipt.source, receipt.start, receipt.stop) for part in found for receipt in part)
    assert set(covered) <= {(0, 10, 20), (1, 10, 20)}, "a range was committed that holds unanswered rows"


def test_a_stop_of_another_worker_is_seen_before_anything_is_asked(tmp_path):
    """`stop.json` of the same run holds; one of another run does not."""
    put(tmp_path / "in" / "rows.parquet", numbered(0, 20))
    with recording() as service:
        job = plain(tmp_path, service.url)
        with scoring(job) as scorer:
            scorer._stop(Refused("no"))
        with scoring(job) as scorer:
            assert scorer.score(work_of(job)[0]) == []
            assert isinstance(scorer.stopping.reason, Refused)
        assert service.calls == []
        with scoring(job, run="run-2") as scorer:
            assert ranges(scorer.score(work_of(job)[0])) == [(0, 20)]


@pytest.mark.parametrize("method", ["add", "close"])
@pytest.mark.parametrize("error", [StorageFailed("the disk is full"), ZeroDivisionError("a defect")])
def test_a_writer_that_fails_ends_the_run_and_gives_everything_back(tmp_path, monkeypatch, method, error):
    """Storage that fails is a reason to stop; a defect comes through. Neither leaves a place taken or a receipt."""
    put(tmp_path / "in" / "rows.parquet", numbered(0, 500))
    before = getattr(RangeWriter, method)
    calls = []

    def fails(self, *arguments, **keys):
        calls.append(arguments)
        if method == "close" or len(calls) == 3:
            raise error
        return before(self, *arguments, **keys)

    monkeypatch.setattr(RangeWriter, method, fails)
    with recording() as service, scoring(plain(tmp_path, service.url)) as scorer:
        work = work_of(scorer.job)[0]
        if isinstance(error, StorageFailed):
            assert scorer.score(work) == []
            assert scorer.stopping.reason is error
        else:
            with pytest.raises(ZeroDivisionError):
                scorer.score(work)
        assert scorer.stopping, "others go on"
    assert receipts(tmp_path / "out") == {}
    assert files(tmp_path / "out" / "results") == [], "a draft was left"


def test_a_source_that_vanished_ends_the_run_with_its_name(tmp_path):
    """Nothing of it is asked, and the reason says which it was."""
    put(tmp_path / "in" / "rows.parquet", numbered(0, 20))
    with recording() as service, scoring(plain(tmp_path, service.url)) as scorer:
        [work] = work_of(scorer.job)
        (tmp_path / "in" / "rows.parquet").unlink()
        assert scorer.score(work) == []
        assert service.calls == []
    assert isinstance(scorer.stopping.reason, StorageFailed)
    assert "rows.parquet" in str(scorer.stopping.reason)


def failing_once(reads):
    """Return what opens files, and fails at one of the reads: only at that one."""
    done, real = count(1), read_csv.open_stream

    class Failing:
        def __init__(self, uri):
            self.stream = real(uri)

        def read(self, size):
            if next(done) == reads:
                raise OSError(5, "Input/output error")
            return self.stream.read(size)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.stream.close()

    return Failing


def test_a_read_that_fails_in_one_split_is_no_end_for_another(tmp_path, monkeypatch):
    """While one split waits for its answers the other one goes on in the file, which has not ended: it is read anew."""
    monkeypatch.setattr(records, "BLOCK", 100)
    path = tmp_path / "in" / "rows.csv"
    path.parent.mkdir()
    path.write_text(f"{','.join(SEND)}\n" + "".join(f"{row},0,0,0\n" for row in range(100)))
    answered = threading.Event()

    def answer(call):
        answered.wait(20)
        return score(call)

    keys = {"input": {"path": "in/*.csv", "send": SEND, "columns": dict.fromkeys(SEND, "double")}}
    with recording(answer) as service, scoring(plain(tmp_path, service.url, **keys)) as scorer:
        [work] = work_of(scorer.job)
        monkeypatch.setattr(read_csv, "open_stream", failing_once(4))
        with ThreadPoolExecutor(2) as splits:
            first = splits.submit(scorer.score, type(work)(work.source, 0, 60))
            until(lambda: service.calls)
            second = splits.submit(scorer.score, type(work)(work.source, 60, NO_END))
            try:
                until(lambda: second.done() or any(60 in call.places for call in service.calls))
            finally:
                answered.set()
            found = [*first.result(timeout=20), *second.result(timeout=20)]
        assert isinstance(scorer.stopping.reason, StorageFailed)
    assert "Input/output error" in str(scorer.stopping.reason)
    assert not [one for one in found if one.end and one.stop != 100]
    with recording() as service, scoring(plain(tmp_path, service.url, **keys), run="run-2") as scorer:
        scorer.score(work)
        assert not scorer.stopping
    assert scored_rows(tmp_path / "out") == list(range(100))
    assert [one["to"] for one in receipts(tmp_path / "out").values() if one.get("end")] == [100]


def test_a_secret_that_is_not_there_is_named_at_the_start(tmp_path, monkeypatch):
    """A worker without it cannot be opened."""
    put(tmp_path / "in" / "rows.parquet", numbered(0, 20))
    job = plain(tmp_path, "http://127.0.0.1:9/x", service__headers={"X-Key": "${env:NO_SUCH_KEY}"})
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(JobError, match=r"service\.headers\.X-Key.*NO_SUCH_KEY"):
        Scorer(job, Order(RUN), stopping=Stopping(), progress=Progress())


def test_a_reply_that_trickles_for_ever_is_cut_and_asked_again(sandbox, tmp_path):
    """The limit is on the whole reply, a byte a second does not extend it; the second attempt is the answer."""
    url = sandbox(faults={1: ["trickle"], 2: ["trickle-headers"]})
    put(tmp_path / "in" / "iris.parquet", flowers(30))
    started = time.monotonic()
    assert run_job(job_file(tmp_path, url, service__limits={"rows": 10, "timeout": "1s"})).exit_code == 0
    assert 3 < time.monotonic() - started < 20
    attempts = results(tmp_path / "out")["attempts"].to_pylist()
    assert sorted(attempts) == [1] * 10 + [2] * 20
    seen = stats(url)
    assert (seen["requests"], seen["dropped"], seen["by_status"]) == (5, 2, {"200": 3})


@pytest.mark.parametrize("rows", [1, 60])
def test_one_in_flight_is_one_in_flight(tmp_path, rows):
    """`limits.in_flight: 1` is a queue: each request comes when the one before is answered, in input order."""
    put(tmp_path / "in" / "rows.parquet", numbered(0, rows))
    limits = {"rows": 1, "in_flight": 1}
    with recording() as service, scoring(plain(tmp_path, service.url, service__limits=limits)) as scorer:
        scorer.score(work_of(scorer.job)[0])
    assert service.peak == 1
    assert len(service.calls) == rows
    assert sorted(call.places[0] for call in service.calls) == list(range(rows))


def test_no_second_sees_more_requests_than_the_rate(tmp_path):
    """Counted at the service, over every second there is, with a window that could take all at once."""
    put(tmp_path / "in" / "rows.parquet", numbered(0, 60))
    limits = {"rows": 1, "rate": "20/s"}
    with recording() as service, scoring(plain(tmp_path, service.url, service__limits=limits)) as scorer:
        scorer.score(work_of(scorer.job)[0])
    times = [call.arrived for call in service.calls]
    assert len(times) == 60
    assert times[-1] - times[0] > 59 / 20 - 0.2
    most = max(sum(start <= moment < start + 1 for moment in times) for start in times)
    assert most <= 20 + 2, "one may be late, and the next one not"


def test_the_rate_is_shared_by_the_workers_of_a_job(tmp_path):
    """Each of four worker processes has a quarter of it."""
    put(tmp_path / "in" / "rows.parquet", numbered(0, 11))
    limits, runner = {"rows": 1, "rate": "40/s"}, {"name": "PortableRunner", "workers": 4}
    with recording() as service, scoring(plain(tmp_path, service.url, service__limits=limits, runner=runner)) as scorer:
        scorer.score(work_of(scorer.job)[0])
    times = [call.arrived for call in service.calls]
    assert times[-1] - times[0] > 10 / 10 - 0.2


def test_turns_go_to_the_first_in_the_input():
    """One at a time; of those that wait, the lowest source and row."""
    turns, order, waiting = _Turns(), [], [(1, 0), (0, 30), (0, 10), (2, 0), (0, 20), (0, 10)]

    def take(place):
        with turns.take(place):
            order.append(place)

    with ThreadPoolExecutor(len(waiting)) as threads:
        with turns.take((9, 9)):
            taken = [threads.submit(take, place) for place in waiting]
            until(lambda: len(turns._waiting) == len(waiting))
            assert order == []
        for one in taken:
            one.result(timeout=20)
    assert order == sorted(waiting)


def test_a_turn_is_given_back_by_who_fails():
    """A split that ends badly does not keep the others from reading."""
    turns = _Turns()
    with pytest.raises(ZeroDivisionError), turns.take((0, 0)):
        raise ZeroDivisionError
    with turns.take((0, 1)):
        pass
