"""What the benchmark makes of what it saw, and the service that it puts under pressure."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from math import inf
from pathlib import Path
from urllib.parse import urlsplit

import pytest

BENCH = Path(__file__).with_name("bench")


@pytest.fixture(scope="module")
def bench():
    """The benchmark: a script that imports others of its folder."""
    sys.path.insert(0, str(BENCH))
    try:
        import pressure
    finally:
        sys.path.remove(str(BENCH))
    return pressure


def ask(url, *lengths):
    """Ask about rows with such a `sepal_length`; return the status, the headers and the answer."""
    row = dict.fromkeys(("sepal_width", "petal_length", "petal_width"), 1.5)
    body = {"meta": {"uuid": "7"}, "data": {"req_data": [{"sepal_length": length} | row for length in lengths]}}
    connection = HTTPConnection(urlsplit(url).netloc, timeout=60)
    try:
        connection.request("POST", urlsplit(url).path, json.dumps(body))
        reply = connection.getresponse()
        return reply.status, reply.headers, json.loads(reply.read())
    finally:
        connection.close()


def test_a_rate_is_a_share_of_what_the_slots_had_time_for(bench):
    """Ten slots of 0.2 s for two seconds, then five for two: 150 requests; what ends later or fails is none."""
    log = [(1.0, 1.2, 200)] * 75 + [(1.0, 1.2, 429), (3.9, 4.1, 200)]
    assert bench.share(log, [(0.0, 10), (2.0, 5)], 4.0) == 0.5


def test_what_is_slow_right_after_a_change_does_not_count(bench):
    """Five seconds after each change; and of the others one in a hundred may take longer."""
    log = [(float(n), n + 0.2, 200) for n in range(20)]
    slow = [(21.0, 29.0, 200), (3.0, 99.0, 504)]
    phases = [(0.0, 64), (20.0, 16)]
    assert bench.slowest(log + slow, phases, 60.0) == pytest.approx(1.0)
    assert bench.slowest([*log, (26.0, 28.0, 200)], phases, 60.0) == pytest.approx(10.0)
    assert bench.slowest([], phases, 60.0) == inf


def test_a_request_is_late_that_was_cut_or_took_longer_than_its_deadline(bench):
    """Forty seconds."""
    assert bench.late([(0.0, 39.0, 200), (0.0, 41.0, 200), (0.0, 1.0, 504)]) == 2


def test_refusals_count_once_there_was_time_to_find_out(bench):
    """After ten seconds."""
    assert bench.refused([(9.0, 9.0, 429), (10.0, 10.0, 429), (11.0, 11.0, 200)]) == 0.5
    assert bench.refused([]) == 0


@pytest.mark.parametrize(
    ("least", "most", "met", "goal"),
    [(0.5, inf, True, "at least 50%"), (-inf, 0.5, False, "at most 50%"), (-inf, inf, True, "-")],
)
def test_a_figure_tells_its_goal_and_whether_it_is_met(bench, least, most, met, goal):
    """Nothing is asked of the peers."""
    figure = bench.Figure("share", 0.6, least=least, most=most, form="{:.0%}")
    assert (figure.met, figure.goal) == (met, goal)


def test_the_service_takes_as_many_at_once_as_it_has_slots(bench):
    """Four requests at two slots: the last ones wait for the first, and the log tells how long."""
    with bench.server("--slots", "2", "--latency", "0.1", script="gateway.py") as url:
        with ThreadPoolExecutor(4) as pool:
            replies = list(pool.map(lambda length: ask(url, length), [1.0, 2.0, 3.0, 4.0]))
        told = bench.stats(url)
    assert [answer["data"]["resp_data"][0]["score"] for _, _, answer in replies] == [1.0, 2.0, 3.0, 4.0]
    assert told["peak_in_service"] <= 2
    assert [status for *_, status in told["log"]] == [200] * 4
    assert max(left for _, left, _ in told["log"]) >= 0.2


def test_the_service_gets_slots_when_its_time_has_come(bench):
    """None at first: who waits is let in by the change."""
    with bench.server("--slots", "0,0.1:1", "--latency", "0", script="gateway.py") as url:
        assert ask(url, 1.0)[0] == 200
        [[_, left, _]] = bench.stats(url)["log"]
    assert left >= 0.1


def test_the_service_refuses_what_is_too_much(bench):
    """A request now and then, and who comes in between is told to wait."""
    with bench.server("--rate", "0.001", "--retry-after", "7", "--latency", "0", script="gateway.py") as url:
        assert ask(url, 1.0)[0] == 200
        status, headers, _ = ask(url, 1.0)
    assert (status, headers["Retry-After"]) == (429, "7")


def test_the_service_refuses_rows_that_are_poison(bench):
    """With their whole request."""
    with bench.server("--poison", "5", "--latency", "0", script="gateway.py") as url:
        assert [ask(url, 1.0)[0], ask(url, 1.0, 5.0)[0]] == [200, 400]
