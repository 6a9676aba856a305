"""How large requests become: services simulated in virtual time, and what holds whatever a service does."""

from __future__ import annotations

import math
from heapq import heappop, heappush
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sizing import Bound, Sizing

MOST = 10_000
BODY = 12_000_000
ROW_BYTES = 100
TIMEOUT = 40.0


class World:
    """A job against a service that is a function `(world, rows) -> (verdict, seconds)`, in virtual time.

    Verdicts are those of a conversation: ok, large (413), late (504) and refused. `sent` has (time, rows, verdict).
    """

    def __init__(self, service, *, places=1, probe=True, rows=MOST, seed=1):
        self.service = service
        self.places = places
        self.random = Random(seed)
        self.time = 0.0
        self.sizing = Sizing(rows=rows, body=BODY, timeout=TIMEOUT, clock=lambda: self.time, trial=probe)
        self.sent = []
        self.slowest = 0.0
        self.in_flight = 0
        self._events = []
        self._trials = set()

    def run(self, *, requests):
        """Send so many requests; return the world."""
        while len(self.sent) < requests:
            while self.in_flight < self.places and not self._trials:
                rows = self.offered()
                talk = bring(rows, self.sizing)
                if self.sizing.is_trial(rows):
                    self._trials.add(talk)
                self._send(talk, next(talk))
            self.time, _, talk, rows, verdict, seconds = heappop(self._events)
            self.in_flight -= 1
            self._learn(rows, verdict, seconds)
            self._go_on(talk, verdict)
        return self

    def offered(self):
        bounds = self.sizing.offer()
        return max(1, min(bounds.rows, bounds.body // ROW_BYTES))

    def _go_on(self, talk, verdict):
        try:
            self._send(talk, talk.send(verdict))
        except StopIteration:
            self._trials.discard(talk)

    def _send(self, talk, rows):
        bounds = self.sizing.admit(rows, rows * ROW_BYTES)
        while bounds:
            rows = talk.send(bounds)
            bounds = self.sizing.admit(rows, rows * ROW_BYTES)
        self.in_flight += 1
        verdict, seconds = self.service(self, rows)
        self.sent.append((self.time, rows, verdict))
        self.slowest = max(self.slowest, seconds)
        heappush(self._events, (self.time + seconds, len(self.sent), talk, rows, verdict, seconds))

    def _learn(self, rows, verdict, seconds):
        if verdict == "ok":
            self.sizing.answered(rows, rows * ROW_BYTES, seconds)
        elif verdict == "late":
            self.sizing.late(rows)
        elif verdict == "large":
            self.sizing.too_large(rows, rows * ROW_BYTES)

    def count(self, verdict):
        return sum(one == verdict for _, _, one in self.sent)

    def sizes(self, verdict="ok"):
        return [rows for _, rows, one in self.sent if one == verdict]


def bring(rows, sizing):
    """Bring rows to an end as a conversation does: halves, cuts, and a second attempt for what is late.

    Returns whether all of them succeeded.
    """
    verdict = yield rows
    if verdict == "late":
        verdict = yield rows
    if verdict == "late" and rows > 1:
        sizing.divided(rows)
    if verdict == "ok" or (rows == 1 and isinstance(verdict, str)):
        return verdict == "ok"
    largest = (rows + 1) // 2
    if not isinstance(verdict, str):
        most = max(1, min(verdict.rows, verdict.body // ROW_BYTES))
        largest = math.ceil(rows / math.ceil(rows / most))
    went = True
    for start in range(0, rows, largest):
        went &= yield from bring(min(largest, rows - start), sizing)
    if went and verdict == "refused":
        sizing.divided(rows)
    return went


def fast(_world, rows):
    return "ok", 0.01 + rows * 1e-5


def per_row(each, fixed=0.01, spread=0.0):
    """A service that needs so long for each row, and cuts what takes too long."""

    def service(world, rows):
        seconds = (fixed + each * rows) * math.exp(world.random.gauss(0, spread))
        return ("ok", seconds) if seconds < TIMEOUT else ("late", TIMEOUT)

    return service


def body_limit(size):
    def service(_, rows):
        return ("ok", 0.1 + rows * 1e-5) if rows * ROW_BYTES <= size else ("large", 0.02)

    return service


def at_most(rows_at_once):
    def service(_, rows):
        return ("ok", 0.02) if rows <= rows_at_once else ("refused", 0.01)

    return service


def test_a_fast_service_has_full_requests_after_four_small_ones():
    """One row, ten, a hundred, a thousand, and then all."""
    assert World(fast).run(requests=8).sizes() == [1, 10, 100, 1000, MOST, MOST, MOST, MOST]


def test_nobody_goes_beside_a_trial():
    """With 64 places, too, four small requests are all."""
    world = World(fast, places=64).run(requests=200)
    assert world.sizes()[:5] == [1, 10, 100, 1000, MOST]
    assert set(world.sizes()[5:]) == {MOST}


def test_small_files_do_not_wait_for_one_another():
    """Only what is twice as large as all before is waited for, and when it goes wrong, the next one is not."""
    sizing = World(fast).sizing
    assert sizing.is_trial(1)
    sizing.answered(1, ROW_BYTES, 0.1)
    assert sizing.is_trial(4)
    assert not sizing.is_trial(4)
    sizing.answered(4, 4 * ROW_BYTES, 0.1)
    assert not sizing.is_trial(7)
    assert sizing.is_trial(8)
    assert not World(fast, probe=False).sizing.is_trial(1)


def test_without_a_trial_requests_are_full_at_once():
    """What `--no-probe` asks for."""
    assert set(World(fast, probe=False).run(requests=5).sizes()) == {MOST}


def test_a_limit_of_the_user_is_never_exceeded():
    """`limits.rows` ends the growth."""
    assert World(fast, rows=50).run(requests=5).sizes() == [1, 10, 50, 50, 50]


@pytest.mark.parametrize("places", [1, 16])
@pytest.mark.parametrize(("fixed", "each"), [(0.01, 0.005), (0.01, 1.0), (5.0, 0.1), (0.2, 15.0)])
def test_no_request_takes_more_than_half_the_timeout(fixed, each, places):
    """Slow per row, by any factor: it is found out in the first requests, and what is allowed is used."""
    world = World(per_row(each, fixed), places=places).run(requests=100)
    assert world.slowest <= TIMEOUT / 2 + 1e-9
    assert world.sizes()[-1] == pytest.approx(min(MOST, (TIMEOUT / 2 - fixed) / each), rel=0.1, abs=1)


def test_a_service_that_takes_half_the_timeout_for_a_row_gets_one_row():
    """There is nothing smaller."""
    assert set(World(per_row(25.0)).run(requests=10).sizes()) == {1}


@pytest.mark.parametrize("seed", range(5))
def test_noise_does_not_confuse(seed):
    """Times that vary by half of themselves: few are cut, and most have about the rows that they may."""
    world = World(per_row(0.005, spread=0.25), places=16, seed=seed).run(requests=400)
    assert world.count("late") <= 20
    later = sorted(world.sizes()[50:])
    assert 3000 <= later[len(later) // 2] <= 5000


def test_a_service_that_is_overloaded_is_not_slow_per_row():
    """Each of 32 requests waits for half a minute, whatever its size: smaller ones would only be more of them."""

    def service(world, rows):
        busy = 25.0 if 60 <= world.time < 1000 else 0.0
        return "ok", 5.0 + busy + rows * 1e-5

    world = World(service, places=32).run(requests=10)
    while world.time < 1200:
        world.run(requests=len(world.sent) + 100)
    during = [rows for time, rows, _ in world.sent if 200 <= time < 1000]
    assert sum(during) / len(during) > MOST / 2
    assert world.sizes()[-1] == MOST


def test_an_outage_of_gateway_timeouts_is_forgotten():
    """Whatever was cut while nobody answered: soon after, requests are full again."""

    def service(world, _):
        return ("late", TIMEOUT) if 5 <= world.time < 600 else ("ok", 0.5)

    world = World(service, places=4).run(requests=10)
    while world.time < 700:
        world.run(requests=len(world.sent) + 1)
    assert world.sizes()[-1] == MOST


@pytest.mark.parametrize("places", [1, 16])
@pytest.mark.parametrize("limit", [100_000, 5_000, 999_999, 150])
def test_a_body_limit_is_met_a_few_times_in_a_job(limit, places):
    """A thousand requests, at most a dozen refused, and nearly all of the size that is allowed."""
    world = World(body_limit(limit), places=places).run(requests=1000)
    assert world.count("large") <= 12
    assert sum(world.sizes()) >= 0.75 * (limit // ROW_BYTES) * len(world.sizes())


@pytest.mark.parametrize(("probe", "places"), [(True, 16), (False, 1)])
@pytest.mark.parametrize("most", [1, 4, 60])
def test_what_takes_few_rows_at_once_is_found_out(most, probe, places):
    """One row or a few: a few requests are refused, of a thousand; each halving once where nothing is tried first."""
    world = World(at_most(most), places=places, probe=probe).run(requests=1000)
    assert world.count("refused") <= (8 if probe else 20)
    assert world.sizes()[-1] >= most * 0.9


@pytest.mark.parametrize("verdict", ["large", "refused", "late"])
def test_what_happens_once_is_forgotten(verdict):
    """A fault at random, where requests of that size succeed before and after, changes nothing."""

    def service(world, _):
        return (verdict, 0.01) if len(world.sent) % 50 == 20 else ("ok", 0.1)

    world = World(service).run(requests=2000)
    assert sorted(world.sizes())[len(world.sizes()) // 4] == MOST


@pytest.mark.parametrize("verdict", ["large", "refused", "late"])
def test_a_fault_at_the_start_is_forgotten(verdict):
    """Requests of 100 rows were refused once, before any went: soon they are full again."""

    def service(world, _):
        return (verdict, 0.01) if len(world.sent) == 2 or (verdict == "late" and len(world.sent) == 3) else ("ok", 0.1)

    world = World(service).run(requests=3)
    while world.time < 30:
        world.run(requests=len(world.sent) + 1)
    assert world.sizes()[-1] == MOST


def test_a_limit_that_is_lowered_is_learned():
    """A new gateway in the middle of a job takes a tenth."""

    def service(world, rows):
        return body_limit(1_000_000 if world.time < 60 else 100_000)(world, rows)

    world = World(service, places=16)
    while world.time < 60:
        world.run(requests=len(world.sent) + 1)
    before = world.count("large")
    world.run(requests=len(world.sent) + 1000)
    assert world.count("large") - before <= 40
    assert 900 <= world.sizes()[-1] * ROW_BYTES / 100 <= 1000


def test_a_row_that_is_too_large_alone_teaches_nothing():
    """It cannot be cut: it becomes a dead letter, and the others are sent as before."""
    sizing = World(fast, probe=False).sizing
    for _ in range(10):
        sizing.too_large(1, 50)
        sizing.late(1)
    assert sizing.offer() == (BODY, MOST)
    assert sizing.admit(1, 10 * BODY) is None


SIZES = st.integers(2, MOST)


@given(upper=st.integers(1, 10**8), share=st.floats(1e-6, 1), start=st.integers(1, 10**8))
def test_a_bound_is_found_with_few_refusals(upper, share, start):
    """Whatever a service takes at most: found to a tenth or so, and without sending what is known to be refused."""
    truth = max(1, int(upper * share))
    bound = Bound(upper, start=start, clock=lambda: 0.0)
    refused = []
    for _ in range(100):
        size = bound.offer()
        assert bound.admit(size) == size
        bound.going(size)
        if size <= truth:
            bound.accepted(size)
        else:
            assert all(size < known for known in refused)
            refused.append(size)
            bound.refused(size)
    assert truth / 1.25 - 1 <= bound.limit <= truth
    assert len(refused) <= 8 + math.log(upper / truth, 3)


EVENTS = st.one_of(
    st.tuples(st.just("answered"), SIZES, st.floats(0.001, 60)),
    st.tuples(st.sampled_from(["late", "large", "divided"]), SIZES, st.just(0)),
    st.tuples(st.just("time"), st.just(0), st.floats(0, 100)),
)


@given(events=st.lists(EVENTS, max_size=60), probe=st.booleans())
def test_bounds_are_sane_after_anything_and_a_healthy_service_mends_them(events, probe):
    """Never less than a row and a byte, never more than the job allows; after trouble of any kind, full size again."""
    world = World(fast, probe=probe)
    for kind, rows, number in events:
        if kind == "answered":
            world.sizing.answered(rows, rows * ROW_BYTES, number)
        elif kind == "late":
            world.sizing.late(rows)
        elif kind == "large":
            world.sizing.too_large(rows, rows * ROW_BYTES)
        elif kind == "divided":
            world.sizing.divided(rows)
        world.time += number
        bounds = world.sizing.offer()
        assert 1 <= bounds.rows <= MOST
        assert 1 <= bounds.body <= BODY
        assert world.sizing.admit(1, rows * ROW_BYTES) is None
    for _ in range(300):
        world.time += 10
        world.run(requests=len(world.sent) + 1)
    assert world.offered() == MOST


def test_a_limit_that_the_service_tells_is_kept_at_once():
    """There is nothing to find out: no larger body goes, and one of just that size does."""
    sizing = Sizing(rows=100, body=12_000_000, timeout=40.0, clock=lambda: 0.0, trial=False)
    sizing.too_large(50, 5_000_000, 1_048_576)
    assert sizing.offer().body == 1_048_576
    assert sizing.admit(10, 1_048_576) is None
    assert sizing.admit(10, 1_048_577).body == 1_048_576
    sizing.answered(10, 1_000_000, 0.1)
    assert sizing.offer().body == 1_048_576
