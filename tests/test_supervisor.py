"""Local runs with several worker processes: they do what one does, and the death of any of them is survived."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import threading
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import service

import jobs
from pipeline import run as run_module
from pipeline.run import lock
from pipeline.storage import Store
from pipeline.supervisor import how

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")

FILES, ROWS = 12, 10
TOTAL = FILES * ROWS


def inputs(folder, rows=ROWS):
    """Write files of so many rows each: small ones, so that a receipt is never far."""
    for number in range(FILES):
        jobs.put(folder / "in" / f"{number:02d}.parquet", jobs.flowers(rows, number * rows))


def two(folder, url, **keys):
    """Write a job for two workers that send a row a request, and few at once."""
    inputs(folder)
    keys = {"service__limits": {"rows": 1, "in_flight": 2}, "runner__workers": 2, **keys}
    return jobs.job_file(folder, url, **keys)


def uninterrupted(folder, url):
    """Return what one worker makes of the same input without a break."""
    path = jobs.job_file(folder, url, file="whole.yaml", output__path="whole")
    assert jobs.score(path).exit_code == 0
    return jobs.lasting(folder / "whole")


def planted(folder, code):
    """Return the environment of a run whose workers run some code before anything else."""
    condition = "import sys\nif any('pipeline.worker' in one for one in sys.orig_argv):\n"
    lines = "".join(f"    {line}\n" for line in code.splitlines())
    (folder / "planted").mkdir()
    (folder / "planted" / "sitecustomize.py").write_text(condition + lines)
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    return {**env, **jobs.PASSWORD, "PYTHONPATH": str(folder / "planted")}


def gone(pids):
    return not any(map(jobs.alive, pids))


def test_two_workers_do_what_one_does(sandbox, tmp_path):
    """The same results, each row asked once; the counters of both are in the progress and in the summary."""
    url, seen = sandbox(faults={"7": ["503"], "9": ["503"]}), []

    def watch(progress, rows):
        seen.append((progress, rows))
        return nullcontext()

    summary = jobs.score(two(tmp_path, url), watch=watch)
    assert (summary.exit_code, summary.scored, summary.requests, summary.retries) == (0, TOTAL, TOTAL + 2, 2)
    [(progress, rows)] = seen
    counts = progress.read()
    assert (rows, counts["answered"], counts["rows"]) == (TOTAL, TOTAL, TOTAL)
    assert (counts["in_flight"], counts["receipts"]) == (0, FILES)
    assert jobs.stats(url)["rows_received"] == TOTAL
    assert jobs.proved(tmp_path / "out") == ()
    assert jobs.lasting(tmp_path / "out") == uninterrupted(tmp_path, url)


def test_more_workers_than_there_is_work_are_not_started(sandbox, tmp_path):
    """Work is not cut for their sake: three files are for three workers, which divide the rate among them."""
    url = sandbox(latency=0.3)
    for number in range(3):
        jobs.put(tmp_path / "in" / f"{number}.parquet", jobs.flowers(6, number * 6))
    limits = {"rows": 1, "in_flight": 1}
    path = jobs.job_file(tmp_path, url, runner__workers=8, service__limits=limits)
    with jobs.process("run", path) as running:
        jobs.until(lambda: jobs.stats(url)["rows_answered"] >= 1)
        started = len(jobs.workers(running.pid))
        running.communicate(timeout=60)
    assert (started, running.returncode) == (3, 0)


def test_a_worker_that_dies_is_replaced_at_once(sandbox, tmp_path):
    """What it had committed is not asked again; the other one never stops."""
    url = sandbox(latency=0.05)
    path, out = two(tmp_path, url), tmp_path / "out"
    with jobs.process("run", path) as running:
        jobs.until(lambda: len(jobs.receipts(out)) >= 2)
        victim, other = jobs.workers(running.pid)
        os.kill(victim, signal.SIGKILL)
        jobs.until(lambda: len(jobs.workers(running.pid)) == 2 and victim not in jobs.workers(running.pid))
        assert other in jobs.workers(running.pid)
        _, told = running.communicate(timeout=60)
    assert (running.returncode, told) == (
        0,
        "* a worker died of SIGKILL (as when memory runs out); another one takes over\n",
    )
    assert jobs.stats(url)["rows_received"] < 2 * TOTAL
    assert jobs.proved(out) == ()
    assert jobs.lasting(out) == uninterrupted(tmp_path, url)


def test_nobody_waits_for_a_worker_that_died_while_it_tried_the_service(tmp_path):
    """The first request of a run is waited for by all workers; not, when nobody will hear the answer."""
    over = threading.Event()

    def answer(call):
        if call is served.calls[0]:
            over.wait(100.0)
        return service.score(call)

    with service.recording(answer) as served:
        limits, auth = {"rows": 1, "in_flight": 2, "timeout": "90s"}, {"type": "none"}
        path = two(tmp_path, "", service__url=served.url, service__auth=auth, service__limits=limits)
        with jobs.process("run", path, "-q") as running:
            jobs.until(lambda: len(served.calls) == 1)
            for pid in jobs.workers(running.pid):
                os.kill(pid, signal.SIGKILL)
            running.communicate(timeout=60)
        over.set()
    assert running.returncode == 0
    assert jobs.proved(tmp_path / "out") == ()


def test_a_worker_that_died_has_sent_its_requests(sandbox, tmp_path):
    """`--max-requests` is no more with deaths than without; what the last moment was may be missing."""
    url = sandbox(latency=0.05)
    path = two(tmp_path, url)
    with jobs.process("run", path, "--max-requests", TOTAL * 2 // 3, "--json") as running:
        jobs.until(lambda: jobs.stats(url)["rows_answered"] >= TOTAL // 3)
        os.kill(jobs.workers(running.pid)[0], signal.SIGKILL)
        answer, told = running.communicate(timeout=60)
    assert running.returncode == 6
    assert "ERROR --max-requests " in told
    assert TOTAL // 3 < jobs.stats(url)["rows_received"] < TOTAL * 2 // 3 + TOTAL // 3
    assert json.loads(answer)["left"] > 0


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("import os; os.kill(os.getpid(), 9)", "died of SIGKILL (as when memory runs out)"),
        ("import os; os._exit(7)", "ended with exit code 7"),
    ],
)
def test_a_worker_that_always_dies_ends_the_run(sandbox, tmp_path, code, cause):
    """Exit 6 and one line that names the cause, after three deaths without a receipt; the same command resumes."""
    url = sandbox()
    path = two(tmp_path, url)
    done = jobs.command("run", path, env=planted(tmp_path, code))
    *others, last = done.err.splitlines()
    told = f"3 workers in a row were lost before they committed anything; the last one {cause}"
    assert (done.code, last) == (6, f"ERROR {told}; the same command resumes")
    assert set(others) == {f"* a worker {cause}; another one takes over"}
    assert jobs.runs(tmp_path / "out")[-1]["exit_code"] == 6
    assert jobs.score(path).exit_code == 0


def test_a_defect_in_a_worker_is_exit_1_with_its_traceback(sandbox, tmp_path):
    """The other worker commits what it has, and the traceback is that of the worker."""
    env = planted(tmp_path, "import pipeline.score\npipeline.score.pack = None")
    done = jobs.command("run", two(tmp_path, sandbox()), env=env)
    assert (done.code, done.out) == (1, "")
    assert "RuntimeError: a worker failed:" in done.err
    assert "TypeError: 'NoneType' object is not callable" in done.err
    assert done.err.endswith("ERROR this is a defect of bulkscore; please report it with the lines above\n")


def test_options_that_beam_does_not_take_are_one_line(sandbox, tmp_path):
    """Exit 2, as with one worker."""
    done = jobs.command("run", two(tmp_path, sandbox(), runner__options={"direct_running_mode": "x"}))
    assert done.code == 2
    assert done.err.splitlines()[-1] == "ERROR runner.options: Beam does not take --direct_running_mode=x"


def test_workers_that_cannot_be_started_are_one_line(sandbox, tmp_path, monkeypatch):
    """A machine without memory or process numbers left is not a defect."""

    def start(*_, **__):
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    path = two(tmp_path, sandbox())
    monkeypatch.setattr(subprocess, "Popen", start)
    summary = jobs.score(path)
    told = f"cannot start a worker process: {os.strerror(errno.EAGAIN)}; the same command resumes"
    assert (summary.exit_code, summary.message) == (6, told)


@pytest.mark.parametrize(
    ("strike", "number", "code"),
    [(os.killpg, signal.SIGINT, 130), (os.kill, signal.SIGTERM, 143)],
)
def test_an_interrupt_drains_and_commits_in_all_workers(sandbox, tmp_path, strike, number, code):
    """Whether it reaches the run alone or, from a terminal, its workers too: each row is asked once in the end."""
    url = sandbox(latency=0.05)
    path, out = two(tmp_path, url), tmp_path / "out"
    with jobs.process("run", path, start_new_session=True) as running:
        jobs.until(lambda: jobs.stats(url)["rows_answered"] >= 10)
        crew = jobs.workers(running.pid)
        strike(running.pid, number)
        answer, told = running.communicate(timeout=60)
    assert running.returncode == code
    assert told == (
        "* stopping: requests in flight end and are committed; once more to stop now\n"
        "ERROR interrupted; the same command resumes\n"
    )
    done = jobs.stats(url)["rows_received"]
    assert 10 <= done < TOTAL
    assert answer.startswith(f"{TOTAL} rows: {done} scored, 0 dead letters, {TOTAL - done} left")
    assert (len(crew), gone(crew), jobs.runs(out)[-1]["exit_code"]) == (2, True, code)
    again = jobs.score(path)
    assert (again.exit_code, again.scored_by_this_run) == (0, TOTAL - done)
    assert jobs.stats(url)["rows_received"] == TOTAL
    assert jobs.proved(out) == ()


def test_an_interrupt_while_workers_start_asks_nothing(sandbox, tmp_path):
    """Workers are deaf to signals from their first instruction on, and are told before they send anything."""
    url = sandbox()
    path = two(tmp_path, url)
    with jobs.process("run", path, start_new_session=True) as running:
        jobs.until(lambda: len(jobs.workers(running.pid)) == 2)
        os.killpg(running.pid, signal.SIGINT)
        _, told = running.communicate(timeout=60)
    assert (running.returncode, told.splitlines()[-1]) == (130, "ERROR interrupted; the same command resumes")
    assert "Traceback" not in told


def test_an_interrupt_reaches_a_worker_that_waits_for_the_first_answer(sandbox, tmp_path):
    """It stops without having sent anything; the one that tries the service commits its answer."""
    url = sandbox(latency=4.0)
    path = two(tmp_path, url)
    with jobs.process("run", path, "-q") as running:
        jobs.until(lambda: jobs.stats(url)["in_flight"] == 1)
        running.send_signal(signal.SIGINT)
        _, told = running.communicate(timeout=60)
    assert (running.returncode, told.splitlines()[-1]) == (130, "ERROR interrupted; the same command resumes")
    assert "Traceback" not in told


def test_two_workers_send_at_the_same_time(tmp_path):
    """Each has a window of its own: where one may send one request at once, two are on their way."""

    def answer(call):
        if len(served.calls) > 10:  # so many may be a trial
            with served.changed:
                served.changed.wait_for(lambda: served.peak > 1, 30.0)
        return service.score(call)

    with service.recording(answer) as served:
        limits, auth = {"rows": 1, "in_flight": 1}, {"type": "none"}
        path = two(tmp_path, "", service__url=served.url, service__auth=auth, service__limits=limits)
        assert jobs.score(path).exit_code == 0
    assert (served.peak, len(served.calls)) == (2, TOTAL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_its_run(sandbox, tmp_path, number):
    """A second Ctrl-C, or `kill -9` of the run alone, ends the workers too, and nobody holds the output after it."""
    url = sandbox(latency=100.0, timeout=200.0)
    path, out = two(tmp_path, url), tmp_path / "out"
    with jobs.process("run", path, start_new_session=True) as running:
        jobs.until(lambda: jobs.stats(url)["in_flight"] == 1)  # the first request, for which all wait
        crew = jobs.workers(running.pid)
        running.send_signal(number)
        if number == signal.SIGINT:
            assert running.stderr.readline().startswith("* stopping")
            os.killpg(running.pid, number)
        assert running.wait(timeout=60) == (130 if number == signal.SIGINT else -number)
        with lock(Store(str(out)), seconds=0.0):
            jobs.until(lambda: gone(crew))
    assert len(crew) == 2
    assert jobs.receipts(out) == {}


def test_a_run_with_workers_holds_its_output(sandbox, tmp_path, monkeypatch):
    """Exit 5 while it is alive; its dead body, with workers that are dying still, keeps nobody waiting."""
    url = sandbox(latency=0.05)
    path, out = two(tmp_path, url), tmp_path / "out"
    with jobs.process("run", path) as running:
        jobs.until(lambda: len(jobs.receipts(out)) >= 1)
        with monkeypatch.context() as patch:
            patch.setattr(run_module, "lock", partial(lock, seconds=0.05))
            assert jobs.call("run", path).code == 5
        running.kill()
        running.wait(timeout=60)
        assert jobs.score(path).exit_code == 0
    assert jobs.proved(out) == ()


def test_a_refusal_that_one_worker_meets_stops_the_other(sandbox, tmp_path):
    """Exit 4 with the service's words; no worker goes on until it meets the refusal itself."""
    url = sandbox(faults={"20": "403 always"}, latency=0.05)
    path = two(tmp_path, url)
    summary = jobs.score(path)
    assert summary.exit_code == 4
    assert summary.message.startswith("the service refuses the job: 403 APIG.0302 ")
    assert summary.scored + summary.left == TOTAL
    assert jobs.stats(url)["requests"] <= 20 + 2 * 16 + 4  # what was under way in two workers, and their tokens
    assert jobs.letters(tmp_path / "out") == []


def test_a_full_disk_in_workers_is_one_line_and_the_same_command_resumes(sandbox, tmp_path):
    """Exit 6 and no traceback; what has a receipt counts."""
    inputs(tmp_path, rows=600)
    jobs.put(tmp_path / "in" / "99.parquet", jobs.flowers(6_000, 100_000))
    job = jobs.job_file(tmp_path, sandbox(), service__limits={"rows": 500}, runner__workers=2)
    small = ["sh", "-c", f"ulimit -f 100; exec {jobs.BULKSCORE} run {job}"]  # no file over 100 blocks
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}  # it writes files too
    full = subprocess.run(small, check=False, capture_output=True, text=True, env={**env, **jobs.PASSWORD}, timeout=60)
    assert (full.returncode, len(full.stderr.splitlines())) == (6, 1), full.stderr
    assert "File too large" in full.stderr
    done = sum(one["scored"] for one in jobs.receipts(tmp_path / "out").values())
    again = jobs.score(job)
    assert (again.exit_code, again.scored_by_this_run) == (0, FILES * 600 + 6_000 - done)
    assert jobs.proved(tmp_path / "out") == ()


def test_a_place_that_workers_cannot_write_to_is_one_line(sandbox, tmp_path):
    """It turned into something else while they were at work: exit 6, told by the first that met it."""
    url = sandbox(latency=0.05)
    path, out = two(tmp_path, url), tmp_path / "out"
    with jobs.process("run", path) as running:
        jobs.until(lambda: len(jobs.receipts(out)) >= 2)
        (out / "results").rename(out / "kept")
        (out / "results").touch()
        _, told = running.communicate(timeout=60)
    assert (running.returncode, len(told.splitlines())) == (6, 1), told
    assert "results" in told
    (out / "results").unlink()
    (out / "kept").rename(out / "results")
    assert jobs.score(path).exit_code == 0
    assert jobs.proved(out) == ()


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (0, "ended with exit code 0"),
        (1, "ended with exit code 1"),
        (-9, "died of SIGKILL (as when memory runs out)"),
        (-11, "died of SIGSEGV"),
        (-99, "died of signal 99"),
    ],
)
def test_how_a_process_died(code, told):
    """By name, where the system has one."""
    assert how(code) == told
