"""Runs through a service that fails in every way it can: the rows that are to blame die, and no others."""

from __future__ import annotations

import json
from random import Random
from unittest import mock


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
BACKOFF = wait_exponential(multiplier=0.1, max=2)
"""A twentieth of ours: a row that is to blame takes all its attempts, one after the other."""


def planted(rows, count, seed):
    """Return the rows to poison, by number, each with what the model says of it."""
    numbers = Random(seed).sample(range(rows), count)
    return {number: list(POISON)[place % len(POISON)] for place, number in enumerate(numbers)}


def poisoned(poison):
    """Return the schedule of a service that always fails these rows."""
    return {f"row:id=iris-{number:05d}": words for number, words in poison.items()}


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


def test_under_chaos_exactly_the_poison_rows_die(sandbox, tmp_path):
    """A hundred thousand rows, a fault at every fifth request, a lower body limit than advertised, fifty poison rows."""
    poison = planted(100_000, 50, seed=4)
    url = sandbox(chaos=0.2, seed=7, faults=poisoned(poison), body_limit=36_000)
    table = jobs.flowers(100_000)
    jobs.put(tmp_path / "in" / "iris.parquet", table)
    with mock.patch("pipeline.retry._BACKOFF", BACKOFF):
        summary = jobs.score(job_of(tmp_path, url, {"rows": 400, "timeout": "2s"}))
    assert (summary.exit_code, summary.dead, summary.left) == (0, 50, 0), summary.message
    see_each_row_at_its_right_end(tmp_path / "out", table, poison)
    seen = jobs.stats(url)
    assert {fault.name for fault in CHAOS} <= set(seen["by_fault"]), "a kind of fault was never met"
    assert seen["bodies_over_limit"] > 0
    print(json.dumps(seen), summary)
