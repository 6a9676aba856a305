"""Runs through a service that fails in every way it can: the rows that are to blame die, and no others."""

from __future__ import annotations

import json
import signal
from contextlib import contextmanager
from random import Random
from unittest import mock

import pytest
from tenacity import wait_exponential

import jobs
from pipeline.sandbox.iris import Row, predict
from pipeline.sandbox.schedule import CHAOS

POISON = {  # what the model says of a planted row, and as what the row dies
    "MR.0105 always": "rejected",
    "500 MR.0105 always": "rejected",
    "400 MR.0101 always": "rejected",
    "400 ModelArts.4105 always": "rejected",
    "crash always": "exhausted",
}
RETRY = {"attempts": 8, "seconds": 600, "outage": "5m"}


@contextmanager
def in_haste():
    """Let pauses be a fifth as long: they are tested elsewhere, with a clock."""
    with mock.patch("pipeline.retry._BACKOFF", wait_exponential(multiplier=0.1, max=2)):
        yield


def planted(rows, count, seed):
    """Return the rows to poison, by number, each with what the model says of it."""
    numbers = Random(seed).sample(range(rows), count)
    return {number: list(POISON)[place % len(POISON)] for place, number in enumerate(numbers)}


def poisoned(poison):
    """Return the schedule of a service that always fails these rows."""
    return {f"row:id=iris-{number:05d}": words for number, words in poison.items()}


def bare(words):
    """Return a fault's name without `always`."""
    return words.removesuffix(" always")


def job_of(folder, url, limits, **keys):
    """Write a job that sends each row's id, and allows itself any number of dead letters."""
    keys = {"input__send": ["id", *jobs.SEND], "retry": RETRY, "errors__allow": "100%", **keys}
    return jobs.job_file(folder, url, service__limits=limits, **keys)


def see_each_row_at_its_right_end(out, table, poison):
    """The planted rows are dead letters of their own kind, every other row has the answer that the model gives it."""
    dead = {letter["keep"]["id"]: letter["kind"] for letter in jobs.letters(out)}
    assert dead == {f"iris-{number:05d}": POISON[words] for number, words in poison.items()}
    assert len(jobs.letters(out)) == len(poison)
    rows = table.to_pylist()
    answers = predict([Row(*(row[name] for name in jobs.SEND)) for row in rows])
    expected = {
        row["id"]: (answer.predictresult, answer.score)
        for row, answer in zip(rows, answers, strict=True)
        if row["id"] not in dead
    }
    found = jobs.results(out).select(["id", "prediction"]).to_pylist()
    given = {row["id"]: tuple(json.loads(row["prediction"]).values()) for row in found}
    assert len(found) == len(given)
    assert given == expected
    assert jobs.proved(out) == ()


@pytest.mark.timeout(600)
def test_under_chaos_exactly_the_poison_rows_die(sandbox, tmp_path):
    """A hundred thousand rows, a fault at every fifth request, a body limit that nobody told of, fifty poison rows."""
    poison = planted(100_000, 50, seed=4)
    url = sandbox(chaos=0.2, seed=7, faults=poisoned(poison), body_limit=36_000)
    table = jobs.flowers(100_000)
    jobs.put(tmp_path / "in" / "iris.parquet", table)
    with in_haste():
        summary = jobs.score(job_of(tmp_path, url, {"rows": 400, "timeout": "2s", "in_flight": 48}))
    assert (summary.exit_code, summary.dead, summary.left) == (0, 50, 0), summary.message
    see_each_row_at_its_right_end(tmp_path / "out", table, poison)
    seen = jobs.stats(url)
    met = " ".join(seen["by_fault"])
    assert [name for name in (*(fault.name for fault in CHAOS), *map(bare, POISON)) if name not in met] == []
    assert seen["bodies_over_limit"] > 0


@pytest.mark.timeout(600)
def test_a_run_under_chaos_that_is_killed_five_times_ends_as_if_nothing_had_been(sandbox, tmp_path):
    """Killed after any number of requests; every run goes on where the last one's receipts end."""
    files, rows = 12, 500
    random = Random(5)
    poison = dict.fromkeys(random.sample(range(files * rows), 6), "MR.0105 always")
    url = sandbox(chaos=0.2, seed=5, faults=poisoned(poison))
    table = jobs.flowers(files * rows)
    for number in range(files):
        jobs.put(tmp_path / "in" / f"{number:02d}.parquet", table.slice(number * rows, rows))
    path = job_of(tmp_path, url, {"rows": 100, "timeout": "1s"})
    for _ in range(5):
        enough = jobs.stats(url)["requests"] + random.randint(1, 30)
        with jobs.process("run", path, "-q") as running:
            jobs.until(lambda enough=enough: jobs.stats(url)["requests"] >= enough)
            running.kill()
            told = running.communicate()
        assert running.returncode == -signal.SIGKILL, told
    ended = jobs.command("run", path, "-q")
    assert ended.code == 0, ended
    see_each_row_at_its_right_end(tmp_path / "out", table, poison)
