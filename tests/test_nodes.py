"""Several URLs: whose turn it is, who is left out and for how long, and what a job makes of nodes that come and go."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import ExitStack

import pytest
from engine import examples
from hypothesis import given
from hypothesis import strategies as st
from service import recording, refusal, score

from jobs import call, command, flowers, job_file, letters, proved, put, receipts, runs, stats, token, until
from pipeline.nodes import FIRST_PAUSE, LONGEST_PAUSE, Nodes
from pipeline.sandbox.iam import Tokens
from pipeline.sandbox.server import Options, running

URLS = ["http://a", "http://b", "http://c"]


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def nodes(count=3):
    clock = Clock()
    return Nodes(URLS[:count], clock=clock), clock


def answer(some, pick):
    some.answered(pick, well=True)


def ask(some, url=None):
    """Ask, and be answered; where a URL is given, go on until it was its turn."""
    while True:
        pick = some.pick()
        answer(some, pick)
        if url in (None, pick.url):
            return pick.url


def fail(some, clock, url, *, sure=True, **options):
    """Let a node fail the next time that it is asked; the others answer."""
    while (pick := some.pick()).url != url:
        answer(some, pick)
        clock.now += 0.001
    clock.now += 0.001
    return some.failed(pick, sure=sure, **options)


def test_idle_nodes_are_asked_in_turn():
    """One request after the other goes round."""
    some, _ = nodes()
    assert [ask(some) for _ in range(7)] == [*URLS, *URLS, URLS[0]]


def test_who_has_least_to_answer_is_asked():
    """A slow node gets what it can answer, and the others the rest."""
    some, _ = nodes()
    held = [some.pick() for _ in range(3)]
    answer(some, held[1])
    assert [some.pick().url for _ in range(4)] == ["http://b", "http://a", "http://c", "http://b"]


@examples()
@given(st.lists(st.integers(0, 9), min_size=1, max_size=200), st.integers(2, 3))
def test_requests_are_balanced(steps, count):
    """Whatever is answered when: who is asked never has more to answer than another one."""
    some, _ = nodes(count)
    held = []
    for step in steps:
        if step < 5 and held:
            answer(some, held.pop(step % len(held)))
        else:
            here = Counter(pick.url for pick in held)
            held.append(some.pick())
            assert here[held[-1].url] == min(here[url] for url in URLS[:count])


def test_a_node_without_a_connection_is_left_out_at_once_and_one_request_tries_it_again():
    """Trials are one at a time, and fewer and fewer; an answer brings the node back among the others."""
    some, clock = nodes()
    ask(some, "http://a")
    assert fail(some, clock, "http://b")
    assert (some.out, {ask(some) for _ in range(9)}) == (["http://b"], {"http://a", "http://c"})
    for seconds in (1, 2, 4, 8, 16, 32, 60, 60):
        clock.now += seconds - 0.01
        assert "http://b" not in {ask(some) for _ in range(4)}
        clock.now += 0.01
        trial = some.pick()
        assert (trial.url, "http://b" in {ask(some) for _ in range(4)}) == ("http://b", False)
        assert some.failed(trial, sure=True)
    clock.now += LONGEST_PAUSE
    assert ask(some) == "http://b"
    assert (some.out, {ask(some) for _ in range(3)}) == ([], set(URLS))
    fail(some, clock, "http://b")
    clock.now += FIRST_PAUSE
    assert ask(some) == "http://b", "its pauses begin anew"


def test_a_node_that_gives_errors_is_left_out_when_they_follow_each_other():
    """One cut connection may be the request's own fault, one 503 the whole service's; three in a row are the node's."""
    some, clock = nodes()
    ask(some, "http://c")
    told = [fail(some, clock, "http://b", sure=False) for _ in range(2)]
    ask(some, "http://b")
    told += [fail(some, clock, "http://b", sure=False) for _ in range(3)]
    assert told == [False, False, False, False, True]


def test_a_node_that_asks_to_be_left_alone_is():
    """For as long as it says."""
    some, clock = nodes()
    ask(some, "http://c")
    assert fail(some, clock, "http://b", sure=False, leave=30.0)
    clock.now += 29
    assert "http://b" not in {ask(some) for _ in range(9)}
    clock.now += 2
    assert ask(some) == "http://b"


def test_trouble_is_a_nodes_own_only_where_another_one_answers():
    """Or may answer, for nothing was heard of it yet; with one URL, it is the service's."""
    alone, clock = nodes(1)
    ask(alone)
    assert not fail(alone, clock, "http://a")
    some, clock = nodes()
    first, second, third = (some.pick() for _ in range(3))
    assert [some.failed(one, sure=True) for one in (first, second, third)] == [True, True, False]
    silent, clock = nodes(2)
    first, second = silent.pick(), silent.pick()
    silent.answered(second, well=False)
    assert not silent.failed(first, sure=True)


def test_where_all_are_out_who_is_due_next_is_asked_and_an_answer_lets_all_be_tried():
    """Nobody waits for a pause that grew while the whole service was out."""
    some, clock = nodes()
    for _ in range(20):
        clock.now += 1
        pick = some.pick()
        clock.now += 0.001
        some.failed(pick, sure=True)
    assert some.out == URLS
    first = ask(some)
    assert {first, ask(some), ask(some)} == set(URLS)
    assert some.out == []


def test_what_was_asked_before_a_node_failed_says_nothing_of_it_since():
    """Forty requests that are cut together are one failure, and a late answer is no recovery."""
    some, clock = nodes()
    ask(some, "http://c")
    held = [some.pick() for _ in range(60)]
    clock.now += 1
    for pick in held:
        if pick.url == "http://b":
            assert some.failed(pick, sure=True)
    late = next(pick for pick in held if pick.url == "http://a")
    clock.now += FIRST_PAUSE
    trial = some.pick()
    assert trial.url == "http://b", "and its pause is the first"
    assert some.failed(trial, sure=True)
    answer(some, late)
    assert some.out == ["http://b"]


OUTAGES = st.tuples(st.sampled_from(URLS[1:]), st.floats(0, 500), st.floats(1, 300))


@examples(0.5)
@given(st.lists(OUTAGES, max_size=4))
def test_nodes_come_and_go_and_few_requests_find_out(outages):
    """Ten requests a second for 15 minutes: a node that is down meets a trial now and then, and is soon back."""
    some, clock = nodes()
    asked, failed, start = Counter(), Counter(), clock.now
    for _ in range(9000):
        clock.now += 0.1
        pick, at = some.pick(), clock.now - start
        if any(url == pick.url and begin <= at < begin + seconds for url, begin, seconds in outages):
            failed[pick.url] += 1
            assert some.failed(pick, sure=True)
        else:
            asked[pick.url] += at > 800 + LONGEST_PAUSE + 1
            answer(some, pick)
    assert all(count <= 11 * sum(one[0] == url for one in outages) for url, count in failed.items())
    assert some.out == []
    assert max(asked.values()) - min(asked[url] for url in URLS) <= 1


@pytest.fixture
def three(monkeypatch):
    """Three sandboxes that take each other's tokens, as nodes behind one IAM do; called with a number, it stops one."""
    monkeypatch.setattr(Tokens, "check", lambda *_: None)
    with ExitStack() as stack:
        stacks = [stack.enter_context(ExitStack()) for _ in range(3)]
        urls = [one.enter_context(running(Options(port=0, latency=0.02))) for one in stacks]

        def again(number):
            port = int(urls[number].rpartition(":")[2])
            stacks[number].enter_context(running(Options(port=port, latency=0.02)))

        yield urls, lambda number: stacks[number].close(), again


@pytest.mark.parametrize("way", ["http", "websocket"])
def test_a_node_that_is_killed_and_comes_back_costs_nothing(tmp_path, three, way):
    """In the middle of a job one of three goes, and returns later: no row is lost, and all three have their share."""
    urls, kill, again = three
    put(tmp_path / "in" / "rows.parquet", flowers(12_000))
    places = [f"{url}/v1/infers/iris" for url in urls]
    if way == "websocket":
        places = [place.replace("http", "ws").replace("infers", "ws") for place in places]
    limits = {"rows": 4, "in_flight": 12}
    job = job_file(tmp_path, urls[0], service__url=places, service__auth=token(urls[0]), service__limits=limits)
    seen = []

    def disturb():
        until(lambda: stats(urls[1])["rows_answered"] >= 200)
        seen.append(stats(urls[1]))
        kill(1)
        others = stats(urls[0])["requests"]
        until(lambda: stats(urls[0])["requests"] >= others + 100)
        again(1)

    thread = threading.Thread(target=disturb)
    thread.start()
    done = call("run", job)
    thread.join()
    assert done.code == 0, done
    assert (letters(tmp_path / "out"), proved(tmp_path / "out")) == ([], ())
    [summary] = runs(tmp_path / "out")
    assert (summary["scored"], summary["dead"]) == (12_000, 0)
    assert 0 < summary["retries"] <= 30, "those that were on their way, and the trials"
    first, third = (stats(urls[number])["requests"] for number in (0, 2))
    assert abs(first - third) <= 0.1 * first + 12
    assert stats(urls[1])["requests"] > 50, "it is used again"


def plain(folder, urls, **keys):
    put(folder / "in" / "rows.parquet", flowers(400))
    keys = {"service__auth": {"type": "none"}, "service__limits": {"rows": 4, "in_flight": 8}, **keys}
    return job_file(folder, "", service__url=urls, **keys)


@pytest.mark.parametrize("status", [404, 502, 503, 504])
def test_one_node_of_two_that_only_refuses_costs_no_row_and_no_time(tmp_path, status):
    """The other one does all the work; a 503 is no pressure on it, and a 404 no end of the job while others answer."""
    with recording() as good, recording(lambda _: refusal(status, "", Server="nginx")) as bad:
        done = call("run", plain(tmp_path, [good.url, bad.url]))
    assert (done.code, letters(tmp_path / "out"), proved(tmp_path / "out")) == (0, [], ())
    assert len(bad.calls) < 20
    assert sum(one["scored"] for one in receipts(tmp_path / "out").values()) == 400


def test_a_node_that_asks_for_time_holds_nobody_else(tmp_path):
    """Its Retry-After is for itself: the others go on at once."""
    with recording() as good, recording(lambda _: refusal(503, "", Retry_After="100")) as bad:
        done = call("run", plain(tmp_path, [good.url, bad.url]))
    assert (done.code, len(bad.calls)) == (0, 1)


def test_credentials_that_one_node_refuses_end_the_job(tmp_path):
    """They are the same for all: whoever says no is named."""
    with recording() as good, recording(lambda _: refusal(403, "APIG.0302")) as bad:
        done = call("run", plain(tmp_path, [good.url, bad.url]))
        assert done.code == 4
        assert f"403 APIG.0302 no ({bad.url})" in done.err


@pytest.mark.parametrize("probe", ["--probe", "--no-probe"])
def test_a_first_node_that_does_not_have_the_model_is_left_out(tmp_path, probe):
    """The one that is asked first need not be a good one: the others have not been asked yet."""
    with recording(lambda _: refusal(404, "APIG.0101")) as bad, recording() as good:
        done = call("run", plain(tmp_path, [bad.url, good.url]), *([probe] if probe == "--no-probe" else []))
    assert (done.code, letters(tmp_path / "out")) == (0, [])


def test_nodes_none_of_which_has_the_model_end_the_job(tmp_path):
    """Each is asked, and one of them is named."""
    with recording(lambda _: refusal(404, "APIG.0101")) as one, recording(lambda _: refusal(404, "APIG.0101")) as other:
        done = call("run", plain(tmp_path, [one.url, other.url]))
        assert (done.code, len(one.calls), len(other.calls)) == (4, 1, 1)
        assert "404 APIG.0101" in done.err


def test_a_node_that_is_down_from_the_start_costs_one_attempt(tmp_path):
    """No connection is no wrong URL: the trial of the first rows goes on with the next node."""
    with recording() as good:
        done = command("run", plain(tmp_path, ["http://127.0.0.1:9/v1/infers/iris", good.url]))
    assert (done.code, letters(tmp_path / "out")) == (0, [])
    assert "http://127.0.0.1:9/v1/infers/iris is left out while it fails, and others get its requests: " in done.err


def test_a_history_names_the_node(tmp_path):
    """Which of several URLs an attempt failed on is told in dead letters."""
    gone = "http://127.0.0.1:9/v1/infers/iris"

    def answer(one):
        return refusal(422, "MR.0105") if 3 in one.places else score(one)

    with recording(answer) as good:
        done = call("run", plain(tmp_path, [good.url, gone], errors={"allow": "100%"}, service__limits={"rows": 1}))
    assert done.code == 0
    told = [attempt["message"] for letter in letters(tmp_path / "out") for attempt in letter["history"]]
    assert told
    assert all("http://127.0.0.1:9" in one or one == "no" for one in told)
