from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from pipeline.ceiling import Ceiling
from pipeline.window import Budget, Pace, Window


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def drive(window, clock, rounds, seconds, rows=1):
    """Fill the window, answer all after a time that is a function of how many there were; so many times over."""
    limits = []
    for _ in range(rounds):
        limits.append(window.limit)
        window.in_flight = window.limit
        sent = [window.send() for _ in range(window.limit)]
        took = seconds(len(sent))
        clock.now += took
        for one in sent:
            window.in_flight -= 1
            window.success(one, took, rows)
    return limits


EVENTS = st.sampled_from(["send", "pressure", "failed", "late"]) | st.floats(0.001, 5)


@given(st.integers(1, 1000), st.lists(EVENTS, max_size=300))
def test_the_limit_stays_between_one_and_its_upper_bound(upper, events):
    """Whatever happens, one request may be sent, and never more than `upper` at once; no rate is ever nothing."""
    clock = Clock()
    window, under_way = Window(upper, clock=clock), []
    for event in events:
        if event == "send" and window.open:
            window.in_flight += 1
            under_way.append(window.send())
        elif isinstance(event, float):
            clock.now += event
            while under_way:
                window.in_flight -= 1
                sent = under_way.pop()
                window.success(sent, clock.now - sent.at, 1)
        elif under_way and event != "send":
            window.in_flight -= 1
            sent = under_way.pop()
            window.late(sent, clock.now - sent.at, 1) if event == "late" else getattr(window, event)(sent)
        assert 1 <= window.limit <= upper
        assert window.rate > 0


def test_a_start_doubles_while_nothing_gets_slower():
    """One request tells the time of an idle service; then two, four, eight."""
    clock = Clock()
    limits = drive(Window(512, clock=clock), clock, 24, lambda _: 0.2)
    assert limits[0] == 1
    assert sorted(set(limits)) == [2**power for power in range(10)]


def test_a_start_ends_where_requests_get_slower():
    """Ten places in the service: a few more requests than that is where the limit stays."""
    clock = Clock()
    limits = drive(Window(512, clock=clock), clock, 100, lambda here: 0.2 * max(1.0, here / 10))
    assert max(limits) <= 20
    assert 9 <= sum(limits[50:]) / 50 <= 15


def warm(upper=512, places=40):
    """Return a window that has found that many places, and its clock."""
    clock = Clock()
    window = Window(upper, clock=clock)
    drive(window, clock, 60, lambda here: 0.2 * max(1.0, here / places))
    return window, clock


def overflow(window, clock):
    """Fill the window, and refuse it all."""
    window.in_flight = window.limit
    sent = [window.send() for _ in range(window.limit)]
    clock.now += 0.01
    for one in sent:
        window.in_flight -= 1
        window.pressure(one)


def test_one_overflow_is_checked_with_less_load_and_cuts_once():
    """All that were under way when a service overflowed say so; that less is refused of less shows a ceiling."""
    window, clock = warm()
    before = window.limit
    overflow(window, clock)
    assert window.limit == before
    assert window.rate < before / 0.2 / 2
    drive(window, clock, 2, lambda _: 0.2)
    while window.rate < before / 0.2 / 2:
        drive(window, clock, 1, lambda _: 0.2)
    assert before * Ceiling.CUT / 2 <= window.limit <= before * Ceiling.CUT


def test_where_no_less_is_refused_of_less_nothing_is_cut():
    """Every fifth, in a check too: that is noise."""
    window, clock = warm()
    before, limits = window.limit, []
    for _ in range(40):
        limits.append(window.limit)
        window.in_flight = window.limit
        sent = [window.send() for _ in range(window.limit)]
        clock.now += 0.2 * max(1.0, window.limit / 40)
        for number, one in enumerate(sent):
            window.in_flight -= 1
            window.success(one, clock.now - one.at, 1) if (number + 1) % 5 else window.pressure(one)
    assert window.rate > before / 0.2 / 3
    assert max(limits[-10:]) >= before * 0.7


def test_a_few_refusals_among_many_successes_say_nothing():
    """One in a hundred is chance, be it ever so often."""
    window, clock = warm()
    before = window.limit
    for _ in range(100):
        drive(window, clock, 3, lambda here: 0.2 * max(1.0, here / 40))
        window.in_flight = window.limit
        sent = window.send()
        window.pressure(sent)
        assert window.rate == math.inf
    assert window.limit >= before * 0.7


def test_what_was_refused_is_approached_again_slowly():
    """After an overflow there is a rate; it grows step by step, and is forgotten when nothing is refused for long."""
    window, clock = warm()
    before = window.limit
    overflow(window, clock)
    drive(window, clock, 6, lambda _: 0.2)
    rates = []
    while window.rate < math.inf:
        rates.append(window.rate)
        drive(window, clock, 1, lambda _: 0.2)
        assert len(rates) < 500
    assert math.isclose(rates[0], 0.95 * before / 0.2, rel_tol=0.1)
    assert rates == sorted(rates)
    assert clock.now > 10


def test_where_nothing_succeeds_no_rate_is_learned_from_it():
    """An outage is no rate limit: only the first refusals count, with the check they began; the limit goes to one."""
    window, clock = warm()
    rates = []
    for _ in range(100):
        overflow(window, clock)
        rates.append(window.rate)
    assert window.limit == 1
    assert len(set(rates[1:])) == 1


def test_a_timeout_is_a_slow_request():
    """What was given up after its deadline counts with the time that it took."""
    window, clock = warm()
    before = window.limit
    for _ in range(3):
        window.in_flight = window.limit
        sent = [window.send() for _ in range(window.limit)]
        clock.now += 40
        for one in sent:
            window.late(one, 40.0, 1)
    assert window.limit <= before / 2


def test_what_waits_for_the_rate_is_not_on_the_wire():
    """A place that is taken, but not used yet, is no reason to let more in."""
    window = Window(10, clock=Clock())
    window.in_flight, window.waiting = 5, 3
    assert window.send().in_flight == 2


def test_a_new_size_is_no_slowness():
    """Requests that are ten times as large, and take ten times as long, do not narrow the window."""
    window, clock = warm()
    before = window.limit
    after = drive(window, clock, 5, lambda here: 2.0 * max(1.0, here / 40), rows=1000)
    assert min(after) >= before // 2
    assert after[-1] >= before * 0.8


def test_the_window_is_open_while_a_place_is_free():
    """`open` compares what is in flight with the limit."""
    window = Window(2, clock=Clock())
    assert window.open
    window.in_flight = 2
    assert not window.open


@given(st.integers(1, 1000), st.lists(st.floats(0, 0.5), min_size=1, max_size=60))
def test_no_second_sees_more_requests_than_the_rate_allows(rate, pauses):
    """Turns are taken in order, at least the rate's gap apart, and no later than they must be."""
    pace, now, turns = Pace(float(rate)), 0.0, []
    for pause in pauses:
        now += pause
        turns.append(now + pace.turn(now))
        expected = max(now, turns[-2] + 1 / rate) if len(turns) > 1 else now
        assert math.isclose(turns[-1], expected, abs_tol=1e-9)


def test_a_turn_that_was_used_late_moves_the_next_one():
    """What was overslept is lost, not caught up with; what was in time moves nothing."""
    pace = Pace(10.0)
    assert (pace.turn(0.0), pace.turn(0.0)) == (0.0, 0.1)
    pace.left(0.25)
    assert math.isclose(pace.turn(0.25), 0.1)
    pace.left(0.3)
    assert math.isclose(pace.turn(0.4), 0.05)


def test_a_learned_rate_is_kept_where_it_is_the_lower_one():
    """A turn may be given a rate of its own; the job's own stays a bound."""
    pace = Pace(10.0)
    assert [pace.turn(0.0, 5.0), pace.turn(0.0, 100.0), pace.turn(0.0)] == [0.0, 0.2, 0.30000000000000004]


def test_without_a_rate_nobody_waits():
    """Every turn is now."""
    pace = Pace(None)
    assert [pace.turn(5.0) for _ in range(3)] == [0.0, 0.0, 0.0]


@given(st.integers(1, 1000), st.lists(st.integers(0, 2000), max_size=50), st.randoms())
def test_one_request_always_fits_and_more_only_within_the_budget(size, costs, rng):
    """What is held is at most the budget, or one request; when all is given back, it is all there again."""
    budget, held = Budget(size), []
    for cost in costs:
        if budget.admit(cost):
            held.append(cost)
        else:
            assert sum(held) > 0
            assert sum(held) + cost > size
            budget.release(held.pop(rng.randrange(len(held))))
        assert sum(held) <= size or sum(1 for one in held if one) == 1
    for cost in held:
        budget.release(cost)
    assert budget.admit(size)
    assert not budget.admit(1)


def test_a_request_costs_its_body_and_the_largest_reply_seen():
    """Per row; before the first reply it is a guess, and a smaller one does not make it smaller."""
    budget = Budget(1000)
    assert budget.cost(500, 10) == 500 + 10 * Budget.FIRST_GUESS
    budget.seen(reply=2000, rows=10)
    budget.seen(reply=100, rows=10)
    budget.seen(reply=150, rows=0)
    assert budget.cost(500, 10) == 500 + 10 * 200
