"""One conversation about one chunk: send, wait, refresh, split, until every row has an answer or a reason.

A conversation is a generator: it yields commands and is sent what came of them, so it is driven by real threads in a
job and by plain lists in a test. It knows neither sockets nor threads, and time only as a clock that it is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pipeline.errors import JobError, Refused, StorageFailed
from pipeline.replies import Partly, misfit
from pipeline.retry import Patience, retry_after
from pipeline.status import SUCCESS, Action, Fault
from schemas.tables import Attempt, Kind
from schemas.values import readable

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from random import Random

    import pyarrow as pa

    from pipeline.adapter import Adapter
    from pipeline.pack import Chunk, Frame, Limits
    from schemas.job import Retry


_SHOWN: Final = 10
"""How many positions a message names."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What the service said. `headers` are case-insensitive; `shown` gives the same without our secrets.

    `url` is where it was asked, if it has several URLs; `hide` takes our secrets out of what is told of it.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float
    shown: Callable[[], Answered] | None = None
    url: str | None = None
    hide: Callable[[bytes], bytes] = bytes


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A request that got no reply; `received` tells whether the service may have processed it."""

    fault: Fault
    received: bool
    seconds: float
    retry_after: float | None = None
    url: str | None = None


class Oversized(NamedTuple):
    """A request that was not sent, because it exceeds what was learned since it was made: cut it to these bounds."""

    limits: Limits


Said = Answered | Unanswered | Oversized


class Send(NamedTuple):
    """Send this chunk; the answer is a `Said`."""

    chunk: Chunk


class Wait(NamedTuple):
    """Wait before the next attempt; `for_all` are the seconds that a service with too much to do asks of everybody."""

    seconds: float
    for_all: float = 0.0


class Refresh(NamedTuple):
    """The credentials of the last attempt were refused, as `fault`, with the reply's `headers`: get new ones."""

    fault: Fault
    headers: Mapping[str, str]


Command = Send | Wait | Refresh


class Spent(NamedTuple):
    """Requests that brought nothing but their halving, and the bytes of their bodies."""

    requests: int = 0
    size: int = 0


class Scored(NamedTuple):
    """A request that succeeded: `answers[i]` is the JSON text for the i-th row of `chunk`; `received` in bytes.

    `history` has the attempts before the one that succeeded. Where some rows failed there is one for each stretch of
    answers: it begins with row `first`, and its request is that of an outcome before it if it is `further`. `hide`
    takes our secrets out of what is told of answers.
    """

    chunk: Chunk
    answers: pa.Array[Any]
    attempts: int
    seconds: float
    at: datetime
    received: int = 0
    before: Spent = Spent()
    history: tuple[Attempt, ...] = ()
    first: int = 0
    further: bool = False
    hide: Callable[[bytes], bytes] = bytes


class Dead(NamedTuple):
    """A request that failed for good; all its rows share the reason."""

    chunk: Chunk
    kind: Kind
    fault: Fault
    history: tuple[Attempt, ...]
    before: Spent = Spent()


class _Sieved(NamedTuple):
    """A request that succeeded, but for some rows, by position."""

    scored: Scored
    failed: tuple[int, ...]


class _Halve(NamedTuple):
    """A request is to be halved, because of `action`, after `attempts` and a pause in seconds."""

    action: Action
    attempts: int
    pause: float


class _Cut(NamedTuple):
    """A request is to be cut to these bounds, after `attempts`. `action` is what it is a half for."""

    limits: Limits
    attempts: int
    action: Action | None


@dataclass(slots=True)
class _Trouble:
    """When a conversation's last request failed, and how many did since one succeeded."""

    at: float
    in_vain: int = 0


Outcome = Scored | Dead


class Setting(NamedTuple):
    """What all conversations of a worker share.

    `last_success` is the clock's time of the service's last success, `out` for how many seconds it has answered nobody;
    `alone` tells whether no other conversation of this worker is under way, so that there is none to compare with;
    `succeeded` and `failed` are told of what each request came to, its answers or its fault, `divided` of the rows of
    each that was halved for its time, or for its content although all of them succeeded in parts.
    """

    adapter: Adapter
    retry: Retry
    url: str
    clock: Callable[[], float]
    now: Callable[[], datetime]
    rng: Random
    last_success: Callable[[], float]
    out: Callable[[], float] = lambda: 0.0
    alone: Callable[[], bool] = lambda: True
    succeeded: Callable[[pa.Array[Any]], None] = lambda _: None
    failed: Callable[[Fault], None] = lambda _: None
    divided: Callable[[int], None] = lambda _: None


class _Course(NamedTuple):
    """How a fault goes on: as what a lone row dies, after how many a request is halved, or whether both at once."""

    kind: Kind
    halve_after: int | None = None
    at_once: bool = False


_COURSES: Final[dict[Action, _Course]] = {
    Action.RETRY: _Course("exhausted"),
    Action.SLOWER: _Course("exhausted"),
    Action.ABSENT: _Course("exhausted"),
    Action.TIMEOUT: _Course("timeout", halve_after=2),
    Action.MISFIT: _Course("mismatch", halve_after=2),
    Action.TOO_LARGE: _Course("too_large", at_once=True),
    Action.REJECT: _Course("rejected", at_once=True),
}


_OF_SIZE: Final = frozenset({Action.TOO_LARGE, Action.TIMEOUT, Action.SLOWER, Action.ABSENT})
"""What a request is halved for that is no matter of its content."""


def converse(chunk: Chunk, setting: Setting) -> Generator[Command, Said | None, list[Outcome]]:
    """Bring every sent row of the chunk to an outcome; outcomes are in row order.

    A request that fails while others succeed is the rows' trouble: what is halved for it, and fails for it again, is
    halved again, until the rows are alone. While nothing succeeds it is the service's trouble, and nothing dies of it;
    then halves are asked with growing pauses between, and one that succeeds shows that it was the rows'.

    Raises Refused when the service refuses the whole job, StorageFailed when it stays out longer than `retry.outage`.
    """
    return (yield from _bring(chunk, None, _Trouble(setting.clock()), setting)) if len(chunk) else []


def _bring(
    chunk: Chunk, suspected: Action | None, trouble: _Trouble, setting: Setting
) -> Generator[Command, Said | None, list[Outcome]]:
    """Bring a request to its outcome, or its parts to theirs. `suspected` is what it is a half for."""
    outcome = yield from _request(chunk, suspected, trouble, setting)
    if isinstance(outcome, _Sieved):
        return (yield from _sift(outcome, trouble, setting))
    if isinstance(outcome, Scored | Dead):
        return [outcome]
    halved = isinstance(outcome, _Halve)
    if halved and outcome.action is Action.TIMEOUT:
        setting.divided(len(chunk))
    outcomes: list[Outcome] = []
    for part in _parts(chunk, outcome, setting.adapter.frame):
        outcomes += yield from _bring(part, outcome.action, trouble, setting)
    if halved and outcome.action not in _OF_SIZE and all(isinstance(one, Scored) for one in outcomes):
        setting.divided(len(chunk))
    requests, size = outcomes[0].before
    spent = Spent(requests + outcome.attempts, size + outcome.attempts * len(chunk.body))
    return [outcomes[0]._replace(before=spent), *outcomes[1:]]


def _sift(sieved: _Sieved, trouble: _Trouble, setting: Setting) -> Generator[Command, Said | None, list[Outcome]]:
    """Keep the answers that there are, and ask for each of the other rows alone."""
    whole, outcomes, start = sieved.scored, list[Outcome](), 0
    further = False
    for failed in (*sieved.failed, len(whole.chunk)):
        if start < failed:
            answers = whole.answers.slice(start, failed - start)
            outcomes.append(whole._replace(answers=answers, first=start, further=further))
            further = True
        if failed < len(whole.chunk):
            alone = whole.chunk.part(failed, failed + 1, setting.adapter.frame)
            outcomes += yield from _bring(alone, None, trouble, setting)
        start = failed + 1
    return outcomes


def _parts(chunk: Chunk, why: _Halve | _Cut, frame: Frame) -> list[Chunk]:
    parts = chunk.cut(why.limits, frame) if isinstance(why, _Cut) else []
    if len(parts) > 1:
        return parts
    middle = (len(chunk) + 1) // 2
    return [chunk.part(0, middle, frame), chunk.part(middle, len(chunk), frame)]


def _request(
    chunk: Chunk, suspected: Action | None, trouble: _Trouble, setting: Setting
) -> Generator[Command, Said | None, Outcome | _Sieved | _Halve | _Cut]:
    """Bring one request to its outcome, or to its halving.

    `suspected` is what the request was halved for that these rows were in.
    """
    tries = _Tries(chunk, suspected, trouble, setting)
    while True:
        reply = yield Send(chunk)
        assert reply is not None
        if isinstance(reply, Oversized):
            return tries.cut(reply)
        verdict = _read(reply, chunk, setting)
        if isinstance(verdict, Partly):
            return _Sieved(tries.succeeded(reply, verdict.answers), verdict.failed)
        if not isinstance(verdict, Fault):
            return tries.succeeded(reply, verdict)
        step = tries.failed(reply, verdict)
        if isinstance(step, Dead):
            return step
        if isinstance(step, _Halve):
            if step.pause:
                yield Wait(step.pause)
            return step
        yield step


class _Tries:
    """The attempts of one request, and what follows from the last one."""

    def __init__(self, chunk: Chunk, suspected: Action | None, trouble: _Trouble, setting: Setting) -> None:
        self._chunk = chunk
        self._suspected = suspected
        self._trouble = trouble
        self._setting = setting
        self._patience = Patience(setting.retry, clock=setting.clock, rng=setting.rng, failures=trouble.in_vain)
        self._history: list[Attempt] = []
        self._held = False

    def succeeded(self, reply: Answered | Unanswered, answers: pa.Array[Any]) -> Scored:
        """Note the answers."""
        self._setting.succeeded(answers)
        self._trouble.in_vain = 0
        received, hide = (len(reply.body), reply.hide) if isinstance(reply, Answered) else (0, bytes)
        attempts, history, now = len(self._history) + 1, tuple(self._history), self._setting.now()
        return Scored(self._chunk, answers, attempts, reply.seconds, now, received, history=history, hide=hide)

    def cut(self, why: Oversized) -> _Cut:
        """Go on with parts: what was learned from others meanwhile says that this request is too large."""
        return _Cut(why.limits, len(self._history), self._suspected)

    def failed(self, reply: Answered | Unanswered, fault: Fault) -> Command | _Halve | Dead:
        """Say what follows from a fault. Raises Refused or StorageFailed where it ends the job."""
        setting = self._setting
        others_succeed = setting.last_success() >= self._trouble.at
        self._trouble.at = setting.clock()
        if fault.action is Action.REFRESH and self._history and self._history[-1].action == Action.REFRESH.value:
            fault = fault._replace(action=Action.RETRY if others_succeed else Action.STOP)
        self._history.append(_attempt(reply, fault, setting))
        setting.failed(fault)
        if fault.action is Action.STOP:
            raise Refused(refusal(fault, reply.url or setting.url))
        if fault.action is Action.REFRESH:
            return Refresh(fault, reply.headers if isinstance(reply, Answered) else {})
        asked = _asked(reply, setting) or 0.0
        seconds, spent = self._patience.failed(asked)
        if _COURSES[fault.action].at_once:
            return self._give_up(fault, pause=0.0)
        return self._go_on(fault, seconds, asked, spent=spent, its_own=others_succeed or self._alone_with(fault))

    def _alone_with(self, fault: Fault) -> bool:
        return self._setting.alone() and of_content(fault)

    def _go_on(
        self, fault: Fault, seconds: float, asked: float, *, spent: bool, its_own: bool
    ) -> Command | _Halve | Dead:
        if not its_own:
            _hold_out(fault, self._setting)
            self._held = self._held or spent
            self._trouble.in_vain += 1
        elif spent and self._held:  # the service is back, and what was spent was its trouble
            self._patience.forgive()
            self._held = spent = False
        pause = 0.0 if its_own else seconds
        if spent and its_own:
            return self._give_up(fault, pause)
        to_compare = spent and of_content(fault)  # a half without the row that the model fails on would succeed
        if len(self._chunk) > 1 and (to_compare or _repeats(fault.action, self._history, self._suspected)):
            return self._give_up(fault, pause)
        return Wait(seconds, asked if fault.action is Action.SLOWER else 0.0)

    def _give_up(self, fault: Fault, pause: float) -> _Halve | Dead:
        """Go on with the halves; a row alone is dead."""
        if len(self._chunk) > 1:
            return _Halve(fault.action, len(self._history), pause)
        return Dead(self._chunk, _COURSES[fault.action].kind, fault, tuple(self._history))


def _repeats(action: Action, history: list[Attempt], suspected: Action | None) -> bool:
    """Whether a fault is there to stay. Pressure never is: it comes from elsewhere."""
    halve_after = 1 if action is suspected and action is not Action.SLOWER else _COURSES[action].halve_after
    return halve_after is not None and sum(one.action == action.value for one in history) >= halve_after


def of_content(fault: Fault) -> bool:
    """Whether the model itself answered, and not the gateway, the dispatcher or nobody."""
    status = fault.status or 0
    crashed = status >= 500 or status in SUCCESS if fault.by == "model" else fault.by is None and status == 500  # noqa: PLR2004
    return fault.action is Action.MISFIT or (fault.action is Action.RETRY and crashed)


def _read(reply: Answered | Unanswered, chunk: Chunk, setting: Setting) -> pa.Array[Any] | Partly | Fault:
    if isinstance(reply, Unanswered):
        return reply.fault
    try:
        verdict = _verdict(reply, chunk, setting)
        if isinstance(verdict, Fault) and reply.shown:  # what is told of it must not quote what we sent
            reply = reply.shown()
            verdict = _verdict(reply, chunk, setting)
    except JobError:  # another package's adapter failed, and its words may quote it, too
        if reply.shown:
            _verdict(reply.shown(), chunk, setting)
        raise
    return verdict if isinstance(verdict, Fault) else _fitting(verdict, reply.status, len(chunk))


def _verdict(reply: Answered, chunk: Chunk, setting: Setting) -> pa.Array[Any] | Partly | Fault:
    return setting.adapter.read(reply.status, reply.headers, reply.body, uuid=chunk.uuid, rows=len(chunk))


def _fitting(found: pa.Array[Any] | Partly, status: int, rows: int) -> pa.Array[Any] | Partly | Fault:
    """See that there is an answer a row, and one at all: whoever's adapter says so, none is joined to another's row."""
    answers, failed = found if isinstance(found, Partly) else (found, ())
    if len(answers) != rows:
        return misfit(status, f"{rows} rows were sent, {len(answers)} answers came back")
    if list(failed) != sorted(set(failed)) or (failed and not 0 <= failed[0] <= failed[-1] < rows):
        why = f"{list(failed[:_SHOWN])} are not the positions of rows that failed"
        return misfit(status, f"{why}; allowed: of {rows} rows 0 to {rows - 1}, in order, each once")
    return misfit(status, "no row has an answer, and the reply says not why") if len(failed) == rows else found


def _hold_out(fault: Fault, setting: Setting) -> None:
    """Hold on until `retry.outage` is over: nothing succeeds, so it is the service's trouble and not the rows'."""
    out = setting.out()
    if out > setting.retry.outage:
        raise StorageFailed(
            f"{setting.url} has been out for {out:.0f} s, longer than retry.outage ({setting.retry.outage:g} s): "
            f"{told(fault)}; nothing is lost, run the same command again when it is back"
        )


def _asked(reply: Answered | Unanswered, setting: Setting) -> float | None:
    return reply.retry_after if isinstance(reply, Unanswered) else retry_after(reply.headers, setting.now())


def _attempt(reply: Answered | Unanswered, fault: Fault, setting: Setting) -> Attempt:
    headers = (reply.shown() if reply.shown else reply).headers if isinstance(reply, Answered) else {}
    return Attempt(
        time=setting.now().astimezone(UTC).isoformat(),
        action=fault.action.value,
        status=fault.status,
        code=fault.code,
        request_id=headers.get("X-Request-Id"),
        server=headers.get("Server"),
        message=fault.message,
        received=reply.received if isinstance(reply, Unanswered) else True,
    )


def refusal(fault: Fault, url: str, mend: str | None = None) -> str:
    """Say in one line that a fault ends the job."""
    if fault.status is None:  # nobody was asked: it is its certificate, or ours, and the fault says how to mend that
        return f"the service cannot be called safely: {fault.message}"
    mend = mend or f"mend {fault.mend or 'service.url or service.auth'} and run it again"
    return f"the service refuses the job: {told(fault)} ({url}); {mend}"


def told(fault: Fault) -> str:
    """Return a fault in the service's own words, on one line."""
    return readable(" ".join(str(part) for part in (fault.status, fault.code, fault.message) if part is not None))
