"""The Beam wiring: splits in, receipts out, several at once, one scorer for a process, and nothing from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import pyarrow as pa
import pytest
from service import Crowd, recording

from jobs import PASSWORD, SEND, flowers, job_file, letters, loaded, proved, put, receipts, results, score, stats
from pipeline import session as sessions
from pipeline.beam import ScoreRows, ScoreSplits
from pipeline.gather import draft
from pipeline.ledger import Planned, read_stop
from pipeline.plan import remaining
from pipeline.run import new_run
from pipeline.storage import Store
from schemas.plan import Order
from schemas.receipt import Receipt

NO_AUTH = {"type": "none"}
KINDS = {"rejected": "400", "timeout": "504", "exhausted": "503", "mismatch": "short"}


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch):
    """A password, and no arguments of the test runner's: Beam reads `sys.argv` when lists are piped."""
    monkeypatch.setenv("DEMO_PASSWORD", PASSWORD["DEMO_PASSWORD"])
    monkeypatch.setattr(sys, "argv", ["test"])


def numbered(start, rows):
    """Return rows whose `sepal_length` is the row's number."""
    return pa.table({name: [float(start + row) for row in range(rows)] for name in SEND})


def split_input(folder, splits, rows):
    """Write an input of that many splits, one file each, of that many rows, numbered all through."""
    for split in range(splits):
        put(folder / "in" / f"{split:02d}.parquet", numbered(split * rows, rows))


def plain(folder, url, **keys):
    """Write a job that sends four measures and needs no credentials."""
    keys = {"input": {"path": "in/*.parquet", "send": SEND}, "service__auth": NO_AUTH, **keys}
    return job_file(folder, "", service__url=url, **keys)


def work_of(job):
    """Plan a job; return what is to be done."""
    plan = draft(job, Store(job.output.path), Planned([]), "plan").plan
    return remaining({source.number: source for source in plan.sources}, plan.splits, [])


def ranges(found):
    """Return which rows of which source receipts cover."""
    return sorted((one.source, one.start, one.stop) for one in found)


def test_score_rows_takes_plain_lists(sandbox, tmp_path):
    """`[Work, ...] | ScoreRows(job, run)` scores, commits, and returns the receipts."""
    split_input(tmp_path, 3, 20)
    job = loaded(job_file(tmp_path, sandbox(), input={"path": "in/*.parquet"}))
    work = work_of(job)
    found = work | ScoreRows(job, Order(new_run(), probe=False))
    assert all(isinstance(one, Receipt) for one in found)
    assert ranges(found) == [(number, 0, 20) for number in range(3)]
    assert {one.name for one in found} == set(receipts(tmp_path / "out"))
    assert results(tmp_path / "out").num_rows == 60


def test_work_that_is_done_is_not_asked_again(sandbox, tmp_path):
    """A bundle that a runner tries again finds its receipts, and emits none for them."""
    url = sandbox()
    split_input(tmp_path, 2, 20)
    job = loaded(job_file(tmp_path, url, input={"path": "in/*.parquet"}))
    work = work_of(job)
    assert len(work | ScoreRows(job, Order(new_run(), probe=False))) == 2
    assert work[1:] + work | ScoreRows(job, Order(new_run(), probe=False)) == []
    assert stats(url)["rows_received"] == 40


@pytest.mark.parametrize(
    "fault", ["503 after 1s", "drop", "drop-early", "truncate", "trickle", "trickle-headers", "expire", "401", "html"]
)
def test_trouble_of_the_service_is_not_an_exception(sandbox, tmp_path, fault):
    """What passes is tried again inside; the runner sees receipts of all rows, all scored."""
    url = sandbox(faults={2: [fault]})
    put(tmp_path / "in" / "iris.parquet", flowers(50))
    job = loaded(job_file(tmp_path, url, service__limits={"rows": 10, "timeout": "0.2s"}))
    found = work_of(job) | ScoreRows(job, Order(new_run(), probe=False))
    assert [(one.start, one.stop, one.scored, one.dead) for one in found] == [(0, 50, 50, 0)]
    seen = stats(url)
    assert seen["by_status"]["200"] == 5
    assert seen["requests"] > 5, "the fault was not met"
    assert results(tmp_path / "out")["attempts"].to_pylist().count(2) >= 10


@pytest.mark.parametrize("kind", KINDS)
def test_trouble_of_a_row_is_a_dead_letter_and_not_an_exception(sandbox, tmp_path, kind):
    """What stays costs the row that it befalls, whatever way it fails; the others are scored meanwhile, and tell."""
    url = sandbox(faults={"row:sepal_length=7": f"{KINDS[kind]} always"}, latency=0.05)
    put(tmp_path / "in" / "rows.parquet", numbered(0, 400))
    limits = {"service__limits": {"rows": 2, "in_flight": 4}, "retry": {"attempts": 2, "outage": "20s"}}
    job = loaded(job_file(tmp_path, url, input={"path": "in/*.parquet"}, **limits))
    [receipt] = work_of(job) | ScoreRows(job, Order(new_run(), probe=False))
    died = {letter["source_row"]: letter["kind"] for letter in letters(tmp_path / "out")}
    assert died == {7: kind}
    assert (receipt.scored, receipt.dead) == (399, 1)
    assert set(results(tmp_path / "out")["source_row"].to_pylist()) == set(range(400)) - {7}


@pytest.mark.parametrize(("fault", "code"), [("404", 4), ("403", 4), ("401", 4), ("503", 6)])
def test_a_refusal_of_the_whole_job_is_not_an_exception(sandbox, tmp_path, fault, code):
    """The pipeline ends well, without receipts; why nothing was done is in the output, for every worker to see."""
    url = sandbox(faults=dict.fromkeys(range(1, 9), f"{fault} always"))
    split_input(tmp_path, 4, 20)
    retry = {"attempts": 1, "seconds": "1s", "outage": "0s"}
    job, run = loaded(job_file(tmp_path, url, input={"path": "in/*.parquet"}, retry=retry)), new_run()
    assert work_of(job) | ScoreRows(job, run) == []
    assert read_stop(Store(str(tmp_path / "out")), run).exit_code == code
    assert stats(url)["rows_received"] == 0


def test_a_worker_without_the_secret_is_not_an_exception(sandbox, tmp_path, monkeypatch):
    """It says what it lacks, and asks nothing."""
    url = sandbox()
    monkeypatch.delenv("DEMO_PASSWORD")
    put(tmp_path / "in" / "iris.parquet", flowers(20))
    job, run = loaded(job_file(tmp_path, url)), new_run()
    assert work_of(job) | ScoreRows(job, run) == []
    stop = read_stop(Store(str(tmp_path / "out")), run)
    assert stop.exit_code == 2
    assert "DEMO_PASSWORD" in str(stop)
    assert (stats(url)["requests"], stats(url)["tokens_issued"]) == (0, 0)


@pytest.mark.parametrize(("splits", "requests"), [(8, 4), (32, 1)])
@pytest.mark.usefixtures("wide_open")
def test_the_window_stays_full_across_splits(tmp_path, splits, requests):
    """The service answers only while sixteen requests are there at once, until the last have come."""
    crowd = Crowd(16, splits * requests)
    split_input(tmp_path, splits, requests * 10)
    with recording(crowd) as service:
        summary = score(plain(tmp_path, service.url, service__limits={"rows": 10, "in_flight": 16}))
    assert (summary.exit_code, summary.scored) == (0, splits * requests * 10)
    assert crowd.starved == 0, "the service waited for requests that did not come"
    assert (service.peak, len(service.calls)) == (16, splits * requests)


def test_splits_are_read_in_their_order(tmp_path):
    """What comes first in the input is asked first, so that a file is read through once."""
    put(tmp_path / "in" / "rows.parquet", numbered(0, 60_000))
    with recording() as service:
        limits = {"rows": 1000, "in_flight": 1}
        assert score(plain(tmp_path, service.url, service__limits=limits)).scored == 60_000
    first = [call.places[0] for call in service.calls]
    assert max(abs(place - number * 1000) for number, place in enumerate(first)) <= 5_000


@pytest.mark.usefixtures("wide_open")
def test_two_workers_of_a_process_share_one_scorer_and_one_window(tmp_path):
    """Runners make several of a DoFn in one process: the limit is the process's, and the last to go closes."""
    split_input(tmp_path, 6, 40)
    with recording(Crowd(3, 20, seconds=0.01)) as service:
        job = loaded(plain(tmp_path, service.url, service__limits={"rows": 10, "in_flight": 3}))
        run, work = new_run(), work_of(job)
        one, other = ScoreSplits(job, Order(run, probe=False)), ScoreSplits(job, Order(run, probe=False))
        for dofn in (one, other):
            dofn.setup()
            dofn.start_bundle()
        shared = sessions.session(run)
        assert one._scorer is other._scorer is shared.scorer
        found = list(one.process(work[0]))
        parts = {one: work[1:3], other: work[3:5]}
        both = [threading.Thread(target=lambda pair=pair: found.extend(bundle(*pair))) for pair in parts.items()]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
        one.teardown()
        other.start_bundle()
        found += bundle(other, work[5:])  # still open
        other.teardown()
        assert (shared.users, shared.scorer) == (0, None)
    assert ranges(found) == [(number, 0, 40) for number in range(6)]
    assert service.peak == 3


def bundle(dofn, work):
    """Do what a runner does with a bundle; the receipts of its end come in a window."""
    found = [receipt for one in work for receipt in dofn.process(one)]
    return found + [windowed.value for windowed in dofn.finish_bundle()]


@pytest.mark.usefixtures("wide_open")
def test_threads_of_the_local_runner_do_not_add_to_the_window(tmp_path):
    """`direct_num_workers` is passed through; two workers send no more at once than the limit, and double nothing."""
    split_input(tmp_path, 8, 40)
    options = {"direct_num_workers": 2, "direct_running_mode": "multi_threading"}
    with recording(Crowd(3, 32, seconds=0.01)) as service:
        limits = {"rows": 10, "in_flight": 3}
        job = plain(tmp_path, service.url, service__limits=limits, runner__options=options)
        assert score(job).scored == 320
    assert service.peak == 3
    assert sorted(place for call in service.calls for place in call.places) == list(range(320))
    assert proved(tmp_path / "out") == ()


WATCHED = """
import json, sys

seen = []

def watch(event, arguments):
    if event == "socket.connect":
        seen.append((event, str(arguments[1])))
    elif event == "socket.getaddrinfo":
        seen.append((event, str(arguments[0])))
    elif event in ("subprocess.Popen", "os.posix_spawn", "os.system", "urllib.Request"):
        seen.append((event, str(arguments[0])))

sys.addaudithook(watch)
from pipeline.run import new_run, run
from pipeline.jobfile import load
from contextlib import nullcontext
from datetime import date
from pathlib import Path

summary = run(load(Path(sys.argv[1]), today=date(2026, 1, 1)), new_run(), watch=lambda *_: nullcontext())
print(json.dumps([summary.exit_code, summary.scored, sorted(set(seen))]))
"""


def test_the_local_runner_reaches_for_nothing_but_the_service(tmp_path):
    """No download, no other process, no name looked up: all that the interpreter saw are connections to the service."""
    split_input(tmp_path, 2, 40)
    with recording() as service:
        line = [sys.executable, "-c", WATCHED, plain(tmp_path, service.url)]
        done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=True, env={**os.environ})
    code, scored, seen = json.loads(done.stdout)
    port = service.url.split(":")[2].split("/")[0]
    assert (code, scored) == (0, 80)
    assert {tuple(one) for one in seen} == {
        ("socket.connect", f"('127.0.0.1', {port})"),
        ("socket.getaddrinfo", "127.0.0.1"),
    }
