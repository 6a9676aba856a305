"""How a run gets on, in words: what was answered, how long the rest takes, and when that cannot be told."""

from __future__ import annotations

import threading
from contextlib import nullcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st
from service import recording, refusal, score

import jobs
from pipeline.progress import NAMES, Progress
from pipeline.score import Scorer
from pipeline.show import STILL_SECONDS, Pace
from pipeline.stopping import Stopping
from schemas.plan import Order, Source, Work

NONE = dict.fromkeys(NAMES, 0)
NAMELESS = {"auth": {"type": "none"}, "limits": {"rows": 1}}


def told(answered, seconds, *, total=150, **counts):
    """Say how a run gets on that had these rows answered after these seconds, the last ones just then."""
    counts = {"rows": answered, "requests": 1, "answered": answered, **counts}
    return Pace(total, NONE, 0.0).told({**NONE, **counts}, seconds)


def test_a_line_tells_how_a_run_gets_on():
    """Speed, time left, requests under way, retries and dead letters."""
    assert (
        told(50, 2.0, dead=2, retries=3, in_flight=4) == "25 rows/s, 4 s left, 4 in flight, 3 retries, 2 dead letters"
    )


def test_rows_that_wait_for_an_earlier_one_are_answered():
    """They are of those that the speed and the rest are made of; that they are not written is said."""
    assert told(50, 2.0, rows=10).startswith("40 of them not yet written, 25 rows/s, 4 s left, ")


def test_a_row_that_is_left_takes_some_time():
    """However fast the others were."""
    assert ", 1 s left, " in told(149, 1.0)
    assert ", all answered, " in told(150, 1.0)


def test_when_nothing_is_answered_that_is_said():
    """Instead of a guess made of what was answered before; the next answer makes one again."""
    counts = {**NONE, "answered": 149, "rows": 20, "requests": 150, "in_flight": 1}
    pace = Pace(150, NONE, 0.0)
    assert ", 1 s left, 1 in flight" in pace.told(counts, 10.0)
    assert " s left, " in pace.told(counts, 9.9 + STILL_SECONDS)
    assert ", none answered for 45 s, 1 in flight" in pace.told(counts, 55.0)
    assert ", all answered, " in pace.told({**counts, "answered": 150, "in_flight": 0}, 56.0)


def test_a_guess_that_is_reached_is_no_end_while_requests_are_under_way():
    """How many rows a text file has is only known at its end."""
    counts = {**NONE, "answered": 100, "rows": 100, "requests": 9, "in_flight": 8}
    pace = Pace(100, NONE, 0.0)
    assert ", no end in sight yet, 8 in flight" in pace.told(counts, 10.0)
    assert ", none answered for 30 s, 8 in flight" in pace.told(counts, 40.0)


def test_what_nobody_can_tell_is_not_told():
    """Before the first answer; where workers elsewhere count nothing here; and where the rows were guessed too low."""
    assert ", no end in sight yet, " in told(0, 1.0)
    assert ", none answered for 600 s, " in told(0, 600.0)
    assert ", no end in sight yet, " in told(0, 600.0, requests=0)
    assert ", no end in sight yet, " in told(151, 1.0)


def test_what_was_done_before_is_not_counted_again():
    """A run that goes over its rows once more has fewer left."""
    before = {**NONE, "answered": 900, "rows": 900, "requests": 9}
    pace = Pace(100, before, 10.0)
    assert ", 1 s left, " in pace.told({**before, "answered": 950, "rows": 950}, 11.0)
    assert (pace.answered, pace.total) == (50, 100)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.floats(0, 100)), max_size=20), st.integers(0, 50))
def test_a_line_can_be_said_at_any_time(steps, total):
    """Whatever comes: no row is left where all are answered, and none is missed where one just came."""
    counts, now = dict(NONE), 0.0
    pace = Pace(total, NONE, now)
    for answered, requests, seconds in steps:
        counts = {**counts, "answered": counts["answered"] + answered, "requests": counts["requests"] + requests}
        now += seconds
        line = pace.told(counts, now)
        assert pace.answered == counts["answered"] <= pace.total
        assert ("all answered" in line) == (pace.answered == total)
        assert not (answered and "none answered" in line)
        assert ", 0 s left" not in line


@pytest.mark.usefixtures("wide_open")
def test_rows_are_answered_while_an_earlier_one_is_held_back(tmp_path):
    """One row keeps its stream from being written, and no other from being counted."""
    let_go = threading.Event()

    def answer(call):
        if call.places == [5]:
            assert let_go.wait(100)
        return score(call)

    table = jobs.flowers(40).set_column(1, "sepal_length", [[float(row) for row in range(40)]])
    jobs.put(tmp_path / "in" / "a.parquet", table)
    [one] = jobs.listed(tmp_path / "in" / "*.parquet")
    work = Work(Source(0, one.uri, one.path, one.size, one.version, 40), 0, 40)
    progress = Progress()
    with recording(answer) as service:
        job = jobs.loaded(jobs.job_file(tmp_path, service.url, service={"url": service.url, **NAMELESS}))
        scorer = Scorer(job, Order("run", probe=False), stopping=Stopping(), progress=progress)
        scoring = threading.Thread(target=scorer.score, args=(work,))
        scoring.start()
        try:
            jobs.until(lambda: progress.read()["answered"] == 39 and progress.read()["rows"] == 5)
        finally:
            let_go.set()
            scoring.join()
            scorer.close()
    counts = progress.read()
    assert (counts["answered"], counts["rows"], counts["dead"]) == (40, 40, 0)


@pytest.mark.parametrize("last", ["nan", "6.0"])
def test_rows_that_die_are_answered_too(tmp_path, last):
    """Whether they are not even sent, or the service refuses them."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text("".join(f"{row}\n" for row in ["sepal_length", *range(5), last]))
    seen = []

    def watch(progress, _):
        seen.append(progress)
        return nullcontext()

    with recording(lambda call: refusal(400, "MR.0105") if 6 in call.places else score(call)) as service:
        given = {"path": "in/*.csv", "nan": "reject", "columns": {"sepal_length": "double"}}
        path = jobs.job_file(tmp_path, service.url, input=given, service={"url": service.url, **NAMELESS})
        summary = jobs.score(path, watch=watch)
    counts = seen[0].read()
    assert (summary.scored, summary.dead, counts["answered"], counts["rows"]) == (5, 1, 6, 6)
