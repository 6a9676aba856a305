from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.retry import MAX_RETRY_AFTER, Patience, retry_after
from schemas.job import Retry

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def patience(clock, **limits):
    return Patience(Retry(**limits), clock=clock, rng=Random(7))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("2", 2.0),
        (" 7 ", 7.0),
        ("1.5", 1.5),
        ("120", 120.0),
        ("000000000000000000060", 60.0),
        ("301", MAX_RETRY_AFTER),
        ("9" * 400, MAX_RETRY_AFTER),
        ("-5", 0.0),
        ("nan", 0.0),
        ("Sat, 21 Nov 2026 12:00:30 GMT", 30.0),
        ("Saturday, 21-Nov-26 12:00:30 GMT", 30.0),
        ("Sat, 21 Nov 2026 13:00:30 +0100", 30.0),
        ("Sat, 21 Nov 2026 12:00:30 -0000", 30.0),
        ("Sat, 21 Nov 2026 11:59:00 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", MAX_RETRY_AFTER),
        ("", None),
        ("soon", None),
        ("Mon, 01 Jan 99999 00:00:00 GMT", None),
        ("Mon, 01 Jan 2024 00:00:00 +99999999999999", None),
    ],
)
def test_retry_after_is_read_as_seconds_or_a_date(value, seconds):
    """Bounded by 0 and MAX_RETRY_AFTER; what is neither counts as not said."""
    assert retry_after({"Retry-After": value}, NOW) == seconds


def test_an_answer_without_retry_after_asks_for_nothing():
    """No header, no wish."""
    assert retry_after({}, NOW) is None


@given(st.text() | st.from_regex(r"[A-Z][a-z]{2}, \d{1,5} [A-Z][a-z]{2} \d{1,6} \d+:\d+:\d+ ([+-]\d{1,20}|GMT)"))
def test_no_retry_after_is_an_error(value):
    """Whatever a gateway writes there: nothing, or seconds within bounds."""
    seconds = retry_after({"Retry-After": value}, NOW)
    assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER


@given(st.datetimes(datetime(2026, 11, 21), datetime(2026, 11, 22)))  # noqa: DTZ001 - hypothesis wants them naive
def test_a_date_means_the_seconds_until_then(when):
    """At most MAX_RETRY_AFTER, at least 0."""
    then = when.replace(microsecond=0, tzinfo=UTC)
    seconds = retry_after({"Retry-After": then.strftime("%a, %d %b %Y %H:%M:%S GMT")}, NOW)
    assert seconds == min(max((then - NOW) / timedelta(seconds=1), 0.0), MAX_RETRY_AFTER)


def test_delays_double_up_to_half_a_minute_with_equal_jitter():
    """Each lies between half its base and its base: 0.5, 1, 2 ... 30, 30 seconds."""
    tried = patience(Clock(), attempts=100)
    for base in [0.5, 1, 2, 4, 8, 16, 30, 30, 30]:
        seconds, _ = tried.failed(None)
        assert base / 2 <= seconds <= base


def test_the_two_thousandth_attempt_does_not_overflow():
    """Two to the power of attempts is beyond any float; the delay is not."""
    tried = patience(Clock(), attempts=10_000, seconds=1e9)
    delays = [tried.failed(None)[0] for _ in range(2000)]
    assert all(0.25 <= seconds <= 30 for seconds in delays)


def test_the_service_is_never_asked_sooner_than_it_wishes():
    """`Retry-After` is a lower bound of the delay, and no upper one."""
    tried = patience(Clock(), attempts=100)
    assert tried.failed(12.0)[0] == 12.0
    assert all(tried.failed(0.0)[0] > 0 for _ in range(5))
    assert tried.failed(1.0)[0] > 1.0


@pytest.mark.parametrize("attempts", [1, 2, 8])
def test_the_budget_is_spent_with_the_last_attempt(attempts):
    """`retry.attempts` counts those that failed."""
    tried = patience(Clock(), attempts=attempts)
    assert [tried.failed(None)[1] for _ in range(attempts)] == [False] * (attempts - 1) + [True]


def test_the_budget_is_spent_before_its_seconds_would_be_exceeded():
    """A wait that would end after `retry.seconds` is not begun."""
    clock = Clock()
    tried = patience(clock, attempts=100, seconds=60)
    clock.now += 500  # the wait for a place was not its trouble
    assert tried.failed(1.0)[1] is False
    clock.now += 40
    assert tried.failed(19.0) == (19.0, False)
    assert tried.failed(21.0) == (21.0, True)


def test_forgiven_failures_give_a_new_budget_but_no_shorter_delays():
    """What the service did to all does not count against one request."""
    clock = Clock()
    tried = patience(clock, attempts=3, seconds=60)
    spent = []
    for _ in range(6):
        spent.append(tried.failed(None)[1])
        clock.now += 30
    assert spent == [False, False, True, True, True, True]
    tried.forgive()
    again = [tried.failed(None) for _ in range(3)]
    assert [spent for _, spent in again] == [False, False, True]
    assert all(seconds >= 15 for seconds, _ in again)
