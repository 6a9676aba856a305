"""One conversation about one chunk: send, wait, refresh, split, until every row has an answer or a reason.

A conversation is a generator: it yields commands and is sent what came of them, so it is driven by real threads in a
job and by plain lists in a test. It knows neither sockets nor threads, and time only as a clock that it is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from pipeline.errors import Refused, StorageFailed
from pipeline.retry import Patience, retry_after
from pipeline.status import Action, Fault
from schemas.tables import Attempt, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from random import Random

    import pyarrow as pa

    from pipeline.pack import Chunk
    from schemas.job import Retry


class Adapter(Protocol):
    """A service's protocol: how rows become a body, and a reply becomes one answer a row."""

    @property
    def content_type(self) -> str:
        """The body's media type."""

    def frame(self, uuid: str) -> tuple[bytes, bytes]:
        """Return what stands before and behind the comma-separated rows; the same lengths for every uuid."""

    def read(
        self, status: int, headers: Mapping[str, str], body: bytes, *, uuid: str, rows: int
    ) -> pa.Array[Any] | Fault:
        """Return the answers as JSON texts, in order, or why the reply is none."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What the service said. `headers` are case-insensitive."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A request that got no reply; `received` tells whether the service may have processed it."""

    fault: Fault
    received: bool
    seconds: float
    retry_after: float | None = None


class Send(NamedTuple):
    """Send this chunk; the answer is `Answered` or `Unanswered`."""

    chunk: Chunk


class Wait(NamedTuple):
    """Wait before the next attempt; `pressure` says that the service has too much to do."""

    seconds: float
    pressure: bool


class Refresh(NamedTuple):
    """The credentials of the last attempt were refused: get new ones."""


Command = Send | Wait | Refresh


class Spent(NamedTuple):
    """Requests that brought nothing but their halving, and the bytes of their bodies."""

    requests: int = 0
    size: int = 0


class Scored(NamedTuple):
    """A request that succeeded: `answers[i]` is the JSON text for the i-th row of `chunk`; `received` in bytes.

    `history` has the attempts before the one that succeeded.
    """

    chunk: Chunk
    answers: pa.Array[Any]
    attempts: int
    seconds: float
    at: datetime
    received: int = 0
    before: Spent = Spent()
    history: tuple[Attempt, ...] = ()


class Dead(NamedTuple):
    """A request that failed for good; all its rows share the reason."""

    chunk: Chunk
    kind: Kind
    fault: Fault
    history: tuple[Attempt, ...]
    before: Spent = Spent()


class _Halve(NamedTuple):
    """A request is to be halved, because of `action`, after `attempts`."""

    action: Action
    attempts: int


Outcome = Scored | Dead


class Setting(NamedTuple):
    """What all conversations of a worker share.

    `last_success` is the clock's time of the service's last success; `alone` tells whether no other conversation of
    this worker is under way, so that there is none to compare with; `succeeded` is told of each success.
    """

    adapter: Adapter
    retry: Retry
    url: str
    clock: Callable[[], float]
    now: Callable[[], datetime]
    rng: Random
    last_success: Callable[[], float]
    alone: Callable[[], bool] = lambda: True
    succeeded: Callable[[], None] = lambda: None


class _Course(NamedTuple):
    """How a fault goes on: as what a lone row dies, after how many a request is halved, or whether both at once."""

    kind: Kind
    halve_after: int | None = None
    at_once: bool = False


_COURSES: Final[dict[Action, _Course]] = {
    Action.RETRY: _Course("exhausted"),
    Action.SLOWER: _Course("exhausted"),
    Action.TIMEOUT: _Course("timeout", halve_after=2),
    Action.MISFIT: _Course("mismatch", halve_after=2),
    Action.TOO_LARGE: _Course("too_large", at_once=True),
    Action.REJECT: _Course("rejected", at_once=True),
}


def converse(chunk: Chunk, setting: Setting) -> Generator[Command, Answered | Unanswered | None, list[Outcome]]:
    """Bring every sent row of the chunk to an outcome; outcomes are in row order.

    A request that fails while others succeed is the rows' trouble: what is halved for it, and fails for it again, is
    halved again, until the rows are alone. While nothing succeeds it is the service's trouble, and nothing dies of it.

    Raises Refused when the service refuses the whole job, StorageFailed when it stays out longer than `retry.outage`.
    """
    todo: list[tuple[Chunk, Action | None]] = [(chunk, None)] if len(chunk) else []
    outcomes: list[Outcome] = []
    spent = Spent()
    while todo:
        part, suspected = todo.pop()
        outcome = yield from _request(part, suspected, setting)
        if isinstance(outcome, _Halve):
            spent = Spent(spent.requests + outcome.attempts, spent.size + outcome.attempts * len(part.body))
            middle = (len(part) + 1) // 2
            todo.append((part.part(middle, len(part), setting.adapter.frame), outcome.action))
            todo.append((part.part(0, middle, setting.adapter.frame), outcome.action))
        else:
            outcomes.append(outcome._replace(before=spent))
            spent = Spent()
    return outcomes


def _request(
    chunk: Chunk, suspected: Action | None, setting: Setting
) -> Generator[Command, Answered | Unanswered | None, Outcome | _Halve]:
    """Bring one request to its outcome, or to its halving.

    `suspected` is what the request was halved for that these rows were in.
    """
    patience = Patience(setting.retry, clock=setting.clock, rng=setting.rng)
    history: list[Attempt] = []
    began = last_failure = setting.clock()
    held = False
    while True:
        reply = yield Send(chunk)
        assert reply is not None
        verdict = _read(reply, chunk, setting)
        if not isinstance(verdict, Fault):
            setting.succeeded()
            received = len(reply.body) if isinstance(reply, Answered) else 0
            attempts = len(history) + 1
            return Scored(chunk, verdict, attempts, reply.seconds, setting.now(), received, history=tuple(history))
        others_succeed = setting.last_success() >= last_failure
        last_failure = setting.clock()
        if verdict.action is Action.REFRESH and history and history[-1].action == Action.REFRESH.value:
            verdict = verdict._replace(action=Action.RETRY if others_succeed else Action.STOP)
        history.append(_attempt(reply, verdict, setting))
        if verdict.action is Action.STOP:
            raise Refused(_refusal(verdict, setting.url))
        if verdict.action is Action.REFRESH:
            yield Refresh()
            continue
        seconds, spent = patience.failed(_asked(reply, setting))
        its_own = others_succeed or (setting.alone() and _of_content(verdict))
        if spent and not its_own:
            _hold_out(began, verdict, setting)
            held = True
        elif spent and held:  # the service is back, and what was spent was its trouble
            patience.forgive()
            held = spent = False
        course = _COURSES[verdict.action]
        dying = course.at_once or (spent and its_own)
        if len(chunk) > 1 and (dying or _repeats(verdict.action, history, suspected)):
            return _Halve(verdict.action, len(history))
        if dying:
            return Dead(chunk, course.kind, verdict, tuple(history))
        yield Wait(seconds, verdict.action is Action.SLOWER)


def _repeats(action: Action, history: list[Attempt], suspected: Action | None) -> bool:
    """Whether a fault is there to stay. Pressure never is: it comes from elsewhere."""
    halve_after = 1 if action is suspected and action is not Action.SLOWER else _COURSES[action].halve_after
    return halve_after is not None and sum(one.action == action.value for one in history) >= halve_after


def _of_content(fault: Fault) -> bool:
    """Whether the model itself answered, and not the gateway, the dispatcher or nobody."""
    platform = (fault.code or "").startswith(("APIG", "ModelArts."))
    return fault.action is Action.MISFIT or (fault.action is Action.RETRY and fault.status == 500 and not platform)  # noqa: PLR2004


def _read(reply: Answered | Unanswered, chunk: Chunk, setting: Setting) -> pa.Array[Any] | Fault:
    if isinstance(reply, Unanswered):
        return reply.fault
    return setting.adapter.read(reply.status, reply.headers, reply.body, uuid=chunk.uuid, rows=len(chunk))


def _hold_out(began: float, fault: Fault, setting: Setting) -> None:
    """Hold on until `retry.outage` is over: nothing succeeds, so it is the service's trouble and not the rows'."""
    out = setting.clock() - max(setting.last_success(), began)
    if out > setting.retry.outage:
        raise StorageFailed(
            f"{setting.url} has been out for {out:.0f} s, longer than retry.outage ({setting.retry.outage:g} s): "
            f"{_told(fault)}; nothing is lost, run the same command again when it is back"
        )


def _asked(reply: Answered | Unanswered, setting: Setting) -> float | None:
    return reply.retry_after if isinstance(reply, Unanswered) else retry_after(reply.headers, setting.now())


def _attempt(reply: Answered | Unanswered, fault: Fault, setting: Setting) -> Attempt:
    headers = reply.headers if isinstance(reply, Answered) else {}
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


def _refusal(fault: Fault, url: str) -> str:
    return f"the service refuses the job: {_told(fault)} ({url}); mend service.url or service.auth and run it again"


def _told(fault: Fault) -> str:
    return " ".join(str(part) for part in (fault.status, fault.code, fault.message) if part is not None)
