"""Runs that end early, runs that go on, and runs over what has changed: resume is subtraction."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import partial
from random import Random

import pytest
from filelock import FileLock

import jobs
from pipeline import run as run_module
from pipeline import write
from pipeline.errors import Held
from pipeline.gather import draft
from pipeline.ledger import NewPlan, Planned, write_plan
from pipeline.plan import remaining
from pipeline.progress import Progress
from pipeline.run import lock
from pipeline.score import Scorer
from pipeline.stopping import Stopping
from pipeline.storage import Store
from schemas.plan import Order

IN_FLIGHT = 2
EVERY_REQUEST = (
    "import pipeline.write; pipeline.write.OBJECT_SECONDS = -1.0\n"  # a receipt after every request
    "from pipeline.cli import main; main()"
)


def inputs(folder, *, files, rows):
    """Write files of so many rows each."""
    for number in range(files):
        jobs.put(folder / "in" / f"{number}.parquet", jobs.flowers(rows, number * rows))


def slow_job(folder, url, **keys):
    """Write a job that sends a row a request, two at once."""
    return jobs.job_file(folder, url, service__limits={"rows": 1, "in_flight": IN_FLIGHT}, **keys)


def uninterrupted(folder, url):
    """Return what a run without a break makes of the same input."""
    path = jobs.job_file(folder, url, file="whole.yaml", output__path="whole")
    assert jobs.score(path).exit_code == 0
    return jobs.lasting(folder / "whole")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_commits_and_resumes(sandbox, tmp_path, number, code):
    """What was answered is kept, so that the same command asks each row once, and ends as if nothing had been."""
    url = sandbox(latency=0.02)
    inputs(tmp_path, files=3, rows=40)
    path, out = slow_job(tmp_path, url), tmp_path / "out"
    with jobs.process("run", path) as running:
        jobs.until(lambda: jobs.stats(url)["rows_answered"] >= 10)
        running.send_signal(number)
        answer, told = running.communicate(timeout=30)
    assert running.returncode == code
    assert told == (
        "* stopping: requests in flight end and are committed; once more to stop now\n"
        "ERROR interrupted; the same command resumes\n"
    )
    done = sum(one["scored"] for one in jobs.receipts(out).values())
    assert 10 <= done < 120
    assert answer.startswith(f"120 rows: {done} scored, 0 dead letters, {120 - done} left")
    assert not (out / "_SUCCESS").exists()
    summary = jobs.runs(out)[-1]
    assert (summary["left"], summary["exit_code"]) == (120 - done, code)
    assert summary["message"] == "interrupted; the same command resumes"
    again = jobs.score(path)
    assert (again.exit_code, again.scored, again.scored_by_this_run) == (0, 120, 120 - done)
    assert jobs.stats(url)["rows_received"] == 120
    assert jobs.proved(out) == ()
    assert (out / "_SUCCESS").exists()
    assert jobs.lasting(out) == uninterrupted(tmp_path, url)


def test_the_second_signal_ends_the_run_at_once(sandbox, tmp_path):
    """Whoever cannot wait for a slow request does not have to; its rows stay undone."""
    url = sandbox(latency=100.0, timeout=200.0)
    inputs(tmp_path, files=1, rows=3)
    with jobs.process("run", slow_job(tmp_path, url)) as running:
        jobs.until(lambda: jobs.stats(url)["in_flight"] >= 1)
        running.send_signal(signal.SIGINT)
        assert running.stderr.readline().startswith("* stopping")
        jobs.until(lambda: running.send_signal(signal.SIGINT) or running.poll() is not None, seconds=30)
        assert running.returncode == 130
    assert jobs.receipts(tmp_path / "out") == {}


def test_a_killed_run_resumes(sandbox, tmp_path):
    """`kill -9` at several moments: no row lost or doubled, nothing receipted asked again, nothing left over."""
    url, random, rows = sandbox(latency=0.01), Random(5), 6 * 30
    inputs(tmp_path, files=6, rows=30)
    path, out = slow_job(tmp_path, url), tmp_path / "out"
    environment = {**os.environ, **jobs.PASSWORD}
    receipted = at_risk = 0
    for _ in range(3):
        enough = jobs.stats(url)["rows_answered"] + random.randint(1, 40)
        with subprocess.Popen([sys.executable, "-c", EVERY_REQUEST, "run", path, "-q"], env=environment) as running:
            jobs.until(lambda enough=enough: jobs.stats(url)["rows_answered"] >= enough)
            running.kill()
        jobs.until(lambda: jobs.stats(url)["in_flight"] == 0)
        before, receipted = receipted, sum(one["scored"] for one in jobs.receipts(out).values())
        assert receipted >= before
        at_risk = jobs.stats(url)["rows_received"] - receipted
    assert 0 < receipted < rows
    summary = jobs.score(path)
    assert (summary.exit_code, summary.scored_by_this_run) == (0, rows - receipted)
    assert jobs.stats(url)["rows_received"] == rows + at_risk
    assert at_risk <= 3 * 3 * 2 * IN_FLIGHT  # kills, splits at once, requests under way or not yet written
    assert jobs.proved(out) == ()
    assert not [name for name in jobs.files(out) if ".part-" in name]
    assert jobs.lasting(out) == uninterrupted(tmp_path, url)


def test_a_crash_between_object_and_receipt_costs_that_range(sandbox, tmp_path, monkeypatch):
    """The object without a receipt goes, its rows are asked again, the others are not."""
    url = sandbox()
    monkeypatch.setattr("pipeline.plan.MIN_SPLIT_ROWS", 20)
    inputs(tmp_path, files=1, rows=60)
    path, out = jobs.job_file(tmp_path, url), tmp_path / "out"
    jobs.score(path)
    before, lost = jobs.lasting(out), min((out / "receipts").iterdir())
    lost.unlink()
    (out / "_SUCCESS").unlink()
    assert jobs.score(path).scored_by_this_run == 20
    assert not (out / "results" / f"{lost.stem}.parquet").exists()
    assert jobs.stats(url)["rows_received"] == 80
    assert jobs.lasting(out) == before
    assert jobs.proved(out) == ()


def test_two_attempts_at_the_same_time_count_once(sandbox, tmp_path, monkeypatch):
    """A runner may do a bundle twice at once: both write, one counts, and the next run removes the other."""
    url = sandbox(latency=0.05)
    monkeypatch.setenv("DEMO_PASSWORD", "demo")
    inputs(tmp_path, files=1, rows=30)
    job, out = jobs.loaded(slow_job(tmp_path, url)), tmp_path / "out"
    store, planned = Store(job.output.path), Planned([])
    plan = draft(job, Store(job.output.path), planned, "first").plan
    planned.add(plan)
    write_plan(store, NewPlan(plan), 0)
    store.write("job.json", json.dumps(run_module.resolved(job)).encode())
    [work] = remaining(planned.sources, planned.splits, [])
    scorers = [Scorer(job, Order("first", probe=False), stopping=Stopping(), progress=Progress()) for _ in range(2)]
    threads = [threading.Thread(target=scorer.score, args=[work]) for scorer in scorers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for scorer in scorers:
        scorer.close()
    assert len(jobs.receipts(out)) == 2
    assert jobs.stats(url)["rows_received"] == 60
    assert any(breach.startswith("object without receipt") for breach in jobs.proved(out))
    summary = jobs.score(tmp_path / "job.yaml")
    assert (summary.exit_code, summary.scored, summary.scored_by_this_run) == (0, 30, 0)
    assert jobs.stats(url)["rows_received"] == 60
    assert len(jobs.receipts(out)) == len(jobs.files(out / "results")) == 1
    assert jobs.results(out)["source_row"].to_pylist() == list(range(30))
    assert jobs.proved(out) == ()


def test_a_range_that_is_tried_again_does_not_ask_again(sandbox, tmp_path, monkeypatch):
    """A worker reads its range's receipts first, so a bundle that a runner repeats costs nothing."""
    url = sandbox()
    monkeypatch.setenv("DEMO_PASSWORD", "demo")
    inputs(tmp_path, files=1, rows=30)
    job = jobs.loaded(jobs.job_file(tmp_path, url))
    planned = Planned([draft(job, Store(job.output.path), Planned([]), "first").plan])
    [work] = remaining(planned.sources, planned.splits, [])
    scorer = Scorer(job, Order("first", probe=False), stopping=Stopping(), progress=Progress())
    first, second = scorer.score(work), scorer.score(work)
    scorer.close()
    assert (len(first), second) == (1, [])
    assert jobs.stats(url)["rows_received"] == 30


def test_a_long_split_is_committed_in_pieces(sandbox, tmp_path, monkeypatch):
    """A crash costs what is not yet written, not the split: receipts of one split follow each other without a gap."""
    monkeypatch.setattr(write, "OBJECT_SECONDS", -1.0)
    inputs(tmp_path, files=1, rows=30)
    assert jobs.score(jobs.job_file(tmp_path, sandbox())).exit_code == 0
    found = sorted((one["from"], one["to"]) for one in jobs.receipts(tmp_path / "out").values())
    assert found == [(0, 10), (10, 20), (20, 30)]
    assert jobs.proved(tmp_path / "out") == ()


def test_the_lock_holds_off_a_second_run(sandbox, tmp_path, monkeypatch):
    """While another run is alive there is no second one: exit 5, in one line, and nothing is asked."""
    url, out = sandbox(), tmp_path / "out"
    inputs(tmp_path, files=1, rows=3)
    path = jobs.job_file(tmp_path, url)
    monkeypatch.setattr(run_module, "lock", partial(lock, seconds=0.05))
    out.mkdir()
    with FileLock(out / ".lock"):
        done = jobs.call("run", path)
    told = f"ERROR another run holds {out.as_uri()}; wait for it, or give this one another output.path\n"
    assert done == (5, "", told)
    assert jobs.stats(url)["requests"] == 0
    assert jobs.call("run", path).code == 0


def test_the_lock_is_waited_for(tmp_path):
    """A run that begins while another one ends gets its turn."""
    store, entered = Store(str(tmp_path)), threading.Event()

    def wait():
        with lock(store, seconds=60):
            entered.set()

    waiting = threading.Thread(target=wait)
    with lock(store):
        waiting.start()
        assert not entered.is_set()
        with pytest.raises(Held), lock(store, seconds=0.01):
            pytest.fail("the lock was given twice")
    waiting.join(60)
    assert entered.is_set()


def test_the_lock_of_a_dead_process_is_free(tmp_path):
    """Nobody has to remove a file by hand after a crash."""
    script = (
        "import sys, filelock; held = filelock.FileLock(sys.argv[1]); held.acquire()\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    arguments = [sys.executable, "-c", script, str(tmp_path / ".lock")]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Held), lock(Store(str(tmp_path)), seconds=0.01):
            pytest.fail("the lock was given twice")
        holder.kill()
    with lock(Store(str(tmp_path)), seconds=0.01):
        pass


def test_a_new_input_file_is_all_that_is_asked(sandbox, tmp_path):
    """A second plan has the new file; the first one is not touched, and row ids do not move."""
    url, out = sandbox(), tmp_path / "out"
    inputs(tmp_path, files=2, rows=10)
    path = jobs.job_file(tmp_path, url)
    jobs.score(path)
    first, plan = jobs.lasting(out), (out / "plan" / "000000.json").read_bytes()
    jobs.put(tmp_path / "in" / "00.parquet", jobs.flowers(7, 100))  # before the others in the listing
    assert json.loads(jobs.call("plan", path, "--json").out)["left"] == 7
    summary = jobs.score(path)
    assert (summary.exit_code, summary.planned, summary.scored_by_this_run) == (0, 27, 7)
    assert jobs.stats(url)["rows_received"] == 27
    assert jobs.files(out / "plan") == ["000000.json", "000001.json"]
    assert (out / "plan" / "000000.json").read_bytes() == plan
    assert [row for row in jobs.lasting(out) if "/00." not in row["source"]] == first
    assert jobs.proved(out) == ()
    assert jobs.lasting(out) == uninterrupted(tmp_path, url)


def test_success_does_not_stand_while_new_rows_are_asked(sandbox, tmp_path):
    """It goes when a run starts to work, and comes back with exit 0."""
    inputs(tmp_path, files=1, rows=10)
    path, out = jobs.job_file(tmp_path, sandbox()), tmp_path / "out"
    jobs.score(path)
    jobs.put(tmp_path / "in" / "new.parquet", jobs.flowers(5, 50))
    seen = []

    @contextmanager
    def watch(_, rows):
        seen.append((rows, (out / "_SUCCESS").exists()))
        yield

    jobs.score(path, watch=watch)
    assert seen == [(5, False)]
    assert (out / "_SUCCESS").exists()


def test_success_goes_before_a_new_plan_is_there(sandbox, tmp_path, monkeypatch):
    """A crash right behind the new plan must not leave `_SUCCESS` over rows that are not scored."""
    inputs(tmp_path, files=1, rows=10)
    path, out = jobs.job_file(tmp_path, sandbox()), tmp_path / "out"
    jobs.score(path)
    jobs.put(tmp_path / "in" / "new.parquet", jobs.flowers(5, 50))

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module._Run, "_score", crash)
    with pytest.raises(KeyboardInterrupt):
        jobs.score(path)
    assert len(jobs.files(out / "plan")) == 2
    assert not (out / "_SUCCESS").exists()


def test_a_deleted_input_file_stays_scored(sandbox, tmp_path):
    """Its results are still right; nothing is asked, and the output is still whole."""
    url = sandbox()
    inputs(tmp_path, files=2, rows=10)
    path = jobs.job_file(tmp_path, url)
    jobs.score(path)
    (tmp_path / "in" / "0.parquet").unlink()
    done = jobs.call("run", path)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("20 rows: 20 scored")
    assert jobs.stats(url)["rows_received"] == 20


@pytest.mark.parametrize(
    "change", [lambda path: jobs.put(path, jobs.flowers(11)), lambda path: os.utime(path, ns=(1, 1))]
)
def test_a_changed_input_file_is_refused(sandbox, tmp_path, change):
    """Results of another content lie there: exit 2 with the file, both versions and what to do; nothing is touched."""
    url, out = sandbox(), tmp_path / "out"
    inputs(tmp_path, files=1, rows=10)
    path, file = jobs.job_file(tmp_path, url), tmp_path / "in" / "0.parquet"
    jobs.score(path)
    version = json.loads((out / "plan" / "000000.json").read_bytes())["sources"][0]["version"]
    change(file)
    now = f"{file.stat().st_size}-{file.stat().st_mtime_ns}"
    before = jobs.files(out)
    told = (
        f"ERROR input.path: {file.as_uri()} ({version}, now {now}) changed since planned; use --changed rescore to "
        "score changed files again, --changed keep to keep what is done, --restart, or a new output.path\n"
    )
    assert jobs.call("run", path) == (2, "", told)
    assert jobs.call("plan", path).err == told
    assert jobs.files(out) == before
    assert jobs.proved(out) == ()


def test_an_input_that_moved_as_a_whole_is_still_scored(sandbox, tmp_path):
    """Row ids hang on the path below the input's folder: nothing is asked again, what is left is read where it is."""
    url, out = sandbox(), tmp_path / "out"
    inputs(tmp_path, files=3, rows=10)
    path = jobs.job_file(tmp_path, url)
    jobs.score(path)
    lost = min((out / "receipts").iterdir())
    lost.unlink()
    before = {row["row_uuid"]: row["prediction"] for row in jobs.lasting(out)}
    shutil.move(tmp_path / "in", tmp_path / "elsewhere" / "data")
    moved = jobs.job_file(tmp_path, url, input__path="elsewhere/data/*.parquet")
    summary = jobs.score(moved)
    assert (summary.exit_code, summary.planned, summary.scored_by_this_run) == (0, 30, 10)
    assert jobs.stats(url)["rows_received"] == 40
    assert {row["row_uuid"]: row["prediction"] for row in jobs.lasting(out)} == before
    assert jobs.proved(out) == ()


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("name", "roses", 'name: was "iris", is "roses"'),
        ("input__keep", [], 'input.keep: was ["id"], is []'),
        ("input__nan", "reject", 'input.nan: was "null", is "reject"'),
        ("service__version", "v2", 'service.version: was null, is "v2"'),
        ("service__options", {"meta": False}, "service.options.meta: was true, is false"),
    ],
)
def test_a_key_that_changes_answers_is_refused(sandbox, tmp_path, key, value, told):
    """The key, both values and what to do; the output is not touched."""
    url, out = sandbox(), tmp_path / "out"
    inputs(tmp_path, files=1, rows=10)
    out.mkdir()
    job = jobs.loaded(jobs.job_file(tmp_path, url))
    (out / "job.json").write_text(json.dumps(run_module.resolved(job)))
    before = jobs.files(out)
    done = jobs.call("run", jobs.job_file(tmp_path, url, **{key: value}))
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        f"ERROR {out.as_uri()} was made by a job that answers differently: {told}; "
        "use --changed rescore to score everything again, --changed keep to use the new value for the rest, "
        "--restart, or a new output.path\n"
    )
    assert [name for name in jobs.files(out) if name != ".lock"] == before
    assert jobs.stats(url)["requests"] == 0


def test_keys_of_speed_and_place_may_change(sandbox, tmp_path):
    """The same rows through another door, faster: what is done stays done."""
    inputs(tmp_path, files=1, rows=10)
    jobs.score(jobs.job_file(tmp_path, sandbox()))
    other = sandbox()
    keys = {
        "service__limits": {"rows": 3, "in_flight": 1, "timeout": "5s"},
        "service__headers": {"X-Team": "green"},
        "retry": {"attempts": 2},
        "errors": {"allow": "5%"},
        "runner": {"workers": 1},
    }
    summary = jobs.score(jobs.job_file(tmp_path, other, **keys))
    assert (summary.exit_code, summary.scored, summary.requests) == (0, 10, 0)
    assert jobs.stats(other)["requests"] == 0
    assert json.loads((tmp_path / "out" / "job.json").read_bytes())["service"]["limits"]["rows"] == 3


def test_restart_scores_everything_again_and_keeps_runs(sandbox, tmp_path):
    """All but the summaries goes: also the old answers, and what a changed file or key stood in the way of."""
    url, out = sandbox(), tmp_path / "out"
    inputs(tmp_path, files=2, rows=10)
    jobs.score(jobs.job_file(tmp_path, url))
    old = jobs.files(out / "results")
    jobs.put(tmp_path / "in" / "0.parquet", jobs.flowers(12))
    path = jobs.job_file(tmp_path, url, input__keep=[])
    assert jobs.call("run", path).code == 2
    done = jobs.call("run", path, "--restart")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("22 rows: 22 scored, 0 dead letters, 0 left (this run: 22 scored")
    assert not set(old) & set(jobs.files(out / "results"))
    assert len(jobs.runs(out)) == 2
    assert jobs.results(out).column_names[0] == "prediction"
    assert jobs.stats(url)["rows_received"] == 42
    assert jobs.proved(out) == ()


@pytest.mark.parametrize("survived", [0, 1, 2, 3])
def test_a_restart_that_dies_while_it_removes_costs_work_alone(sandbox, tmp_path, monkeypatch, survived):
    """Whatever was removed before the crash: the next run trusts no receipt whose objects are gone."""
    inputs(tmp_path, files=1, rows=10)
    path, removed = jobs.job_file(tmp_path, sandbox()), []
    jobs.score(path)
    delete_folder = Store.delete_folder

    def crash(store, name):
        if len(removed) == survived:
            raise KeyboardInterrupt
        removed.append(name)
        delete_folder(store, name)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "delete_folder", crash)
        with pytest.raises(KeyboardInterrupt):
            jobs.score(path, restart=True)
    assert jobs.score(path).exit_code == 0
    assert jobs.proved(tmp_path / "out") == ()


def test_restart_of_a_job_that_cannot_start_removes_nothing(sandbox, tmp_path):
    """A typing error in the job file must not cost the results that are there."""
    inputs(tmp_path, files=1, rows=10)
    jobs.score(jobs.job_file(tmp_path, sandbox()))
    before = jobs.files(tmp_path / "out")
    done = jobs.call("run", jobs.job_file(tmp_path, "http://127.0.0.1:9", input__send=["stem"]), "--restart")
    assert done.code == 2
    assert "has no column 'stem'" in done.err
    assert jobs.files(tmp_path / "out") == before
    assert jobs.proved(tmp_path / "out") == ()


@pytest.mark.parametrize("restart", [False, True])
def test_a_folder_that_is_not_ours_is_never_touched(sandbox, tmp_path, restart):
    """Not empty and without `job.json`: exit 2, even with `--restart`, and every file is as it was."""
    url = sandbox()
    inputs(tmp_path, files=1, rows=3)
    mine = tmp_path / "out" / "results" / "thesis.parquet"
    jobs.put(mine, jobs.flowers(1))
    content = mine.read_bytes()
    done = jobs.call("run", jobs.job_file(tmp_path, url), *(["--restart"] if restart else []))
    out = (tmp_path / "out").as_uri()
    told = f"ERROR output.path: {out} is not empty and has no job.json, so it is not ours; give a new path\n"
    assert done == (2, "", told)
    assert jobs.files(tmp_path / "out") == ["results/thesis.parquet"]
    assert mine.read_bytes() == content
    assert jobs.stats(url)["requests"] == 0


def test_a_run_that_meets_a_refusal_in_the_middle_keeps_what_is_done(sandbox, tmp_path):
    """Exit 4 with the service's words, receipts for what was answered, `stop.json` while it stands; then it goes on."""
    url = sandbox(faults={"7": "403 always"})
    inputs(tmp_path, files=1, rows=100)
    path, out = jobs.job_file(tmp_path, url, service__limits={"rows": 10, "in_flight": 1}), tmp_path / "out"
    summary = jobs.score(path)
    assert summary.exit_code == 4
    assert summary.message.startswith("the service refuses the job: 403 APIG.0302 ")
    done = summary.scored
    assert 0 < done < 100
    stop = json.loads((out / "stop.json").read_bytes())
    assert (stop["run"], stop["exit_code"], stop["message"]) == (summary.run, 4, summary.message)
    assert jobs.letters(out) == []
    other = sandbox()
    again = jobs.score(jobs.job_file(tmp_path, other))
    assert (again.exit_code, again.scored_by_this_run) == (0, 100 - done)
    assert jobs.stats(other)["rows_received"] == 100 - done
    assert not (out / "stop.json").exists()


def test_a_stop_of_an_earlier_run_stops_nobody(sandbox, tmp_path):
    """`stop.json` names the run that it stops."""
    inputs(tmp_path, files=1, rows=10)
    path = jobs.job_file(tmp_path, sandbox())
    job = jobs.loaded(path)
    store = Store(job.output.path)
    store.write("job.json", json.dumps(run_module.resolved(job)).encode())
    store.write("stop.json", json.dumps({"run": "old", "exit_code": 4, "message": "no"}).encode())
    assert jobs.score(path).exit_code == 0


def test_rows_that_meet_trouble_come_out_as_without_it(sandbox, tmp_path):
    """Faults that pass cost attempts, never answers: the same results as from a calm service."""
    faults = {
        "1": ["503", "ok"], "2": ["429 after 1s"], "3": ["short", "long"], "4": ["foreign"], "5": ["drop"],
        "6": ["truncate"], "7": ["garbage"], "8": ["html"], "9": ["expire"], "10": ["drop-early"], "11": ["blank"],
    }  # fmt: skip
    url = sandbox(faults=faults)
    inputs(tmp_path, files=2, rows=60)
    summary = jobs.score(jobs.job_file(tmp_path, url))
    assert (summary.exit_code, summary.scored) == (0, 120)
    assert summary.retries >= 9
    assert max(jobs.results(tmp_path / "out")["attempts"].to_pylist()) > 1
    assert jobs.lasting(tmp_path / "out") == uninterrupted(tmp_path, sandbox())
    assert jobs.proved(tmp_path / "out") == ()


def test_a_dead_letter_tells_who_answered_each_attempt_and_under_which_request_id(sandbox, tmp_path):
    """The gateway's, then the model's: with these its operators find the request."""
    url = sandbox(faults={"row:id=iris-00003": ["502", "429 after 1s", "MR.0105 always"]})
    inputs(tmp_path, files=1, rows=10)
    job = jobs.job_file(tmp_path, url, service__limits={"rows": 1}, input__send=["id", *jobs.SEND])
    assert jobs.score(job).exit_code == 3
    (letter,) = jobs.letters(tmp_path / "out")
    told = [(one["status"], one["code"], one["server"], one["action"]) for one in letter["history"]]
    assert told == [
        (502, "APIG.0201", "api-gateway", "retry"),
        (429, "APIG.0308", "api-gateway", "slower"),
        (400, "MR.0105", "ModelArts", "reject"),
    ]
    ids = [one["request_id"] for one in letter["history"]]
    assert len(set(ids)) == 3
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)


@pytest.mark.parametrize("name", ["with space", "数据 100%", "it's #1?"])
def test_any_name_will_do(sandbox, tmp_path, name):
    """Folders, files and columns with spaces, Chinese and what URIs escape: scored, verified, and not asked again."""
    url, folder = sandbox(), tmp_path / name
    column = f'{name} "列" \\'
    table = jobs.flowers(10).rename_columns([column, *jobs.SEND])
    jobs.put(folder / "in" / name / f"{name}.parquet", table)
    path = jobs.job_file(
        folder,
        url,
        input={"path": "in/**/*.parquet", "keep": [column], "send": [*jobs.SEND, column]},
        output__path=f"out {name}",
    )
    summary = jobs.score(path)
    out = folder / f"out {name}"
    assert (summary.exit_code, summary.scored) == (0, 10)
    found = jobs.results(out)
    assert found[column].to_pylist() == table[column].to_pylist()
    assert set(found["source"].to_pylist()) == {(folder / "in" / name / f"{name}.parquet").as_uri()}
    assert jobs.proved(out) == ()
    assert jobs.call("run", path).code == jobs.call("verify", path).code == 0
    assert jobs.stats(url)["rows_received"] == 10


def test_a_full_disk_is_one_line_and_the_same_command_resumes(tmp_path, sandbox):
    """Exit 6 and no traceback; nothing that counts is half written."""
    inputs(tmp_path, files=1, rows=6_000)
    job = jobs.job_file(tmp_path, sandbox(), service__limits={"rows": 500})
    small = ["sh", "-c", f"ulimit -f 100; exec {jobs.BULKSCORE} run {job}"]  # no file over 100 blocks
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}  # it writes files too
    env |= jobs.PASSWORD
    full = subprocess.run(small, check=False, capture_output=True, text=True, env=env, timeout=60)

    assert (full.returncode, "Traceback" in full.stderr) == (6, False), full.stderr
    assert "File too large" in full.stderr.splitlines()[-1]
    again = jobs.command("run", job)
    assert again.code == 0, again.stderr
    assert jobs.proved(tmp_path / "out") == ()


def test_a_result_that_was_lost_is_asked_again(tmp_path, sandbox):
    """A receipt counts only with its objects: the next run heals the output."""
    inputs(tmp_path, files=1, rows=20)
    job = jobs.job_file(tmp_path, sandbox())
    assert jobs.score(job).exit_code == 0
    for path in (tmp_path / "out" / "results").iterdir():
        path.unlink()
    assert jobs.score(job).scored_by_this_run == 20
    assert jobs.proved(tmp_path / "out") == ()


def test_patterns_that_begin_elsewhere_would_rename_rows(tmp_path, sandbox):
    """A planned file with another path would be scored again under other row_uuids: exit 2, nothing done."""
    jobs.put(tmp_path / "in" / "x" / "a.parquet", jobs.flowers(5))
    keys = {"url": sandbox(), "folder": tmp_path}
    assert jobs.score(jobs.job_file(**keys, input__path="in/x/*.parquet")).exit_code == 0
    wider = jobs.call("run", jobs.job_file(**keys, input__path="in/*/*.parquet"))

    assert wider.code == 2
    assert "was planned as 'a.parquet' and would now be 'x/a.parquet'" in wider.err
    assert jobs.proved(tmp_path / "out") == ()


def test_what_is_done_stays_done_without_its_input(tmp_path, sandbox):
    """The only file is gone: nothing is left to do."""
    inputs(tmp_path, files=1, rows=5)
    job = jobs.job_file(tmp_path, sandbox())
    assert jobs.call("run", job).code == 0
    (tmp_path / "in" / "0.parquet").unlink()
    assert jobs.call("run", job).code == 0


def test_a_damaged_file_of_ours_is_one_line(tmp_path, sandbox):
    """Exit 2 with its name, for run and for verify."""
    inputs(tmp_path, files=1, rows=5)
    job = jobs.job_file(tmp_path, sandbox())
    assert jobs.call("run", job).code == 0
    (tmp_path / "out" / "job.json").write_text("{")
    for command in ("run", "verify"):
        done = jobs.call(command, job)
        assert done.code == 2
        assert "job.json is not as bulkscore wrote it" in done.err
