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


class Scored(NamedTuple):
    """A request that succeeded: `answers[i]` is the JSON text for the i-th row of `chunk`."""

    chunk: Chunk
    answers: pa.Array[Any]
    attempts: int
    seconds: float
    at: datetime


class Dead(NamedTuple):
    """A request that failed for good; all its rows share the reason."""

    chunk: Chunk
    kind: Kind
    fault: Fault
    history: tuple[Attempt, ...]


Outcome = Scored | Dead


class Setting(NamedTuple):
    """What all conversations of a worker share. `last_success` is the clock's time of the service's last success."""

    adapter: Adapter
    retry: Retry
    url: str
    clock: Callable[[], float]
    now: Callable[[], datetime]
    rng: Random
    last_success: Callable[[], float]


class _Course(NamedTuple):
    """How an action goes on: halve after so many attempts (None: never), then die as `kind`, at once or when spent."""

    halve_after: int | None
    kind: Kind
    at_once: bool = False


_COURSES: Final[dict[Action, _Course]] = {
    Action.RETRY: _Course(None, "exhausted"),
    Action.SLOWER: _Course(None, "exhausted"),
    Action.TIMEOUT: _Course(2, "timeout"),
    Action.MISFIT: _Course(2, "mismatch"),
    Action.TOO_LARGE: _Course(1, "too_large", at_once=True),
    Action.REJECT: _Course(1, "rejected", at_once=True),
}


def converse(chunk: Chunk, setting: Setting) -> Generator[Command, Answered | Unanswered | None, list[Outcome]]:
    """Bring every sent row of the chunk to an outcome; outcomes are in row order.

    Raises Refused when the service refuses the whole job, StorageFailed when it stays out longer than `retry.outage`.
    """
    todo, outcomes = [chunk] if len(chunk) else [], []
    while todo:
        part = todo.pop()
        outcome = yield from _request(part, setting)
        if outcome is None:
            middle = (len(part) + 1) // 2
            todo.append(part.part(middle, len(part), setting.adapter.frame))
            todo.append(part.part(0, middle, setting.adapter.frame))
        else:
            outcomes.append(outcome)
    return outcomes


def _request(chunk: Chunk, setting: Setting) -> Generator[Command, Answered | Unanswered | None, Outcome | None]:
    """Bring one request to its outcome; None means that it is to be halved."""
    patience = Patience(setting.retry, clock=setting.clock, rng=setting.rng)
    history: list[Attempt] = []
    refreshed = False
    while True:
        reply = yield Send(chunk)
        assert reply is not None
        verdict = _read(reply, chunk, setting)
        if not isinstance(verdict, Fault):
            return Scored(chunk, verdict, len(history) + 1, reply.seconds, setting.now())
        if verdict.action is Action.REFRESH and refreshed:
            verdict = _second_refusal(verdict, patience, setting)
        history.append(_attempt(reply, verdict, setting))
        if verdict.action is Action.STOP:
            raise Refused(_refusal(verdict, setting.url))
        if verdict.action is Action.REFRESH:
            refreshed = True
            yield Refresh()
            continue
        course = _COURSES[verdict.action]
        seconds, spent = patience.failed(_asked(reply, setting))
        if course.halve_after and len(chunk) > 1 and patience.attempts >= course.halve_after:
            return None
        if course.at_once or (spent and setting.last_success() >= patience.started):
            return Dead(chunk, course.kind, verdict, tuple(history))
        if spent:
            _hold_out(patience, verdict, setting)
        yield Wait(seconds, verdict.action is Action.SLOWER)


def _read(reply: Answered | Unanswered, chunk: Chunk, setting: Setting) -> pa.Array[Any] | Fault:
    if isinstance(reply, Unanswered):
        return reply.fault
    return setting.adapter.read(reply.status, reply.headers, reply.body, uuid=chunk.uuid, rows=len(chunk))


def _second_refusal(fault: Fault, patience: Patience, setting: Setting) -> Fault:
    """New credentials were refused too: passing trouble if others succeed meanwhile, otherwise the end of the job."""
    others_succeed = setting.last_success() >= patience.started
    return fault._replace(action=Action.RETRY if others_succeed else Action.STOP)


def _hold_out(patience: Patience, fault: Fault, setting: Setting) -> None:
    """Nothing succeeds: that is the service's trouble, not the row's. Hold on until `retry.outage` is over."""
    out = setting.clock() - max(setting.last_success(), patience.started)
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
