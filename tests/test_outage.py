"""Whether anybody is answered, and when to ask while nobody is: a clock and what came back."""

from __future__ import annotations

import pytest

from pipeline.outage import Outage


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def failing(outage, clock, *, times, each=2.0, **how):
    """Let so many requests fail one after the other, each sent after the one before had failed."""
    for _ in range(times):
        sent = clock.now
        clock.now += each
        outage.failed(sent, **how)


def test_a_few_failures_in_a_moment_are_no_outage(clock):
    """A burst of refusals is the window's matter."""
    outage = Outage(clock)
    failing(outage, clock, times=50, each=0.01)
    assert not outage
    assert outage.wait() == 0


def test_failures_of_what_was_sent_before_the_first_one_tell_nothing(clock):
    """They were on their way together: the next ones may well be answered."""
    outage = Outage(clock)
    for _ in range(50):
        outage.failed(clock.now)
    clock.now += 60
    for _ in range(50):
        outage.failed(99.0)
    assert not outage


def test_what_the_model_itself_fails_on_needs_no_sparing(clock):
    """Nothing succeeds, but somebody is there; how long that goes on is counted all the same."""
    outage = Outage(clock)
    failing(outage, clock, times=10, by_the_model=True)
    assert not outage
    assert outage.seconds == 18.0


def test_while_nobody_is_answered_one_asks_at_a_time_with_growing_pauses(clock):
    """1, 2, 4 ... 30, 30 seconds between the end of a probe and the next one."""
    outage = Outage(clock)
    failing(outage, clock, times=5)
    assert outage
    pauses = []
    for _ in range(8):
        probe = outage.send()
        assert outage.wait() > 0, "a second one was let through"
        clock.now += 40
        outage.failed(probe)
        outage.back(probe)
        pauses.append(outage.wait())
        clock.now += outage.wait()
        assert outage.wait() == 0
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]


def test_one_answer_ends_it_at_once(clock):
    """And the next outage begins with short pauses again."""
    outage = Outage(clock)
    failing(outage, clock, times=5)
    probe = outage.send()
    outage.answered()
    outage.back(probe)
    assert not outage
    assert (outage.wait(), outage.seconds) == (0, 0)
    failing(outage, clock, times=5)
    outage.back(outage.send())
    assert outage.wait() == 1


def test_the_end_of_a_request_from_before_is_not_the_end_of_the_probe(clock):
    """Only the probe's own end lets the next one through."""
    outage = Outage(clock)
    before = outage.send()
    failing(outage, clock, times=5)
    outage.send()
    outage.back(before)
    clock.now += 1000
    assert outage.wait() > 0
