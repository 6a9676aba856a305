"""How large the requests of a whole job become, against services that take less than the job file says."""

from __future__ import annotations

import json
import math
import time

import pytest
from service import recording, refusal, score

import jobs


def job(folder, service, rows, **limits):
    """Write a job over so many rows, whose first measure is the row's number."""
    table = jobs.flowers(rows)
    numbers = jobs.pa.array([float(row) for row in range(rows)])
    jobs.put(folder / "in" / "rows.parquet", table.set_column(1, "sepal_length", numbers))
    called = {"url": service.url, "auth": {"type": "none"}, "limits": limits}
    return jobs.job_file(folder, "", service=called, retry={"outage": "20s"})


def sizes(service):
    """Return the rows of every request, in order of arrival."""
    return [len(call.rows) for call in service.calls]


def assert_all_scored(summary, out, rows):
    """Every row has its own answer, and nobody is a dead letter."""
    assert (summary.scored, summary.dead, summary.left, summary.exit_code) == (rows, 0, 0, 0)
    answers = [json.loads(text)["score"] for text in jobs.results(out)["prediction"].to_pylist()]
    assert answers == [float(row) for row in range(rows)]


def test_requests_grow_to_full_size_in_four_steps(tmp_path):
    """One row, ten, a hundred, a thousand, each alone; then all that is allowed."""
    with recording() as service:
        summary = jobs.score(job(tmp_path, service, 25_000), probe=True)
    assert sizes(service)[:4] == [1, 10, 100, 1000]
    assert sorted(sizes(service)[4:]) == [7222, 8333, 8334], "the rest of the first of three splits, and the others"
    assert all(one.left <= other.arrived for one, other in zip(service.calls[:4], service.calls[1:5], strict=True))
    assert_all_scored(summary, tmp_path / "out", 25_000)


def test_without_a_trial_the_first_request_is_full(tmp_path):
    """`--no-probe` says that the service is known."""
    with recording() as service:
        done = jobs.call("run", "--no-probe", "-q", job(tmp_path, service, 25_000))
    assert (done.code, done.err) == (0, "")
    assert sorted(sizes(service)) == [8333, 8333, 8334]


@pytest.mark.parametrize("probe", [True, False])
def test_a_lower_body_limit_is_met_a_few_times_in_a_job(tmp_path, probe):
    """A gateway that takes 20 kB: of a thousand requests a dozen are refused, and the others use what is allowed."""

    def answer(call):
        return score(call) if len(call.body) <= 20_000 else refusal(413, "ModelArts.4104")

    with recording(answer) as service:
        summary = jobs.score(job(tmp_path, service, 200_000, in_flight=16), probe=probe)
    assert_all_scored(summary, tmp_path / "out", 200_000)
    refused = [call for call in service.calls if len(call.body) > 20_000]
    assert len(service.calls) > 700
    assert len(refused) <= (16 if probe else 48)
    assert len(service.calls) <= (1.25 if probe else 2) * sum(len(call.body) for call in service.calls) / 20_000


def test_a_body_that_is_known_to_be_refused_is_not_sent(tmp_path):
    """Once a size was refused, what follows is smaller, but for one trial after each rest."""
    began = time.monotonic()

    def answer(call):
        return score(call) if len(call.body) <= 20_000 else refusal(413, "ModelArts.4104")

    with recording(answer) as service:
        jobs.score(job(tmp_path, service, 40_000, in_flight=1), probe=True)
    refused = math.inf
    again = 0
    for call in service.calls:
        again += len(call.body) >= refused
        refused = min(refused, len(call.body)) if len(call.body) > 20_000 else refused
    assert again <= math.log2(1 + (time.monotonic() - began) / 5)


def test_a_service_that_is_slow_per_row_gets_what_it_can_do_in_half_its_time(tmp_path, sandbox):
    """10 ms a row, a cut at 6 s: about 300 rows, found out before anything is cut."""
    url = sandbox(row_latency=0.01, timeout=6.0)
    jobs.put(tmp_path / "in" / "rows.parquet", jobs.flowers(1500))
    path = jobs.job_file(tmp_path, url, service__limits={"timeout": "6s"})
    summary = jobs.score(path, probe=True)
    assert (summary.scored, summary.dead, summary.retries, summary.exit_code) == (1500, 0, 0, 0)
    assert 3 + 1389 / 450 <= summary.requests <= 3 + 1389 / 100


@pytest.mark.parametrize("reply", ["refused", "one answer"])
def test_a_service_that_takes_one_row_is_found_out_with_the_first_ten(tmp_path, reply):
    """Whether it refuses more, or answers only one: the ten are halved once, and all others are sent one by one."""

    def answer(call):
        if len(call.rows) == 1:
            return score(call)
        if reply == "refused":
            return 400, {}, b'{"erno": "MR.0105", "msg": "one instance, please"}'
        body = json.loads(score(call)[2])
        body["data"]["resp_data"] = body["data"]["resp_data"][:1]
        return 200, {}, json.dumps(body).encode()

    with recording(answer) as service:
        summary = jobs.score(job(tmp_path, service, 300, in_flight=16), probe=True)
    assert_all_scored(summary, tmp_path / "out", 300)
    assert sum(size > 1 for size in sizes(service)) <= 8


def test_poison_does_not_make_requests_small(tmp_path):
    """Three bad rows cost three rows, and at most 2 * ceil(log2 B) requests each: it was not how many they were."""
    poison = {5, 777, 15_000}

    def answer(call):
        return (400, {}, b'{"erno": "MR.0105", "msg": "no"}') if poison & set(call.places) else score(call)

    with recording(answer) as service:
        summary = jobs.score(job(tmp_path, service, 25_000), probe=True)
    assert (summary.scored, summary.dead) == (24_997, 3)
    assert [letter["source_row"] for letter in jobs.letters(tmp_path / "out")] == sorted(poison)
    assert len(service.calls) <= 12 + 3 * 2 * math.ceil(math.log2(10_000))
    assert sum(size > 5000 for size in sizes(service)) >= 2


def test_a_service_that_refuses_all_ends_the_run_after_three_rows(tmp_path):
    """Who waits behind these three for a place does not wait for ever."""
    with recording(lambda _: (400, {}, b'{"erno": "MR.0105", "msg": "no"}')) as service:
        summary = jobs.score(job(tmp_path, service, 1000), probe=True)
    assert (summary.exit_code, summary.scored, summary.dead, summary.left) == (4, 0, 0, 1000)
    assert sizes(service) == [1, 1, 1]


def test_the_largest_bodies_and_times_that_a_platform_has_are_used(tmp_path, sandbox):
    """50 MB and two hours: requests of nearly so many bytes, no more of them at once than memory is for."""
    rows, size, limit = 18_000, 8_000, 50_000_000
    table = jobs.flowers(rows).append_column("note", jobs.pa.array(["x" * size] * rows))
    jobs.put(tmp_path / "in" / "rows.parquet", table)
    url = sandbox(body_limit=limit, timeout=7200, latency=0.2)
    path = jobs.job_file(
        tmp_path,
        url,
        input={"path": "in/*.parquet", "keep": ["id"]},
        service__limits={"body": "50MB", "timeout": "7200s"},
    )
    assert jobs.call("run", path).code == 0
    assert (jobs.results(tmp_path / "out").num_rows, jobs.letters(tmp_path / "out")) == (rows, [])
    seen = jobs.stats(url)
    assert 0.8 * limit < seen["max_body"] <= limit
    assert (seen["bodies_over_limit"], seen["peak_in_flight"] <= 2) == (0, True)
