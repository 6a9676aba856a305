from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from pipeline.window import CUT, EPISODE_SECONDS, START, Budget, Pace, Window


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@given(st.integers(1, 1000), st.lists(st.sampled_from(["success", "pressure"]) | st.floats(0, 5), max_size=200))
def test_the_limit_stays_between_one_and_where_it_started(upper, events):
    """Whatever happens, one request may be sent, and never more than `upper` or START at once."""
    clock = Clock()
    window = Window(upper, clock=clock)
    assert window.limit == min(START, upper)
    for event in events:
        if isinstance(event, float):
            clock.now += event
        else:
            before = window.limit
            getattr(window, event)()
            assert window.limit >= before if event == "success" else window.limit <= before
        assert 1 <= window.limit <= min(START, upper)


def test_one_overflow_cuts_once_however_many_report_it():
    """All requests under way when a service overflows say so; that is one episode."""
    clock = Clock()
    window = Window(START, clock=clock)
    for _ in range(START):
        window.pressure()
    assert window.limit == int(START * CUT)
    clock.now += EPISODE_SECONDS
    window.pressure()
    assert window.limit == int(START * CUT * CUT)


def test_successes_give_back_what_pressure_took():
    """About one place for each round of successes, until the limit is where it started."""
    clock = Clock()
    window = Window(START, clock=clock)
    for _ in range(100):
        window.pressure()
        clock.now += EPISODE_SECONDS
    assert window.limit == 1
    limits = []
    for _ in range(START * START):
        window.success()
        limits.append(window.limit)
    assert limits == sorted(limits)
    assert limits[0] == 2
    assert limits.index(START) > START
    assert limits[-1] == START


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
