"""Carries out conversations: threads, the gate, the byte budget, headers and the wire. One per worker process."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from requests.structures import CaseInsensitiveDict

from pipeline.adapter import Adapter
from pipeline.auth import IamUnavailable
from pipeline.converse import (
    Answered,
    Outcome,
    Oversized,
    Refresh,
    Said,
    Send,
    Setting,
    Unanswered,
    Wait,
    converse,
    of_content,
    refusal,
)
from pipeline.errors import Refused
from pipeline.gate import Gate
from pipeline.nodes import DOUBTFUL, SURE, Nodes
from pipeline.pack import MAX_ROWS
from pipeline.places import Places, Trip
from pipeline.retry import retry_after
from pipeline.sign import Request
from pipeline.sizing import Sizing
from pipeline.start import Start
from pipeline.status import SUCCESS, Action, Fault, judge
from pipeline.transport import NoReply
from pipeline.window import Budget
from schemas.secret import strike

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import pyarrow as pa

    from pipeline.auth import Auth
    from pipeline.errors import BulkscoreError
    from pipeline.gate import Unfit
    from pipeline.nodes import Pick
    from pipeline.pack import Chunk
    from pipeline.pack import Limits as Bounds
    from pipeline.progress import Progress
    from pipeline.stopping import Stopping
    from pipeline.transport import Reply
    from pipeline.ways import Way
    from schemas.job import Limits

_log: Final = logging.getLogger(__name__)

BUDGET_BYTES: Final = 96_000_000
"""Beside what a process has with nothing in flight, and the holes that large bodies leave: in all under 400 MB."""

_AHEAD: Final = 2
"""Conversations under way for each place in the window: one that waits between attempts leaves no place empty."""

LEAST: Final = 16
"""Places for which there are conversations even where the window is narrower: else a few rows in trouble fill it."""

TRIAL_RESTS: Final = 3
"""How often a request on trial may wait between attempts until others go beside it: by them its trouble is judged."""

GATEWAY_TIMEOUT: Final = 504
NOT_FOUND: Final = 404
"""From one node of several, while others answer: that one does not have the model, or has it no longer."""

POLL_SECONDS: Final = 1.0

_OVERHEAD: Final = 8_000
"""Bytes that the objects of a chunk and its results take, beside what they carry."""

_BY_MISHAP: Final[dict[str, Action]] = {
    "refused": Action.RETRY,
    "unknown-host": Action.RETRY,
    "reset": Action.RETRY,
    "protocol": Action.RETRY,
    "timeout": Action.TIMEOUT,
    "tls": Action.STOP,
}


class Caller:
    """Turns chunks into outcomes.

    `reserve` before `submit`: it takes the chunk's bytes, which `release` gives back when its outcomes are written.
    All methods but those of the conversation threads are for any thread.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        transport: Way,
        auth: Auth,
        headers: Mapping[str, str],
        limits: Limits,
        rate: float | None,
        urls: Sequence[str] = (),
        stopping: Stopping,
        progress: Progress,
        probe: bool = False,
        mend: str = "input.send, input.rename or service.options",
        unfit: Callable[[pa.Array[Any]], Unfit | None] = lambda _: None,
        max_requests: int | None = None,
        opened: Callable[[], None] = lambda: None,
        stop: Callable[[BulkscoreError], None] | None = None,
    ) -> None:
        self._transport = transport
        self._auth = auth
        self._secrets = list(headers.values())
        self._headers = dict(CaseInsensitiveDict({"Content-Type": setting.adapter.content_type, **headers}))
        self._deadline = limits.timeout * 1.05 + 2  # the gateway's own 504 says more than our cut
        self._stopping = stopping
        self._progress = progress
        self._opened = opened
        self._stop = stop or stopping.stop
        self._changed = threading.Condition()
        self._wiring = nullcontext() if type(setting.adapter).wire is Adapter.wire else threading.Lock()
        self._gate = Gate(is_open=not probe)
        self._start = Start(self._gate, self._changed, url=setting.url, mend=mend, unfit=unfit, stop=self._stop)
        self._places = Places(
            limits.in_flight,
            rate,
            max_requests,
            clock=setting.clock,
            stopping=stopping,
            stop=self._stop,
            progress=progress,
            grown=self._wake,
        )
        self._nodes = Nodes(urls or [setting.url], clock=setting.clock)
        self._setting = setting._replace(
            last_success=lambda: self._places.last_success,
            out=self._places.out,
            alone=self._alone,
            divided=self._divided,
        )
        self._sizing = Sizing(
            rows=limits.rows or MAX_ROWS, body=limits.body, timeout=limits.timeout, clock=setting.clock, trial=probe
        )
        self._failing: set[str] = set()
        self._waits = False
        self._trials: set[int] = set()
        self._budget = Budget(BUDGET_BYTES)
        self._costs: dict[int, int] = {}
        self._under_way = self._resting = self._reserving = 0
        self._rests_since = float("-inf")
        self._guest: int | None = None
        self._least = min(LEAST, limits.in_flight)
        self._pool = ThreadPoolExecutor(_AHEAD * limits.in_flight, thread_name_prefix="converse")  # started when needed

    def _alone(self) -> bool:
        """Whether there is no other row to compare with one that fails: nobody else asks, or waits to be let in."""
        return not self._gate.is_open or (self._under_way - self._resting <= 1 and not self._reserving)

    @property
    def answered(self) -> bool:
        """Whether the service has answered at least one row, or nobody wanted to try it first."""
        return self._gate.is_open

    def open(self) -> None:
        """Let everybody in: another worker has found that the service answers."""
        with self._changed:
            self._gate.is_open = True
            self._changed.notify_all()

    def bounds(self) -> Bounds:
        """Return the bounds of the next chunk; while a request of a new size is on trial, wait for how it goes."""
        with self._changed:
            while self._trials and not self._stopping:
                self._changed.wait(POLL_SECONDS)
            return self._sizing.offer()

    def reserve(self, chunk: Chunk, head: Future[list[Outcome]] | None) -> bool:
        """Reserve a chunk's bytes and its turn; False when `head`, which may hold what is missing, is done.

        Also False after a while, for whoever calls may hold it in other ways.
        """
        with self._changed:
            cost = self._budget.cost(chunk.weight + _OVERHEAD, len(chunk))
            while not self._admit(chunk, cost):
                if head is not None and head.done():
                    return False
                self._reserving += 1
                heard = self._changed.wait(POLL_SECONDS)
                self._reserving -= 1
                if not heard:
                    return False
            self._costs[id(chunk)] = cost
            self._under_way += 1
            if self._sizing.is_trial(len(chunk)):
                self._trials.add(id(chunk))
            return True

    def submit(self, chunk: Chunk, source: str = "") -> Future[list[Outcome]]:
        """Start the conversation about a chunk that has its reservation; `source` is the URI of its rows' source.

        The future raises Stopped when the run ends first, Refused when the service refuses the job, StorageFailed when
        it stays out.
        """
        future = self._pool.submit(self._converse, chunk, source)
        future.add_done_callback(lambda _: self._ended(chunk))
        return future

    def release(self, chunk: Chunk) -> None:
        """Give back what was reserved for a chunk."""
        with self._changed:
            self._budget.release(self._costs.pop(id(chunk)))
            self._changed.notify_all()

    def close(self) -> None:
        """End the threads, when their conversations have ended."""
        self._pool.shutdown()
        self._transport.close()

    def _admit(self, chunk: Chunk, cost: int) -> bool:
        """Take the bytes, if they fit.

        Where everybody under way waits between attempts and nobody succeeded since, one more is let in that does not
        fit: nothing else could tell the trouble of some rows, behind which the others' results pile up, from an outage.
        """
        if not self._stopping and not self._gate.admits(self._under_way, self._resting):
            return False
        if self._under_way >= _AHEAD * max(self._places.limit, self._least):
            return False
        if self._budget.admit(cost):
            return True
        stuck = 0 < self._under_way == self._resting and self._places.last_success < self._rests_since
        if stuck and self._guest is None:
            self._guest = id(chunk)
            self._budget.exceed(cost)
        return self._guest == id(chunk)

    def _ended(self, chunk: Chunk) -> None:
        with self._changed:
            self._under_way -= 1
            self._trials.discard(id(chunk))
            if self._guest == id(chunk):
                self._guest = None
            self._changed.notify_all()

    def _converse(self, chunk: Chunk, source: str) -> list[Outcome]:
        trip = Trip(chunk, source)
        setting = self._setting._replace(succeeded=partial(self._succeeded, trip), failed=partial(self._failed, trip))
        conversation = converse(chunk, setting)
        answer: Said | None = None
        used: Mapping[str, str] = {}
        rests = 0
        while True:
            try:
                command = conversation.send(answer)
            except StopIteration as end:
                outcomes: list[Outcome] = end.value
                self._start.dead(outcomes, source)
                return outcomes
            answer = None
            if isinstance(command, Send):
                used, answer = self._send(command.chunk, trip)
            elif isinstance(command, Wait):
                rests += 1
                if rests >= TRIAL_RESTS or not self._gate.is_open:
                    self._tried(chunk)
                self._wait(command)
            else:
                self._refresh(used, command)

    def _send(self, chunk: Chunk, trip: Trip) -> tuple[Mapping[str, str], Said]:
        self._stopping.check()
        trip.chunk = chunk
        with self._places.take():
            bounds = self._oversized(chunk)
            if bounds:
                self._places.unsent()
                return {}, Oversized(bounds)
            pick, body = self._pick(), self._wire(chunk.body)
            headers = self._headers_of(body)
            try:
                credentials = self._credentials(pick, headers, body)  # now: a place can be long in coming
            except IamUnavailable as error:
                self._unasked(pick)
                fault = Fault(Action.SLOWER, None, None, str(error))
                return {}, Unanswered(fault, received=False, seconds=0.0, retry_after=error.retry_after)
            self._places.leave(trip)
            headers = {**headers, **credentials, **trace(chunk.uuid)}  # unsigned, for gateways may rewrite it
            reply = self._transport.post(
                pick.url, body=body, headers=headers, deadline_seconds=self._deadline, uuid=chunk.uuid
            )
        trip.uuid, trip.url = chunk.uuid, pick.url
        trip.seconds, trip.rows, trip.size = reply.seconds, len(chunk), len(chunk.body)
        secrets = (*self._auth.secrets(credentials), *self._secrets)
        trip.hide = partial(strike, secrets=secrets)
        alone = self._of_its_node(pick, reply)
        self._tell_left_out(pick.url, reply.message if isinstance(reply, NoReply) else f"status {reply.status}")
        if alone:
            trip.late = False  # no sign of how much the service can take: others go on
            return credentials, without(pick.url, reply, secrets)
        trip.late = reply.kind == "timeout" if isinstance(reply, NoReply) else reply.status == GATEWAY_TIMEOUT
        if isinstance(reply, NoReply):
            fault = Fault(_BY_MISHAP[reply.kind], None, None, reply.message)
            return credentials, Unanswered(fault, reply.received, reply.seconds, url=pick.url)
        if reply.status in SUCCESS:
            self._seen(len(reply.body), len(chunk))
        shown = partial(hidden, reply, secrets)
        return credentials, Answered(reply.status, reply.headers, reply.body, reply.seconds, shown, pick.url, trip.hide)

    def _wire(self, body: bytes) -> bytes:
        """Return a body as it is sent, one at a time: its parts take several times its bytes, which nobody counts."""
        with self._wiring:
            return self._setting.adapter.wire(body)

    def _headers_of(self, body: bytes) -> Mapping[str, str]:
        """Return the headers of all requests, with those that tell of this body."""
        own = self._setting.adapter.headers(body)
        return dict(CaseInsensitiveDict({**self._headers, **own})) if own else self._headers

    def _credentials(self, pick: Pick, headers: Mapping[str, str], body: bytes) -> Mapping[str, str]:
        method, signed = self._transport.signed(body)
        return self._auth.headers(Request(method, pick.url, headers, signed))

    def _pick(self) -> Pick:
        with self._changed:
            return self._nodes.pick()

    def _unasked(self, pick: Pick) -> None:
        self._places.unsent()
        with self._changed:
            self._nodes.unasked(pick)

    def _of_its_node(self, pick: Pick, reply: Reply | NoReply) -> bool:
        """Note how one of several nodes did; return whether it is left out, and others go on without it."""
        with self._changed:
            if isinstance(reply, NoReply):
                return self._nodes.failed(pick, sure=reply.kind in SURE)
            if reply.status in DOUBTFUL:
                leave = retry_after(reply.headers, self._setting.now()) or 0.0
                return self._nodes.failed(pick, sure=False, leave=leave)
            if reply.status == NOT_FOUND and judge(reply.status, reply.headers, reply.body).action is Action.STOP:
                return self._nodes.failed(pick, sure=True)
            self._nodes.answered(pick, well=reply.status in SUCCESS)
            return False

    def _tell_left_out(self, url: str, why: str) -> None:
        """Say once that one of several nodes is left out: nothing else would show that there is one less."""
        if len(self._nodes) == 1:
            return
        with self._changed:
            news = url in self._nodes.out and url not in self._failing
            self._failing |= {url} if news else set()
        if news:
            _log.warning("%s is left out while it fails, and others get its requests: %s", url, why)

    def _oversized(self, chunk: Chunk) -> Bounds | None:
        """Return the bounds of a request that has a place, where it exceeds what was learned while it waited for it."""
        with self._changed:
            return self._sizing.admit(len(chunk), len(chunk.body))

    def _divided(self, rows: int) -> None:
        with self._changed:
            self._sizing.divided(rows)

    def _tried(self, chunk: Chunk) -> None:
        with self._changed:
            self._trials.discard(id(chunk))
            self._changed.notify_all()

    def _seen(self, reply: int, rows: int) -> None:
        with self._changed:
            self._budget.seen(reply, rows)

    def _failed(self, trip: Trip, fault: Fault) -> None:
        self._transport.settle(trip.uuid, fits=False)
        with self._changed:
            if trip.sent and fault.action is Action.TIMEOUT:
                self._sizing.late(trip.rows)
            elif trip.sent and fault.action is Action.TOO_LARGE:
                self._sizing.too_large(trip.rows, trip.size, fault.most_bytes)
        absent = fault.action is Action.ABSENT and not self._gate.is_open  # but whoever says so is there
        self._places.failed(trip, fault, by_the_model=absent or of_content(fault))
        self._judge_absence(trip, fault)
        self._start.failed(fault, trip.chunk, trip.source)

    def _judge_absence(self, trip: Trip, fault: Fault) -> None:
        """See whether the service has never had the model that is asked for: it is given some time to start it."""
        with self._changed:
            if fault.action is not Action.ABSENT:
                self._gate.present()
                return
            self._nodes.lacks(trip.url)
            seconds = self._gate.absent(self._setting.clock())
            waits, self._waits = not self._waits and not self._gate.is_open, True
        if seconds >= self._gate.ABSENT_SECONDS:
            error = Refused(refusal(fault._replace(message=f"{fault.message}, for {seconds:.0f} s"), self._setting.url))
            self._stop(error)  # before anybody else is let in
            raise error
        self._tell_left_out(trip.url, fault.message)
        if waits and len(self._nodes) == 1:
            _log.warning("%s; it may still be loading: %.0f s are left", fault.message, self._gate.ABSENT_SECONDS)

    def _succeeded(self, trip: Trip, answers: pa.Array[Any]) -> None:
        self._transport.settle(trip.uuid, fits=True)
        with self._changed:
            self._sizing.answered(trip.rows, trip.size, trip.seconds)
            self._budget.seen(answers.nbytes, trip.rows)  # a reply of bytes is longer as the text that is held
        self._places.succeeded(trip)
        if self._start.answered(answers, trip.chunk, trip.source, trip.hide):
            self.open()
            self._opened()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _wait(self, command: Wait) -> None:
        self._progress.add(retries=1)
        with self._changed:
            self._resting += 1
            self._rests_since = self._setting.clock()
            self._changed.notify_all()
        try:
            self._places.rest(command.seconds, command.for_all)
        finally:
            with self._changed:
                self._resting -= 1

    def _refresh(self, used: Mapping[str, str], why: Refresh) -> None:
        try:
            self._auth.refresh(used, why.headers)
        except Refused as error:  # the service's own words tell more than ours
            raise Refused(refusal(why.fault, self._setting.url, str(error))) from None
        except IamUnavailable as error:
            self._stopping.wait(error.retry_after or 1.0)  # the next attempt asks again, and is counted


def without(url: str, reply: Reply | NoReply, secrets: Iterable[str]) -> Unanswered:
    """Return what a request came to whose node alone is in trouble: another one may be asked, later."""
    if isinstance(reply, NoReply):
        return Unanswered(Fault(Action.RETRY, None, None, reply.message), reply.received, reply.seconds, url=url)
    shown = hidden(reply, secrets)
    fault = judge(shown.status, shown.headers, shown.body)
    told = fault._replace(action=Action.RETRY, message=f"{fault.message} ({url})", by=None)
    return Unanswered(told, received=True, seconds=reply.seconds, url=url)


def hidden(reply: Reply, secrets: Iterable[str]) -> Answered:
    """Return a reply without our secrets: services quote what they refuse, and it goes into dead letters."""
    secrets = list(secrets)
    headers = CaseInsensitiveDict(
        {name: strike(value.encode(), secrets).decode() for name, value in reply.headers.items()}
    )
    return Answered(reply.status, headers, strike(reply.body, secrets), reply.seconds)


def trace(uuid: str) -> dict[str, str]:
    """Return headers by which a request is found in a gateway's logs: its uuid, and W3C trace context made of it."""
    digits = uuid.replace("-", "")
    return {"X-Request-Id": uuid, "traceparent": f"00-{digits}-{digits[16:]}-01"}
