"""The window against services of every kind, a minute of each in virtual time: share of the ideal, and what waits."""

from __future__ import annotations

import math
import random

import pytest
from simulated import Client, Service, World, percentile, rate

SEEDS = range(3)
SECONDS = 60.0
LATENCY = 0.2


def world(seed):
    """Return a clock that begins anywhere between two drains, and the seed's randomness."""
    rng = random.Random(seed)
    return World(1000 + 8 * rng.random()), rng


def played(clock, service, rng, *, seconds=SECONDS, workers=1, apart=0.0, askew=0.0, **options):
    """Let workers send as much as their windows take; they start so many seconds apart, with clocks so far askew."""
    offsets = [askew * rng.random() if askew else 0.0 for _ in range(workers)]
    clients = [Client(clock, service, rng, offset=offset, **options) for offset in offsets]
    for number, client in enumerate(clients):
        clock.after(number * apart, client.go)
    clock.run(seconds)
    return clients


def everything(clients):
    """Return what was done by all."""
    return [one for client in clients for one in client.done]


def fairness(clients, start, end):
    """Return Jain's index of the clients' rates: one where all have the same, a share where a share has all."""
    rates = [rate(client.done, start, end) for client in clients]
    return sum(rates) ** 2 / sum(one**2 for one in rates) / len(rates)


def fixed(seconds):
    """Every request takes the same time."""
    return lambda _: seconds


def refused(done, start=10.0):
    """Return the share of requests that were refused after that time."""
    statuses = [one.status for one in done if one.ended >= start]
    return statuses.count(429) / len(statuses)


@pytest.mark.parametrize("seed", SEEDS)
def test_slots_are_filled_and_little_waits(seed):
    """Blind: 64 slots of 200 ms, in a minute from the first request on."""
    clock, rng = world(seed)
    done = everything(played(clock, Service(clock, fixed(LATENCY), lambda: 64), rng))
    assert rate(done, 0, SECONDS) >= 0.9 * 320
    assert rate(done, 5, SECONDS) >= 0.95 * 320
    assert percentile(done, 0.99, [(0, SECONDS)]) <= 3 * LATENCY


@pytest.mark.parametrize("seed", SEEDS)
def test_slots_that_change_are_followed(seed):
    """64, 16, 64 slots, and nobody tells; outside the five seconds after a change nothing waits long."""
    clock, rng = world(seed)
    service = Service(clock, fixed(LATENCY), lambda: 16 if 20 <= clock.elapsed < 40 else 64)
    done = everything(played(clock, service, rng))
    assert rate(done, 0, SECONDS) >= 0.85 * (320 + 80 + 320) / 3
    assert percentile(done, 0.99, [(5, 20), (25, 40), (45, 60)]) <= 3 * LATENCY
    assert max(one.seconds for one in done) < 2


@pytest.mark.parametrize("seed", SEEDS)
def test_a_service_that_collapses_under_a_queue_is_not_made_to(seed):
    """All gets four times slower while more than twice the slots wait; so many never do."""
    clock, rng = world(seed)
    service = Service(clock, fixed(LATENCY), lambda: 64, drag=lambda waiting: 4.0 if waiting > 128 else 1.0)
    done = everything(played(clock, service, rng))
    assert service.most_waiting <= 128
    assert rate(done, 0, SECONDS) >= 0.85 * 320
    assert percentile(done, 0.99, [(0, SECONDS)]) <= 3 * LATENCY


class Bucket:
    """A rate limit: so many a second, and so many saved up."""

    def __init__(self, clock, rate, burst):
        self._clock, self._rate, self._burst = clock, rate, burst
        self._tokens, self._at = float(burst), clock.now

    def __call__(self, _):
        """Whether one more is too much."""
        self._tokens = min(self._burst, self._tokens + (self._clock.now - self._at) * self._rate)
        self._at = self._clock.now
        if self._tokens < 1:
            return True
        self._tokens -= 1
        return False


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("limit", "burst", "latency"), [(100, 100, 0.1), (100, 10, 0.02), (50, 50, 0.5)])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_rate_limit_is_kept_below(seed, limit, burst, latency, workers):
    """Of what is sent after ten seconds at most 2 % is refused, and nearly all of the rate is used."""
    clock, rng = world(seed)
    service = Service(clock, fixed(latency), lambda: 10**6, refuses=Bucket(clock, limit, burst))
    done = everything(played(clock, service, rng, workers=workers))
    assert refused(done) <= 0.02
    assert rate(done, 10, SECONDS) >= 0.85 * limit


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_a_limit_of_requests_at_once_is_kept_below(seed, spread):
    """32 slots and a 429 for everybody else."""
    clock, rng = world(seed)
    service = Service(clock, lognormal(rng, spread), lambda: 32, refuses=lambda service: service.busy >= 32)
    done = everything(played(clock, service, rng))
    assert refused(done) <= 0.02
    assert rate(done, 10, SECONDS) >= 0.85 * 160


def noise(rng, share):
    """Refuse so many at random, whatever the load."""
    return lambda _: rng.random() < share


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("slots", "latency"), [(64, 0.2), (16, 0.05)])
@pytest.mark.parametrize(("share", "least"), [(0.005, 0.9), (0.01, 0.9), (0.05, 0.8), (0.2, 0.6)])
@pytest.mark.parametrize("workers", [1, 2])
def test_refusals_that_have_nothing_to_do_with_load_leave_the_slots_filled(seed, slots, latency, share, least, workers):
    """Sending less would not help: so many are refused of whatever is sent."""
    clock, rng = world(seed)
    service = Service(clock, fixed(latency), lambda: slots, refuses=noise(rng, share))
    done = everything(played(clock, service, rng, workers=workers))
    assert rate(done, 20, SECONDS) >= least * slots / latency
    assert percentile(done, 0.99, [(20, SECONDS)]) <= 3 * latency


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("share", "least"), [(0.05, 0.7), (0.2, 0.6)])
def test_refusals_at_random_and_times_at_random_are_told_from_load(seed, share, least):
    """Fast answers come first, and refusals before them: neither may make noise seem more or less than it is."""
    clock, rng = world(seed)
    done = everything(played(clock, Service(clock, lognormal(rng, 0.5), lambda: 64, refuses=noise(rng, share)), rng))
    assert rate(done, 20, SECONDS) >= least * 320


@pytest.mark.parametrize("seed", SEEDS)
def test_refusals_at_random_that_come_and_go_leave_the_slots_filled(seed):
    """One in ten, from 20 s to 60 s."""
    clock, rng = world(seed)
    service = Service(
        clock, fixed(LATENCY), lambda: 64, refuses=lambda _: 20 <= clock.elapsed < 60 and rng.random() < 0.1
    )
    done = everything(played(clock, service, rng, seconds=90))
    assert rate(done, 20, 60) >= 0.7 * 320
    assert rate(done, 60, 90) >= 0.9 * 320


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("share", "least"), [(0.01, 0.6), (0.05, 0.3)])
def test_a_rate_limit_is_found_among_refusals_at_random(seed, share, least):
    """Too much is sent for moments only, and some of it is used."""
    clock, rng = world(seed)
    at_random, bucket = noise(rng, share), Bucket(clock, 100, 100)
    service = Service(clock, fixed(0.1), lambda: 10**6, refuses=lambda it: at_random(it) or bucket(it))
    done = everything(played(clock, service, rng))
    assert refused(done) <= share + 0.1
    assert rate(done, 10, SECONDS) >= least * 100


@pytest.mark.parametrize("seed", SEEDS)
def test_a_gateways_queue_is_not_filled_until_it_cuts(seed):
    """Nothing is refused, all waits, and is cut after 40 s: 16 slots of 4 s."""
    clock, rng = world(seed)
    done = everything(played(clock, Service(clock, fixed(4.0), lambda: 16), rng, seconds=400))
    assert all(one.status == 200 for one in done)
    assert rate(done, 60, 400) >= 0.9 * 4
    assert percentile(done, 0.99, [(0, 400)]) <= 3 * 4


@pytest.mark.parametrize("seed", SEEDS)
def test_a_service_that_scales_up_is_filled_again(seed):
    """It doubles its slots every five seconds while they are busy, from 4 to 64."""
    clock, rng = world(seed)
    slots = [4]

    def scale():
        slots[0] = min(64, 2 * slots[0] if service.busy >= 0.8 * slots[0] else slots[0])
        clock.after(5, scale)

    service = Service(clock, fixed(LATENCY), lambda: slots[0])
    clock.after(5, scale)
    done = everything(played(clock, service, rng))
    assert slots == [64]
    assert rate(done, 30, SECONDS) >= 0.9 * 320
    assert percentile(done, 0.99, [(0, SECONDS)]) <= 3 * LATENCY


def lognormal(rng, spread):
    """Return times whose mean is LATENCY, and whose logarithm has that standard deviation."""
    return lambda _: LATENCY * math.exp(rng.gauss(0, spread) - spread**2 / 2)


def pareto(rng, shape):
    """Return times whose mean is LATENCY, with a tail that is heavier the smaller the shape."""
    return lambda _: LATENCY * (shape - 1) / shape * rng.paretovariate(shape)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("noise", "parameter"), [(lognormal, 0.25), (lognormal, 0.5), (lognormal, 1.0), (pareto, 1.8), (pareto, 3.0)]
)
def test_noise_and_heavy_tails_are_not_taken_for_a_queue(seed, noise, parameter):
    """The slots stay filled; the percentile is one and a half of what it would be in an idle service."""
    clock, rng = world(seed)
    takes = noise(rng, parameter)
    done = everything(played(clock, Service(clock, takes, lambda: 64), rng))
    idle = sorted(takes(1) for _ in range(20_000))[19_800]
    assert rate(done, 10, SECONDS) >= 0.9 * 320
    assert percentile(done, 0.99, [(0, SECONDS)]) <= 1.5 * idle


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("slots", "latency", "seconds"), [(1, 0.2, 60), (1, 10, 600), (1, 0.001, 5), (4, 0.001, 5)])
def test_small_services_and_fast_and_slow_ones_are_kept_busy(seed, slots, latency, seconds):
    """One slot, a millisecond, ten seconds: the queue is never longer than what is served."""
    clock, rng = world(seed)
    service = Service(clock, fixed(latency), lambda: slots)
    done = everything(played(clock, service, rng, seconds=seconds, overhead=latency / 100))
    assert rate(done, 0, seconds) >= 0.95 * slots / latency
    assert percentile(done, 0.99, [(0, seconds)]) <= 3 * latency


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("slots", "workers", "apart"), [(64, 4, 0.01), (64, 4, 15), (16, 8, 0.01)])
def test_workers_that_share_a_service_are_fair_and_do_not_swamp_it(seed, slots, workers, apart):
    """Started together, or one after the other, when the others' queue is all that the newcomer has seen."""
    clock, rng = world(seed)
    clients = played(
        clock, Service(clock, fixed(LATENCY), lambda: slots), rng, seconds=120, workers=workers, apart=apart
    )
    done, ideal = everything(clients), slots / LATENCY
    assert rate(done, 0, 120) >= 0.9 * ideal
    assert percentile(done, 0.99, [(0, 120)]) <= 3 * LATENCY
    assert fairness(clients, 60, 120) >= 0.8


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("slots", "workers", "askew"), [(64, 4, 0.5), (16, 8, 0.5), (64, 4, 100_000)])
def test_clocks_that_disagree_cost_a_little_fairness_and_nothing_else(seed, slots, workers, askew):
    """Hosts agree on the time to a part of a second; a few workers even need not."""
    clock, rng = world(seed)
    service = Service(clock, fixed(LATENCY), lambda: slots)
    clients = played(clock, service, rng, seconds=120, workers=workers, apart=0.01, askew=askew)
    done = everything(clients)
    assert rate(done, 0, 120) >= 0.9 * slots / LATENCY
    assert percentile(done, 0.99, [(0, 120)]) <= 3.5 * LATENCY
    assert fairness(clients, 60, 120) >= 0.75


@pytest.mark.parametrize("seed", SEEDS)
def test_a_service_that_is_slower_for_good_is_filled_all_the_same(seed):
    """From 200 ms to 800 ms: that is no queue, and no reason to send less for ever."""
    clock, rng = world(seed)
    done = everything(played(clock, Service(clock, lambda _: 0.2 if clock.elapsed < 20 else 0.8, lambda: 64), rng))
    assert rate(done, 40, SECONDS) >= 0.9 * 80


@pytest.mark.parametrize("seed", SEEDS)
def test_requests_of_every_size_are_compared_with_their_like(seed):
    """Requests of 1 to 200 rows, each row a millisecond: a large one is no queue."""
    clock, rng = world(seed)
    takes = {1: 0.051, 100: 0.15, 200: 0.25}
    service = Service(clock, lambda rows: takes[rows], lambda: 16)
    done = everything(played(clock, service, rng, rows=lambda: rng.choice(list(takes))))
    mean = sum(takes.values()) / 3
    assert rate(done, 5, SECONDS) >= 0.9 * 16 / mean
    assert percentile(done, 0.99, [(0, SECONDS)]) <= 3 * max(takes.values())


@pytest.mark.parametrize("seed", SEEDS)
def test_after_an_outage_all_is_as_before(seed):
    """Ten seconds of nothing but refusals."""
    clock, rng = world(seed)
    service = Service(clock, fixed(LATENCY), lambda: 64, refuses=lambda _: 20 <= clock.elapsed < 30)
    done = everything(played(clock, service, rng))
    assert rate(done, 45, SECONDS) >= 0.9 * 320
    assert sum(one.status == 429 for one in done) < 500


def test_the_upper_bound_holds_however_many_slots_there_are():
    """More places than `limits.in_flight` are never taken."""
    clock, rng = world(0)
    [client] = played(clock, Service(clock, fixed(LATENCY), lambda: 1000), rng, seconds=20, upper=100)
    assert max(limit for _, limit in client.limits) == 100
    assert rate(client.done, 5, 20) >= 0.9 * 100 / LATENCY
