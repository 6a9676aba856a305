"""Refusals that say nothing about load: how many are chance, and what a check with less load finds."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.noise import Check, Noise, usual


def checked(share, *, seen, known=0.0, seed=0, limit=10_000):
    """Return what a check finds where so large a share is refused."""
    rng, check = random.Random(seed), Check(0.0, 10.0, known, seen, again=False)
    for number in range(limit):
        found = check.answered(float(number), refused=rng.random() < share)
        if found is not None:
            return found
    return None


def test_what_is_refused_as_before_is_noise_and_what_is_no_more_refused_was_a_ceiling():
    """Seldom is one taken for the other."""
    for seen in (0.05, 0.1, 0.2):
        assert sum(checked(seen, seen=seen, seed=seed) is True for seed in range(100)) >= 95
        assert all(checked(0.0, seen=seen, seed=seed) is False for seed in range(10))


def test_a_share_that_is_noise_already_is_none_of_the_new_one():
    """Beside one in ten, three in ten are a ceiling if a check brings them back to one in ten."""
    assert sum(checked(0.1, seen=0.3, known=0.1, seed=seed) is False for seed in range(100)) >= 70
    assert sum(checked(0.3, seen=0.3, known=0.1, seed=seed) is True for seed in range(100)) >= 80


@given(st.floats(0.03, 0.4), st.integers(0, 10_000))
def test_where_most_is_refused_it_is_no_noise(seen, seed):
    """Still too much is sent."""
    assert checked(0.9, seen=seen, seed=seed) is False


def test_where_nothing_succeeds_it_is_no_noise():
    """That is an outage."""
    check = Check(0.0, 10.0, 0.0, 0.2, again=False)
    assert [check.answered(0.0, refused=True) for _ in range(Check.OUTAGE)] == [None] * (Check.OUTAGE - 1) + [False]


def test_a_refusal_counts_when_a_later_request_succeeded():
    """Those that come back first are no larger a share for that."""
    check = Check(0.0, 10.0, 0.0, 0.2, again=False)
    for at in (1.0, 2.0, 5.0):
        check.answered(at, refused=True)
    assert check.share == 0.0
    check.answered(3.0, refused=False)
    assert check.share == 2 / 3


@given(st.floats(0.0, 0.4))
def test_what_is_usual_is_more_than_the_noise(share):
    """Chance has its part."""
    assert share < usual(share) < 1


@given(st.lists(st.sampled_from(["sent", "refused", "empty"]), max_size=300), st.integers(1, 64))
def test_the_share_that_was_seen_is_no_more_than_all_and_no_bucket_flows_over_at_once(events, on_wire):
    """Whatever comes first: a refusal of what was sent long ago, too."""
    noise, refusals = Noise(), 0
    for event in events:
        if event == "sent":
            noise.sent(on_wire)
        elif event == "empty":
            noise.empty()
            refusals = 0
        else:
            refusals += 1
            over = noise.refused()
            assert not over or refusals > Noise.UNKNOWN
            assert noise.seen > 0
            if over:
                assert noise.seen <= 1


@pytest.mark.parametrize("share", [0.005, 0.01])
def test_a_small_share_never_fills_the_bucket(share):
    """A hundred thousand requests, in bursts of fifty."""
    rng, noise = random.Random(3), Noise()
    for _ in range(2000):
        for number in range(50):
            noise.sent(number + 1)
        for _ in range(50):
            assert not (rng.random() < share and noise.refused())


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_noise_that_is_known_fills_the_bucket_seldom(share):
    """In a hundred thousand requests, a dozen times at the most."""
    rng, noise, times = random.Random(3), Noise(), 0
    noise.found(share, 0.0)
    for _ in range(100_000):
        noise.sent(10)
        if rng.random() < share and noise.refused():
            times += 1
            noise.empty()
    assert times <= 12


def test_all_that_share_a_clock_check_the_noise_at_once_and_not_while_they_drain():
    """Halfway between two drains, whenever it was found."""
    for now in (0.0, 3.9, 4.0, 11.9):
        noise = Noise()
        noise.found(0.1, now)
        assert noise.check_at > now
        assert noise.check_at % Noise.PERIOD_SECONDS == Noise.PERIOD_SECONDS / 2


def test_what_would_take_too_long_is_checked_later():
    """A few requests a second tell nothing in a moment."""
    noise = Noise()
    noise.found(0.05, 0.0)
    assert noise.again(4.0, 5.0) is None
    assert noise.check_at == 12.0
    check = noise.again(12.0, 100.0)
    assert check is not None
    assert check.rate == 50.0
    noise.refuted(check)
    assert noise.share == 0.0
    assert noise.check_at == math.inf
