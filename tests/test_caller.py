"""The caller: window, budget, turns and back-off, with a wire that a test holds in its hands."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from itertools import chain

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from requests.structures import CaseInsensitiveDict

from jobs import until
from pipeline import caller as caller_module
from pipeline.auth import IamUnavailable
from pipeline.caller import Caller, hidden, trace
from pipeline.converse import Dead, Scored, Setting
from pipeline.encode import Encoded
from pipeline.errors import Refused
from pipeline.modelarts import ModelArts
from pipeline.pack import Block, Limits, pack
from pipeline.progress import Progress
from pipeline.stopping import Stopped, Stopping
from pipeline.transport import NoReply, Reply
from schemas.job import Limits as ServiceLimits
from schemas.job import Retry
from schemas.options import ModelArtsOptions

URL = "http://127.0.0.1:9/v1/infers/iris"
MODEL = ModelArts(ModelArtsOptions())


def chunks(count, *, size=100):
    """Return that many requests of one row each, whose bodies are about that many bytes; rows are their numbers."""
    lines = [b'{"x":%d,"pad":"%s"}\n' % (number, b"-" * size) for number in range(count)]
    encoded = Encoded(b"".join(lines), np.cumsum([len(line) for line in lines]), {})
    uuids = pa.array([f"00000000-0000-5000-8000-{number:012d}" for number in range(count)])
    keep = pa.RecordBatch.from_pydict({"id": list(range(count))})
    return list(pack([Block(0, encoded, uuids, keep)], Limits(10**9, 1), MODEL.frame))


def chunk_of(count):
    """Return one request of that many rows, whose numbers they are."""
    lines = [b'{"x":%d}\n' % number for number in range(count)]
    encoded = Encoded(b"".join(lines), np.cumsum([len(line) for line in lines]), {})
    uuids = pa.array([f"00000000-0000-5000-8000-{number:012d}" for number in range(count)])
    [chunk] = pack([Block(0, encoded, uuids, pa.RecordBatch.from_pydict({"id": uuids}))], Limits(10**9), MODEL.frame)
    return chunk


def rows_of(body):
    """Return the numbers of a body's rows."""
    return [row["x"] for row in msgspec.json.decode(body)["data"]["req_data"]]


def ok(body):
    """Answer each row with its number."""
    return Reply(200, {}, msgspec.json.encode({"data": {"resp_data": rows_of(body)}}), 0.01)


def failed(status, **headers):
    """Answer with an error."""
    named = CaseInsensitiveDict({name.replace("_", "-"): value for name, value in headers.items()})
    return Reply(status, named, b'{"error_code": "APIG.0000", "error_msg": "no"}', 0.01)


class Wire:
    """A transport whose answer is a function of the body; it notes what is under way."""

    def __init__(self, answer=ok, urls=(URL,)):
        self.answer, self.urls, self.asked = answer, urls, []
        self.lock = threading.Lock()
        self.sent, self.in_flight, self.peak, self.closed = [], 0, 0, False

    def signed(self, body):
        return "POST", body

    def settle(self, uuid, *, fits):
        pass

    def post(self, url, *, body, headers, deadline_seconds, uuid):  # noqa: ARG002
        assert url in self.urls
        with self.lock:
            self.asked.append(url)
            self.sent.append((body, headers, deadline_seconds))
            self.in_flight += 1
            self.peak = max(self.peak, self.in_flight)
        try:
            return self.answer(body) if url == URL else failed(503)
        finally:
            with self.lock:
                self.in_flight -= 1

    def close(self):
        self.closed = True


class Auth:
    """Numbered credentials; the number says how often they were refreshed."""

    def __init__(self):
        self.number = 0
        self.outages = []

    def headers(self, _):
        if self.outages:
            raise self.outages.pop()
        return {"X-Auth-Token": f"token-{self.number}"}

    def refresh(self, stale, _):
        if stale == self.headers(None):
            self.number += 1

    def secrets(self, used):
        return tuple(used.values())


@contextmanager
def calling(wire, *, adapter=MODEL, auth=None, rate=None, headers=None, attempts=8, probe=False, **limits):
    """Open a caller; yields it, and sees that it gave everything back."""
    setting = Setting(
        adapter=adapter,
        retry=Retry(attempts=attempts, outage=20),
        url=URL,
        clock=time.monotonic,
        now=lambda: datetime.now(UTC),
        rng=random.Random(1),
        last_success=lambda: float("-inf"),
    )
    made = Caller(
        setting,
        transport=wire,
        auth=auth or Auth(),
        headers=headers or {"X-Extra": "1"},
        limits=ServiceLimits(**limits),
        rate=rate,
        urls=wire.urls,
        stopping=Stopping(),
        progress=Progress(),
        probe=probe,
    )
    try:
        yield made
    finally:
        made._stopping.stop()
        made.close()
    assert (made._places._window.in_flight, made._under_way, made._resting, made._guest) == (0, 0, 0, None)
    assert (made._costs, made._budget._held) == ({}, 0), "a reservation was not given back"


def outcomes(caller, todo):
    """Do what a split does: reserve, submit, settle the oldest first, release."""
    pending, found = [], []

    def settle():
        chunk, future = pending.pop(0)
        try:
            found.extend(future.result())
        finally:
            caller.release(chunk)

    try:
        for chunk in todo:
            while not caller.reserve(chunk, pending[0][1] if pending else None):
                settle()
            pending.append((chunk, caller.submit(chunk)))
        while pending:
            settle()
    except BaseException:
        caller._stopping.stop()  # nobody waits for what is stuck
        raise
    finally:
        for chunk, future in pending:
            future.exception()
            caller.release(chunk)
    return found


def answers(found):
    """Return the answers, in order."""
    return [int(text.as_py()) for one in found for text in one.answers]


class Wiring(ModelArts):
    """An adapter that sees how many are in its wire at once, each until another one comes, or a moment is over."""

    def __init__(self):
        super().__init__(ModelArtsOptions())
        self.inside, self.peak, self.calls = threading.Semaphore(0), 0, 0
        self.lock, self.now = threading.Lock(), 0

    def wire(self, body):
        with self.lock:
            self.now, self.calls = self.now + 1, self.calls + 1
            self.peak = max(self.peak, self.now)
        if self.now > 1:
            self.inside.release()
        self.inside.acquire(timeout=0.05)
        with self.lock:
            self.now -= 1
        return body


def test_one_body_at_a_time_is_laid_out_anew():
    """What that takes beside the bodies is in no budget: two threads are never in an adapter's own wire."""
    adapter, wire = Wiring(), Wire()
    with calling(wire, adapter=adapter, in_flight=8) as caller:
        found = outcomes(caller, chunks(24))
    assert (len(found), adapter.calls, adapter.peak) == (24, 24, 1)


def test_a_body_that_is_sent_as_it_is_waits_for_nobody():
    """An adapter without a wire of its own has nothing to take turns for."""
    with calling(Wire()) as caller:
        assert isinstance(caller._wiring, nullcontext)


def test_every_chunk_gets_its_own_answer_in_order():
    """Whatever order the wire answers in."""
    wire = Wire(lambda body: (time.sleep(random.random() / 100), ok(body))[1])
    with calling(wire) as caller:
        assert answers(outcomes(caller, chunks(100))) == list(range(100))


class Measured(ModelArts):
    """An adapter that says how long each body is."""

    def headers(self, body):
        return {"X-Length": str(len(body))}


def test_what_an_adapter_says_of_a_body_is_sent_and_signed_with_it():
    """In the place of the job's own header of that name, however it is written."""
    wire, auth, seen = Wire(), Auth(), []
    auth.headers = lambda request: (seen.append(request), {})[1] if request else {}
    with calling(wire, adapter=Measured(ModelArtsOptions()), auth=auth, headers={"x-length": "1"}) as caller:
        outcomes(caller, chunks(3))
    assert len(wire.sent) == 3
    for (body, headers, _), request in zip(wire.sent, seen, strict=True):
        own = {"Content-Type": "application/json", "X-Length": str(len(body))}
        assert request.headers == own
        assert {name: value for name, value in headers.items() if name.lower() in {"content-type", "x-length"}} == own


def test_a_request_has_its_headers_and_its_deadline():
    """Type, own headers, credentials, trace; the deadline is a little behind the service's."""
    wire = Wire()
    with calling(wire, timeout="10s") as caller:
        [chunk] = chunks(1)
        outcomes(caller, [chunk])
    [(body, headers, deadline)] = wire.sent
    expected = {"Content-Type": "application/json", "X-Extra": "1", "X-Auth-Token": "token-0", **trace(chunk.uuid)}
    assert (body, headers) == (chunk.body, expected)
    assert 10 < deadline <= 13


def test_a_content_type_of_the_job_takes_the_place_of_the_protocols():
    """In whatever letters it is written: a request has one."""
    wire = Wire()
    with calling(wire, headers={"content-type": "application/json;charset=utf8"}) as caller:
        outcomes(caller, chunks(1))
    [(_, headers, _)] = wire.sent
    assert [(name, value) for name, value in headers.items() if name.lower() == "content-type"] == [
        ("content-type", "application/json;charset=utf8")
    ]


@pytest.mark.parametrize("limit", [1, 2, 5])
@pytest.mark.usefixtures("wide_open")
def test_the_window_is_reached_and_never_exceeded(limit):
    """Four splits share one caller: together they have the limit in flight, and not one request more."""
    full = threading.Semaphore(0)
    came = []

    def answer(body):
        came.append(body)
        if len(came) >= limit:
            full.release(len(came))
        assert full.acquire(timeout=20)
        time.sleep(0.002)  # long enough for one too many to be seen
        return ok(body)

    wire = Wire(answer)
    todo = chunks(200)
    with calling(wire, in_flight=limit) as caller, ThreadPoolExecutor(4) as splits:
        found = list(splits.map(lambda part: answers(outcomes(caller, part)), (todo[i::4] for i in range(4))))
    assert sorted(chain.from_iterable(found)) == list(range(200))
    assert wire.peak == limit


def test_the_budget_is_never_exceeded_but_by_a_request_alone(monkeypatch):
    """Four splits with bodies of a tenth of the budget; and one that exceeds it, which is sent when it is alone."""
    budget = 200_000
    monkeypatch.setattr(caller_module, "BUDGET_BYTES", budget)
    todo = [*chunks(40, size=20_000), *chunks(1, size=300_000), *chunks(40, size=20_000)]
    held = []

    def answer(body):
        with caller._changed:
            held.append((caller._budget._held, len(caller._costs)))
        return ok(body)

    wire = Wire(answer)
    with calling(wire) as caller, ThreadPoolExecutor(4) as splits:
        found = list(splits.map(lambda part: answers(outcomes(caller, part)), (todo[i::4] for i in range(4))))
    assert sum(map(len, found)) == 81
    assert max(count for _, count in held) > 1
    assert all(size <= budget or count == 1 for size, count in held)
    assert max(size for size, _ in held) > 300_000


class Wordy(ModelArts):
    """An adapter whose answers are longer than the reply, as those of a reply of bytes are."""

    def read(self, status, headers, body, *, uuid, rows):
        found = super().read(status, headers, body, uuid=uuid, rows=rows)
        return pa.array([text + " " * 50_000 for text in found.to_pylist()])


def test_the_budget_counts_answers_as_they_are_held(monkeypatch):
    """Four at once fit by their replies; by their answers not even two."""
    monkeypatch.setattr(caller_module, "BUDGET_BYTES", 60_000)
    held = []

    def answer(body):
        with caller._changed:
            held.append(len(caller._costs))
        return ok(body)

    with calling(Wire(answer), adapter=Wordy(ModelArtsOptions()), in_flight=4) as caller:
        outcomes(caller, chunks(1))
        held.clear()
        outcomes(caller, chunks(20))
    assert held == [1] * 20


def test_a_rate_is_kept_by_all_together():
    """A hundred a second, whatever is in flight: between any two requests lies at least their share of time."""
    times = []

    def answer(body):
        times.append(time.monotonic())
        return ok(body)

    with calling(Wire(answer), rate=100.0) as caller:
        outcomes(caller, chunks(60))
    late = 0.05  # a thread may be late, and the next one not
    times.sort()
    for count in range(1, 60):
        spans = [after - before for before, after in zip(times, times[count:], strict=False)]
        assert min(spans) >= count / 100 - late


def test_credentials_are_taken_when_it_is_a_requests_turn():
    """Who waits for a place or for the rate does not wait with credentials that may die meanwhile."""
    auth, seen = Auth(), []

    def answer(body):
        seen.append(wire.sent[-1][1]["X-Auth-Token"])
        auth.number += 1
        return ok(body)

    wire = Wire(answer)
    with calling(wire, auth=auth, in_flight=1) as caller:
        outcomes(caller, chunks(5))
    assert seen == [f"token-{number}" for number in range(5)]


def test_dead_credentials_are_renewed_once_and_the_request_sent_again():
    """Many find them dead at once; one refresh is enough for all."""
    auth = Auth()
    wire = Wire()

    def answer(body):
        token = next(headers["X-Auth-Token"] for sent, headers, _ in reversed(wire.sent) if sent == body)
        return failed(401) if token == "token-0" else ok(body)

    wire.answer = answer
    with calling(wire, auth=auth) as caller:
        assert answers(outcomes(caller, chunks(20))) == list(range(20))
    assert auth.number == 1


def test_an_iam_that_is_out_is_waited_for():
    """No request is sent without credentials; the chunk is tried again."""
    auth, wire = Auth(), Wire()
    auth.outages = [IamUnavailable("IAM gives no answer", 0.0)]
    with calling(wire, auth=auth) as caller:
        [scored] = outcomes(caller, chunks(1))
    assert (len(wire.sent), scored.attempts) == (1, 2)


def test_a_refusal_of_the_job_ends_the_chunk_with_it():
    """It is raised where the outcome is asked for, and what was reserved is given back."""
    with calling(Wire(lambda _: failed(404))) as caller, pytest.raises(Refused, match="404"):
        outcomes(caller, chunks(50))


def test_a_defect_ends_the_chunk_with_it():
    """An exception that nobody expected comes through as it is, and leaves no place taken."""

    def answer(body):
        raise ZeroDivisionError(rows_of(body))

    with calling(Wire(answer)) as caller, pytest.raises(ZeroDivisionError):
        outcomes(caller, chunks(50))


def test_a_chunk_without_rows_to_send_has_no_request():
    """It has its turn like others, for the sake of the order."""
    wire = Wire()
    refused = Encoded(b'{"x":1}\n', np.array([8]), {0: "x is not a number"})
    block = Block(0, refused, pa.array(["u"]), pa.RecordBatch.from_pydict({"id": [1]}))
    [chunk] = pack([block], Limits(10**6), MODEL.frame)
    with calling(wire) as caller:
        assert outcomes(caller, [chunk]) == []
    assert wire.sent == []


def waiting(caller):
    """Whether a conversation is in back-off."""
    return caller._resting > 0


def test_a_stop_ends_a_back_off_at_once():
    """The service asks for five minutes; who is told to stop does not wait for them."""
    with calling(Wire(lambda _: failed(503, Retry_After="300"))) as caller, ThreadPoolExecutor(1) as split:
        ended = split.submit(outcomes, caller, chunks(1))
        until(lambda: waiting(caller))
        caller._stopping.stop()
        with pytest.raises(Stopped):
            ended.result(timeout=20)


def test_a_stop_ends_the_wait_for_a_place_and_for_the_rate():
    """Nobody sends any more: what is in flight ends, what waits for its turn does not begin."""
    go = threading.Event()
    wire = Wire(lambda body: (go.wait(20), ok(body))[1])
    with calling(wire, in_flight=2, rate=0.2) as caller, ThreadPoolExecutor(1) as split:
        ended = split.submit(outcomes, caller, chunks(4))
        until(lambda: len(wire.sent) == 1 and caller._under_way == 4)
        caller._stopping.stop()
        go.set()
        with pytest.raises(Stopped):
            ended.result(timeout=20)
    assert len(wire.sent) == 1


def test_a_row_that_always_fails_does_not_keep_the_others_waiting():
    """One request fails for ever, in a way that an outage would; all others are asked meanwhile, and prove it."""
    wire = Wire(lambda body: failed(503) if rows_of(body) == [0] else (time.sleep(0.01), ok(body))[1])
    with calling(wire, in_flight=2, attempts=3) as caller:
        [dead, *others] = outcomes(caller, chunks(500))
    assert isinstance(dead, Dead)
    assert (dead.kind, [one.status for one in dead.history]) == ("exhausted", [503, 503, 503])
    assert answers(others) == list(range(1, 500))


def test_where_all_under_way_are_stuck_one_more_is_asked_beyond_the_budget(monkeypatch):
    """The budget is full behind a request that always fails: another one tells its trouble from an outage."""
    monkeypatch.setattr(caller_module, "BUDGET_BYTES", 100_000)
    held = []

    def answer(body):
        held.append(caller._budget._held)
        return failed(503) if rows_of(body) == [0] else ok(body)

    wire = Wire(answer)
    with calling(wire, attempts=3) as caller:
        [dead, *others] = outcomes(caller, chunks(40, size=20_000))
    assert isinstance(dead, Dead)
    assert all(isinstance(one, Scored) for one in others)
    assert answers(others) == list(range(1, 40))
    assert 100_000 < max(held) < 100_000 + 3 * 29_000, "one for each time that it waits, and no more"


def test_an_outage_is_not_fed(monkeypatch):
    """Where nothing succeeds, what was let in beyond the budget is one request, however long it lasts."""
    monkeypatch.setattr(caller_module, "BUDGET_BYTES", 100_000)
    wire = Wire(lambda _: failed(503, Retry_After="0"))
    with calling(wire, attempts=2) as caller, ThreadPoolExecutor(1) as split:
        ended = split.submit(outcomes, caller, chunks(40, size=20_000))
        until(lambda: len(wire.sent) >= 15)
        seen = {tuple(rows_of(body)) for body, _, _ in wire.sent}
        caller._stopping.stop()
        with pytest.raises(Stopped):
            ended.result(timeout=20)
    assert seen <= {(0,), (1,), (2,), (3,)}


def test_a_lost_connection_is_tried_again():
    """A request without an answer says whether the service may have had it, and is sent anew."""
    lost = [NoReply("reset", "the connection was lost", received=True, seconds=0.1)]
    with calling(Wire(lambda body: lost.pop() if lost else ok(body))) as caller:
        [scored] = outcomes(caller, chunks(1))
    assert scored.attempts == 2


def test_pressure_narrows_the_window():
    """A service with too much to do gets fewer requests at once, and no faster than it took them."""
    pressed = []
    with calling(Wire(lambda body: pressed.pop() if pressed else (time.sleep(0.01), ok(body))[1])) as caller:
        outcomes(caller, chunks(200))
        before = caller._places._window.limit
        assert caller._places._window.rate == float("inf")
        pressed += [failed(429)] * 20
        outcomes(caller, chunks(20))
        assert caller._places._window.limit < before
        assert 0 < caller._places._window.rate < float("inf")


def test_a_node_that_is_busy_for_ever_does_not_narrow_the_window(wide_open):  # noqa: ARG001
    """Its first two refusals may be anybody's; those after them are its own, and the window is for the others."""
    wire = Wire(urls=(URL, "http://127.0.0.1:10/other"))
    with calling(wire, in_flight=4) as caller:
        pressed = []
        window = caller._places._window
        window.pressure, press = lambda sent: (pressed.append(sent), press(sent)), window.pressure
        assert sorted(answers(outcomes(caller, chunks(300)))) == list(range(300))
    assert len(pressed) <= 2
    assert 3 <= wire.asked.count(wire.urls[1]) < 30


def test_closing_closes_the_wire():
    """Idle connections do not outlive the worker."""
    wire = Wire()
    with calling(wire):
        assert not wire.closed
    assert wire.closed


def test_what_an_error_quotes_of_our_secrets_is_hidden():
    """Short values are no secrets, and may be part of anything."""
    reply = Reply(
        401, {"Server": "for MII-secret-1"}, b'{"error_msg": "token MII-secret-1 is unknown in stage 1"}', 0.1
    )
    shown = hidden(reply, ["MII-secret-1", "1"])
    assert shown.body == b'{"error_msg": "token *** is unknown in stage 1"}'
    assert (shown.status, shown.headers["server"], shown.seconds) == (401, "for ***", 0.1)


def test_a_request_that_is_larger_than_what_was_learned_is_cut_and_not_sent():
    """It waited for its place when another one was refused: it is sent in parts, and counted as these."""
    wire = Wire()
    with calling(wire) as caller:
        caller._sizing.too_large(10, len(chunk_of(10).body))
        caller._sizing.answered(4, len(chunk_of(4).body), 0.1)
        found = outcomes(caller, [chunk_of(10)])
        assert caller._progress.read()["requests"] == len(wire.sent)
    assert answers(found) == list(range(10))
    assert len(rows_of(wire.sent[0][0])) < 10
    assert all(one.before == (0, 0) for one in found)


def test_the_bounds_of_the_next_request_wait_for_one_on_trial():
    """While the first request of its size is under way, nobody is told how large the next one may be."""
    answered = threading.Event()

    def answer(body):
        assert answered.wait(20)
        return ok(body)

    with calling(Wire(answer), probe=True) as caller, ThreadPoolExecutor(1) as splits:
        assert caller.bounds().rows == 1
        [chunk] = chunks(1)
        assert caller.reserve(chunk, None)
        future = caller.submit(chunk)
        asked = splits.submit(caller.bounds)
        until(lambda: caller._changed._waiters)
        assert not asked.done()
        answered.set()
        assert asked.result(timeout=20).rows == 10
        future.result(timeout=20)
        caller.release(chunk)


def test_a_request_on_trial_that_has_trouble_is_waited_for_a_while_only():
    """Others tell whether the trouble is the rows' own: after a few rests they go beside it."""
    with calling(Wire(lambda _: failed(502)), attempts=100, probe=True) as caller, ThreadPoolExecutor(1) as splits:
        [chunk] = chunks(1)
        assert caller.reserve(chunk, None)
        future = caller.submit(chunk)
        assert splits.submit(caller.bounds).result(timeout=60).rows == 1
        assert not future.done()
        caller._stopping.stop()
        assert isinstance(future.exception(timeout=20), Stopped)
        caller.release(chunk)
