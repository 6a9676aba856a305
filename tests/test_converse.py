from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta
from functools import cache
from random import Random

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.converse import (
    Answered,
    Dead,
    Oversized,
    Refresh,
    Scored,
    Send,
    Setting,
    Unanswered,
    Wait,
    converse,
    told,
)
from pipeline.encode import RowEncoder
from pipeline.errors import Refused, StorageFailed
from pipeline.ids import row_namer
from pipeline.modelarts import ModelArts
from pipeline.pack import Block, Limits, pack
from pipeline.replies import Partly
from pipeline.status import Action, Fault
from schemas.job import Retry
from schemas.options import ModelArtsOptions

URL = "https://host/v1/infers/ID"
FIRST = 100
START = datetime(2026, 11, 21, tzinfo=UTC)
ADAPTER = ModelArts(ModelArtsOptions())

GATEWAY_503 = (503, {"error_code": "ModelArts.4302", "error_msg": "self protection"})
THROTTLED = (429, {"error_code": "APIG.0308", "error_msg": "throttled"})
UNAVAILABLE = (502, {"error_code": "APIG.0202", "error_msg": "Backend unavailable"})
CRASHED = (500, {"detail": "KeyError"})
EXPIRED = (401, {"error_code": "APIG.0307", "error_msg": "The token must be updated"})
REJECTED = (400, {"erno": "MR.0105", "msg": "Recognition failed"})
TOO_LARGE = (413, {"error_code": "ModelArts.4104", "error_msg": "too large"})
TIMEOUT = (504, {"error_code": "APIG.0203", "error_msg": "Backend timeout"})
STOPPED = (400, {"error_code": "ModelArts.4203", "error_msg": "service x is unavailable"})
MISFIT = (200, {"data": {"resp_data": []}})
NOBODY = Unanswered(Fault(Action.RETRY, None, None, "connection refused"), received=False, seconds=0.1)


def chunk_of(count, *, reject_nan=False, values=None):
    """Return one chunk of `count` rows `{"x": n}` of the source rows from FIRST."""
    batch = pa.record_batch({"x": pa.array(values or range(count), pa.float64() if values else pa.int64())})
    encoded = RowEncoder(batch.schema, ["x"], rename={}, reject_nan=reject_nan).encode(batch)
    block = Block(FIRST, encoded, row_namer("job", "path")(FIRST, FIRST + count), batch)
    (chunk,) = pack([block], Limits(12_000_000), ADAPTER.frame)
    return chunk


def rows_in(chunk):
    return [row["x"] for row in json.loads(chunk.body)["data"]["req_data"]]


def good(chunk):
    answers = [{"y": row} for row in rows_in(chunk)]
    return Answered(200, {}, json.dumps({"meta": {"uuid": chunk.uuid}, "data": {"resp_data": answers}}).encode(), 0.5)


class World:
    """Drives a conversation: a clock that only commands move, and a service that is a function of the chunk.

    The service returns None for success, (status, body) or (status, body, headers) for an answer, or an Unanswered.
    While `others` is set, somebody else's request succeeds at every moment.
    """

    def __init__(self, service, *, others=False, alone=False, **retry):
        self.service = service
        self.others = others
        self.alone = alone
        self.retry = Retry(**retry)
        self.time = 1000.0
        self.succeeded = -math.inf
        self.failing = None
        self.faults = []
        self.commands = []
        self.divided = []
        self.adapter = ADAPTER

    @property
    def setting(self):
        return Setting(
            adapter=self.adapter,
            retry=self.retry,
            url=URL,
            clock=lambda: self.time,
            now=lambda: START + timedelta(seconds=self.time - 1000),
            rng=Random(1),
            last_success=lambda: self.time if self.others else self.succeeded,
            out=lambda: self.time - self.failing if self.failing else 0.0,
            alone=lambda: self.alone,
            failed=self.noted,
            divided=self.divided.append,
        )

    def noted(self, fault):
        self.faults.append(fault)
        self.failing = self.failing or self.time

    def run(self, chunk):
        conversation = converse(chunk, self.setting)
        answer = None
        while True:
            try:
                command = conversation.send(answer)
            except StopIteration as end:
                return end.value
            self.commands.append(command)
            answer = self.answer(command)

    def answer(self, command):
        if isinstance(command, Send):
            self.time += 0.5
            return self.reply(command.chunk)
        self.time += command.seconds if isinstance(command, Wait) else 0
        return None

    def reply(self, chunk):
        said = self.service(chunk)
        if said is None:
            self.succeeded, self.failing = self.time, None
            return good(chunk)
        if isinstance(said, Unanswered | Oversized):
            return said
        status, body, headers = (*said, {})[:3]
        return Answered(status, headers, json.dumps(body).encode(), 0.5)

    def sent(self):
        return [rows_in(command.chunk) for command in self.commands if isinstance(command, Send)]

    def waits(self):
        return [command for command in self.commands if isinstance(command, Wait)]

    def refreshes(self):
        return sum(isinstance(command, Refresh) for command in self.commands)


def saying(*replies):
    """Answer with these, one request after the other, and with success from then on."""
    waiting = list(replies)
    return lambda _: waiting.pop(0) if waiting else None


def always(reply):
    return lambda _: reply


def poisoned(bad, reply=REJECTED):
    """Fail every request with a bad row in it."""
    return lambda chunk: reply if set(bad) & set(rows_in(chunk)) else None


def summary(outcomes):
    """Return (row, how it ended) for every row of the outcomes, in their order."""
    return [
        (int(row) - FIRST, "scored" if isinstance(outcome, Scored) else outcome.kind)
        for outcome in outcomes
        for row in outcome.chunk.source_rows
    ]


def ended(count, bad, kind):
    return [(row, kind if row in bad else "scored") for row in range(count)]


def test_a_request_that_succeeds_is_one_request():
    """One Send; the answers are the rows' own, with the attempt, the latency and the time."""
    world = World(always(None))
    chunk = chunk_of(3)
    (scored,) = world.run(chunk)
    assert scored.chunk is chunk
    assert [json.loads(text) for text in scored.answers.to_pylist()] == [{"y": 0}, {"y": 1}, {"y": 2}]
    assert (scored.attempts, scored.seconds, scored.at) == (1, 0.5, START + timedelta(seconds=0.5))
    assert scored.received == len(good(chunk).body)
    assert world.commands == [Send(chunk)]


def test_a_chunk_without_sent_rows_sends_nothing():
    """All its rows were refused before."""
    chunk = chunk_of(2, values=[math.nan, math.inf], reject_nan=True)
    assert len(chunk.refused) == 2
    world = World(always(None))
    assert world.run(chunk) == []
    assert world.commands == []


@pytest.mark.parametrize("fault", [GATEWAY_503, THROTTLED, UNAVAILABLE, CRASHED, TIMEOUT, MISFIT, NOBODY, (408, {})])
def test_passing_trouble_is_tried_again_with_the_same_request(fault):
    """Wait, then the very same chunk; the second attempt succeeds."""
    world = World(saying(fault))
    chunk = chunk_of(3)
    (scored,) = world.run(chunk)
    assert scored.attempts == 2
    first, wait, second = world.commands
    assert first == second == Send(chunk)
    assert 0.25 <= wait.seconds <= 0.5


@pytest.mark.parametrize(
    ("fault", "pressure"), [(GATEWAY_503, True), (THROTTLED, True), (UNAVAILABLE, False), (NOBODY, False)]
)
def test_pressure_is_told_to_the_window(fault, pressure):
    """429 and 503 slow everybody down, other trouble does not."""
    world = World(saying(fault))
    world.run(chunk_of(1))
    assert [fault.action is Action.SLOWER for fault in world.faults] == [pressure]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7.0), ("Sat, 21 Nov 2026 00:00:20 GMT", 19.5), ("9999999", 300.0)],
)
def test_retry_after_is_obeyed(header, seconds):
    """Seconds, or a date; bounded."""
    world = World(saying((*THROTTLED, {"Retry-After": header})))
    world.run(chunk_of(1))
    assert [wait.seconds for wait in world.waits()] == [seconds]


def test_an_unanswered_request_can_ask_for_time_too():
    """IAM's wish counts as the service's."""
    busy = Unanswered(Fault(Action.SLOWER, None, None, "IAM is busy"), received=False, seconds=0.0, retry_after=40.0)
    world = World(saying(busy))
    world.run(chunk_of(1))
    assert world.waits() == [Wait(40.0, for_all=40.0)]


def test_delays_grow_from_attempt_to_attempt():
    """Exponentially, with jitter, up to half a minute."""
    world = World(saying(*[UNAVAILABLE] * 9), attempts=20)
    world.run(chunk_of(1))
    for wait, base in zip(world.waits(), [0.5, 1, 2, 4, 8, 16, 30, 30, 30], strict=True):
        assert base / 2 <= wait.seconds <= base


@pytest.mark.parametrize("fault", [GATEWAY_503, UNAVAILABLE, CRASHED, NOBODY])
def test_a_row_that_fails_while_others_succeed_dies_when_its_attempts_are_spent(fault):
    """`exhausted`, with every attempt in its history."""
    world = World(always(fault), others=True, attempts=5)
    (dead,) = world.run(chunk_of(1))
    assert (dead.kind, len(dead.history)) == ("exhausted", 5)
    assert len(world.sent()) == 5


def test_a_row_dies_when_its_seconds_are_spent():
    """The other limit of `retry`: no wait is begun that would end after it."""
    world = World(always((*THROTTLED, {"Retry-After": "25"})), others=True, seconds=60)
    (dead,) = world.run(chunk_of(1))
    assert (dead.kind, len(dead.history)) == ("exhausted", 3)
    assert [wait.seconds for wait in world.waits()] == [25.0, 25.0]


def test_the_history_tells_what_was_said_by_whom_and_what_was_done():
    """Time, status, code, request id, server, words, action, and whether the service may have processed it."""
    headers = {"X-Request-Id": "acbc548a", "Server": "api-gateway"}
    world = World(saying(NOBODY, (*THROTTLED, headers), REJECTED), others=True)
    (dead,) = world.run(chunk_of(1))
    nobody, throttled, rejected = dead.history
    assert (nobody.status, nobody.message, nobody.received, nobody.action) == (
        None,
        "connection refused",
        False,
        "retry",
    )
    assert (throttled.status, throttled.code, throttled.message) == (429, "APIG.0308", "throttled")
    assert (throttled.request_id, throttled.server, throttled.action) == ("acbc548a", "api-gateway", "slower")
    assert throttled.received
    assert (rejected.status, rejected.code, rejected.action) == (400, "MR.0105", "reject")
    times = [datetime.fromisoformat(one.time) for one in dead.history]
    assert times == sorted(times)
    assert all(time.tzinfo for time in times)


def test_dead_credentials_are_renewed_once_and_the_request_sent_again():
    """401, new credentials, success: no wait between; who renews them hears what was said."""
    world = World(saying(EXPIRED))
    chunk = chunk_of(2)
    (scored,) = world.run(chunk)
    first, refresh, again = world.commands
    assert (first, type(refresh), again) == (Send(chunk), Refresh, Send(chunk))
    assert told(refresh.fault) == "401 APIG.0307 The token must be updated"
    assert scored.attempts == 2


def test_new_credentials_that_are_refused_too_stop_the_job():
    """Nothing succeeded in between: the key is wrong, and the message says so in the service's words."""
    world = World(always(EXPIRED))
    with pytest.raises(Refused, match=r"refuses the job: 401 APIG\.0307 The token must be updated \(https://host"):
        world.run(chunk_of(2))
    assert (len(world.sent()), world.refreshes()) == (2, 1)


def test_new_credentials_that_are_refused_while_others_succeed_are_passing_trouble():
    """A gateway may need a moment to know a new token: wait, and try once more."""
    world = World(saying(EXPIRED, EXPIRED), others=True)
    (scored,) = world.run(chunk_of(2))
    assert scored.attempts == 3
    assert (world.refreshes(), len(world.waits())) == (1, 1)


def test_credentials_that_die_twice_in_a_long_conversation_are_renewed_twice():
    """A 503 in between shows that the renewed ones were good."""
    world = World(saying(EXPIRED, GATEWAY_503, EXPIRED))
    (scored,) = world.run(chunk_of(2))
    assert (scored.attempts, world.refreshes()) == (4, 2)


def test_a_key_revoked_in_the_middle_of_a_run_stops_the_job():
    """A success just before the first 401 does not speak for the credentials after it."""
    world = World(always(EXPIRED))
    world.succeeded = world.time + 0.25
    with pytest.raises(Refused):
        world.run(chunk_of(1))


@pytest.mark.parametrize(
    "fault", [STOPPED, (403, {"error_code": "APIG.0302", "error_msg": "not authorized"}), (404, {})]
)
def test_a_refusal_that_concerns_every_request_stops_the_job_at_once(fault):
    """One request, no retry, even while others succeed; exit code 4 with the service's words."""
    world = World(always(fault), others=True)
    with pytest.raises(Refused) as refused:
        world.run(chunk_of(4))
    assert len(world.sent()) == 1
    words = fault[1].get("error_msg", f"HTTP {fault[0]}")
    assert words in str(refused.value)
    assert URL in str(refused.value)
    assert "\n" not in str(refused.value)


@cache
def whole(count):
    return chunk_of(count)


@pytest.mark.parametrize("count", range(1, 65))
def test_one_poison_row_is_found_wherever_it_is(count):
    """It alone is rejected, all others are scored, in at most 2 * ceil(log2 B) requests more than one."""
    for bad in range(count):
        world = World(poisoned([bad]))
        outcomes = world.run(whole(count))
        assert summary(outcomes) == ended(count, [bad], "rejected")
        assert len(world.sent()) - 1 <= 2 * math.ceil(math.log2(count))
        assert not world.waits()


@given(st.integers(1, 40).flatmap(lambda count: st.tuples(st.just(count), st.sets(st.integers(0, count - 1)))))
def test_any_poison_rows_are_found_exactly(case):
    """Each costs itself; outcomes are in row order and together are the chunk; answers are each row's own."""
    count, bad = case
    outcomes = World(poisoned(bad)).run(chunk_of(count))
    assert summary(outcomes) == ended(count, bad, "rejected")
    answers = [json.loads(text)["y"] for one in outcomes if isinstance(one, Scored) for text in one.answers.to_pylist()]
    assert answers == [row for row in range(count) if row not in bad]
    assert all(len(one.chunk) == 1 for one in outcomes if isinstance(one, Dead))


def test_a_body_that_is_too_large_is_halved_until_it_fits():
    """413 halves at once; only a row that is too large alone dies."""
    world = World(lambda chunk: TOO_LARGE if len(chunk) > 3 else None)
    assert summary(world.run(chunk_of(20))) == ended(20, [], "scored")
    assert not world.waits()
    assert summary(World(always(TOO_LARGE)).run(chunk_of(3))) == ended(3, range(3), "too_large")


@pytest.mark.parametrize("fault", [TIMEOUT, MISFIT])
def test_what_is_too_slow_or_does_not_fit_is_halved_when_it_repeats(fault):
    """The whole twice; then what failed for that before is halved at once, until it fits."""
    world = World(lambda chunk: fault if len(chunk) > 2 else None)
    assert summary(world.run(chunk_of(8))) == ended(8, [], "scored")
    assert [len(rows) for rows in world.sent()] == [8, 8, 4, 2, 2, 4, 2, 2]


class Careless(ModelArts):
    """An adapter that breaks its word in one way."""

    def __init__(self, found):
        super().__init__(ModelArtsOptions())
        self.found = found

    def read(self, status, headers, body, *, uuid, rows):
        return self.found(super().read(status, headers, body, uuid=uuid, rows=rows))


@pytest.mark.parametrize(
    "found",
    [lambda answers: answers[:-1], lambda answers: Partly(answers, tuple(range(len(answers))))],
    ids=["one too few", "none at all"],
)
def test_an_adapter_that_breaks_its_word_joins_no_answer_to_another_row(found):
    """Nor does it ask for ever for a row that failed without a reason: it is a mismatch."""
    world = World(always(None), others=True, attempts=3)
    world.adapter = Careless(found)
    assert summary(world.run(chunk_of(4))) == ended(4, range(4), "mismatch")


@pytest.mark.parametrize("failed", [(2, 1), (1, 1), (-1,), (4,), (-1, 0)], ids=str)
def test_failed_positions_that_are_no_rows_of_the_request_are_a_misfit(failed):
    """Nothing is doubled, and nothing raises: what was said is told."""
    world = World(always(None), others=True, attempts=3)
    world.adapter = Careless(lambda answers: Partly(answers, failed) if len(answers) == 4 else answers)
    assert summary(world.run(chunk_of(4))) == ended(4, [], "scored")
    assert {fault.action for fault in world.faults} == {Action.MISFIT}
    said = f"{list(failed)} are not the positions of rows that failed; allowed: of 4 rows 0 to 3, in order, each once"
    assert world.faults[0].message == said


def test_other_trouble_before_does_not_halve_the_first_timeout():
    """Only a fault of the same kind is a repetition."""
    world = World(saying(GATEWAY_503, TIMEOUT, UNAVAILABLE))
    assert summary(world.run(chunk_of(4))) == ended(4, [], "scored")
    assert [len(rows) for rows in world.sent()] == [4, 4, 4, 4]


@pytest.mark.parametrize(("fault", "kind"), [(TIMEOUT, "timeout"), (MISFIT, "mismatch")])
def test_a_row_alone_dies_of_it_only_when_retry_is_exhausted(fault, kind):
    """With a kind of its own."""
    world = World(always(fault), others=True, attempts=4)
    (dead,) = world.run(chunk_of(1))
    assert (dead.kind, len(dead.history)) == (kind, 4)


def test_a_row_that_crashes_the_model_dies_alone():
    """`retry`, then bisection, then a dead letter; halves that crash too are halved at once."""
    world = World(poisoned([5], CRASHED), others=True, attempts=3)
    outcomes = world.run(chunk_of(16))
    assert summary(outcomes) == ended(16, [5], "exhausted")
    assert len(world.sent()) == 3 + 2 * 4 + 2
    (dead,) = (one for one in outcomes if isinstance(one, Dead))
    assert len(dead.history) == 3


def test_pressure_never_halves_at_once():
    """Every request has all its attempts, with waits between, so that a service under pressure gets no bursts."""
    world = World(always(THROTTLED), others=True, attempts=3)
    assert summary(world.run(chunk_of(3))) == ended(3, [0, 1, 2], "exhausted")
    assert [len(rows) for rows in world.sent()] == [3] * 3 + [2] * 3 + [1] * 9
    assert len(world.waits()) == 2 * 5


@pytest.mark.parametrize("fault", [GATEWAY_503, THROTTLED, UNAVAILABLE, CRASHED, NOBODY, TIMEOUT])
def test_while_nothing_succeeds_no_row_dies(fault):
    """The service is out: hold on, probe gently, and give up after `retry.outage` with nothing lost."""
    world = World(always(fault), attempts=3, outage=600)
    with pytest.raises(
        StorageFailed, match=r"has been out for 6\d\d s, longer than retry.outage \(600 s\).*run the same"
    ):
        world.run(chunk_of(4))
    assert 600 < world.time - 1000 < 700
    assert len(world.sent()) < 60


@pytest.mark.parametrize("fault", [GATEWAY_503, UNAVAILABLE, CRASHED, NOBODY])
def test_an_outage_that_begins_in_the_middle_of_a_run_kills_no_row(fault):
    """Successes until just after a request was sent do not make the outage that it meets its own trouble."""
    world = World(always(fault), attempts=3, outage=600)
    world.succeeded = world.time + 0.25
    with pytest.raises(StorageFailed):
        world.run(chunk_of(1))


def test_an_outage_that_ends_in_time_costs_nothing():
    """After twenty minutes the same request succeeds."""
    world = World(lambda _: NOBODY if world.time < 1000 + 1200 else None, attempts=3, outage=1800)
    (scored,) = world.run(chunk_of(4))
    assert scored.attempts > 3
    assert world.time < 1000 + 1200 + 31


def test_after_an_outage_a_request_has_its_whole_budget_again():
    """What was spent while nothing succeeded was not its own trouble."""
    replies = [NOBODY] * 30 + [UNAVAILABLE] * 2

    def service(_):
        world.others = len(replies) <= 2
        return replies.pop(0) if replies else None

    world = World(service, attempts=3, outage=3600)
    (scored,) = world.run(chunk_of(1))
    assert scored.attempts == 33


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        *((CRASHED, "exhausted"), (MISFIT, "mismatch"), ((502, {}, {"Server": "ModelArts"}), "exhausted")),
        ((200, {"erno": "MR.9999", "msg": "a code of its own"}), "exhausted"),
    ],
)
def test_a_lone_request_that_the_model_fails_follows_retry(fault, kind):
    """There is no other conversation to compare with, and it was the model that answered."""
    world = World(poisoned([2], fault), alone=True, attempts=3)
    assert summary(world.run(chunk_of(4))) == ended(4, [2], kind)


@pytest.mark.parametrize(
    "fault",
    [
        *(NOBODY, UNAVAILABLE, GATEWAY_503, TIMEOUT, (500, {"error_code": "APIG.0601"})),
        (500, {}, {"Server": "api-gateway"}),
    ],
)
def test_a_lone_request_that_does_not_reach_the_model_is_an_outage(fault):
    """Nobody answered, or the gateway or the dispatcher did."""
    with pytest.raises(StorageFailed):
        World(always(fault), alone=True, attempts=3, outage=60).run(chunk_of(1))


def test_two_thousand_attempts_do_not_overflow():
    """An outage of half a day, one conversation."""
    world = World(saying(*[NOBODY] * 2000), outage=1e6)
    (scored,) = world.run(chunk_of(1))
    assert scored.attempts == 2001


faults = st.sampled_from(
    [GATEWAY_503, THROTTLED, UNAVAILABLE, CRASHED, EXPIRED, REJECTED, TOO_LARGE, TIMEOUT, MISFIT, NOBODY, None, None]
)


@given(count=st.integers(1, 9), script=st.lists(faults, max_size=40), alone=st.booleans())
def test_every_row_comes_to_exactly_one_end_in_order_whatever_the_service_says(count, script, alone):
    """Any faults in any order, while others succeed: each row is scored or dead, once, with its own answer."""
    world = World(saying(*script), others=True, alone=alone, attempts=3)
    outcomes = world.run(chunk_of(count))
    assert [row for row, _ in summary(outcomes)] == list(range(count))
    for outcome in outcomes:
        if isinstance(outcome, Scored):
            assert [json.loads(text)["y"] for text in outcome.answers.to_pylist()] == rows_in(outcome.chunk)
        else:
            assert len(outcome.chunk) == 1
            assert outcome.history[-1].message == outcome.fault.message


def test_what_was_learned_meanwhile_cuts_a_request_before_it_is_sent():
    """Not sent is not spent; the parts are ordinary requests, of which each has its own outcome."""
    world = World(lambda chunk: Oversized(Limits(10**6, 4)) if len(chunk) > 4 else None)
    outcomes = world.run(chunk_of(10))
    assert summary(outcomes) == ended(10, (), "")
    assert [len(one.chunk) for one in outcomes] == [4, 4, 2]
    assert [one.before for one in outcomes] == [(0, 0)] * 3
    assert world.divided == []


def test_attempts_before_a_cut_are_told():
    """A request that failed once, and is too large when its turn comes again, was sent once."""
    chunk = chunk_of(2)
    first, *others = World(saying(THROTTLED, Oversized(Limits(10**6, 1)))).run(chunk)
    assert first.before == (1, len(chunk.body))
    assert [one.before for one in others] == [(0, 0)]


@pytest.mark.parametrize("reply", [REJECTED, MISFIT])
@pytest.mark.parametrize("most", [1, 3, 9])
def test_a_request_whose_parts_all_succeed_was_too_many_rows(reply, most):
    """Each request that was refused tells how many rows it had, parts before the whole."""
    world = World(lambda chunk: reply if len(chunk) > most else None)
    assert summary(world.run(chunk_of(10))) == ended(10, (), "")
    assert most < min(world.divided) == world.divided[0] <= 2 * most + 1
    assert world.divided[-1] == 10


@given(count=st.integers(2, 40), bad=st.integers(0, 39))
def test_a_poison_row_says_nothing_of_how_many_rows_there_may_be(count, bad):
    """All that was refused had it in it."""
    world = World(poisoned({bad % count}))
    world.run(chunk_of(count))
    assert world.divided == []


def test_what_is_refused_for_its_size_is_no_matter_of_its_content():
    """It is halved until it fits, and says nothing of how many rows there may be."""
    world = World(lambda chunk: TOO_LARGE if len(chunk.body) > 100 else None)
    assert summary(world.run(chunk_of(8))) == ended(8, (), "")
    assert world.divided == []
