"""Rows that a service always fails, among rows that it does not: each costs itself, and few requests."""

from __future__ import annotations

import math
from random import Random

import pytest
from engine import examples
from hypothesis import example, given
from hypothesis import strategies as st
from test_converse import (
    CRASHED,
    GATEWAY_503,
    MISFIT,
    NOBODY,
    REJECTED,
    THROTTLED,
    TIMEOUT,
    TOO_LARGE,
    UNAVAILABLE,
    World,
    ended,
    poisoned,
    rows_in,
    summary,
    whole,
)

from pipeline.converse import Dead, Unanswered
from pipeline.status import Action, Fault

LARGEST = 300
ATTEMPTS = 8
FAILED = (500, {"erno": "MR.0105", "msg": "Recognition failed"})
UNPROCESSABLE = (422, {"detail": [{"msg": "field required"}]})
UNKNOWN = (404, {"detail": "no such customer"}, {"Server": "ModelArts"})
GARBAGE = (200, {"data": "?"})
LATE = Unanswered(Fault(Action.TIMEOUT, None, None, "no complete answer within 4 s"), received=True, seconds=4.0)
POISON = {  # what is said of a poison row, as what it dies, and after how many attempts a request that has it is halved
    "rejected": (REJECTED, "rejected", 1),
    "failed": (FAILED, "rejected", 1),
    "unprocessable": (UNPROCESSABLE, "rejected", 1),
    "unknown": (UNKNOWN, "rejected", 1),
    "too large": (TOO_LARGE, "too_large", 1),
    "misfit": (MISFIT, "mismatch", 2),
    "garbage": (GARBAGE, "mismatch", 2),
    "cut": (TIMEOUT, "timeout", 2),
    "late": (LATE, "timeout", 2),
    "crashed": (CRASHED, "exhausted", ATTEMPTS),
}
PASSING = [
    *(GATEWAY_503, THROTTLED, UNAVAILABLE, CRASHED, TIMEOUT, MISFIT, GARBAGE, NOBODY, LATE, (408, {}), (500, {})),
    (502, {"detail": "<html>"}),
]


@st.composite
def batches(draw):
    """Draw the size of a request and which of its rows are poison."""
    count = draw(st.integers(1, LARGEST))
    return count, draw(st.sets(st.integers(0, count - 1), max_size=min(count, 12)))


def attempts_of(outcomes):
    """Return how many attempts the requests took that died: a lone row has those that `retry` gives it."""
    return sum(len(one.history) for one in outcomes if isinstance(one, Dead))


@pytest.mark.parametrize("kind", POISON)
@examples(0.4)
@given(batch=batches())
@example(batch=(LARGEST, {0}))
@example(batch=(LARGEST, {LARGEST - 1}))
@example(batch=(256, {255}))
@example(batch=(257, {128}))
@example(batch=(1, {0}))
def test_each_poison_row_costs_itself_and_at_most_two_requests_a_halving(kind, batch):
    """Exactly the poison rows die, whichever they are; what is sent again is never more than `retry` allows."""
    count, bad = batch
    said, death, repeats = POISON[kind]
    world = World(poisoned(bad, said), others=True, attempts=ATTEMPTS)
    outcomes = world.run(whole(count))
    assert summary(outcomes) == ended(count, bad, death)
    requests = len({tuple(rows) for rows in world.sent()})
    assert requests - 1 <= 2 * math.ceil(math.log2(count)) * len(bad)
    lone = attempts_of(outcomes)
    assert len(world.sent()) <= requests - len(bad) + lone + (repeats - 1) * (bool(bad) and count > 1)


@examples()
@given(batch=batches(), seed=st.integers(0, 2**32), kind=st.sampled_from(["rejected", "failed", "too large", "misfit"]))
def test_passing_trouble_on_every_fifth_request_kills_no_other_row(batch, seed, kind):
    """What halves, halves for nothing then, but what was innocent stays alive: it would take eight mishaps in a row."""
    count, bad = batch
    random = Random(seed)
    said, death, _ = POISON[kind]
    mishaps = {}

    def service(chunk):
        poison = bool(set(bad) & set(rows_in(chunk)))
        failures = mishaps.get(chunk.uuid, 0)
        if random.random() < 0.2 and failures < ATTEMPTS - 1:
            mishaps[chunk.uuid] = failures + 1
            return random.choice(PASSING)
        return said if poison else None

    outcomes = World(service, others=True, attempts=ATTEMPTS).run(whole(count))
    found = summary(outcomes)
    assert [row for row, end in found if end != "scored"] == sorted(bad)
    assert {end for _, end in found} <= {"scored", death, "exhausted", "timeout", "mismatch"}
