"""One request to a service, layer by layer: gateway, dispatcher, model. Each step returns, or raises the refusal."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Protocol

from starlette.requests import ClientDisconnect, Request

from pipeline.sandbox.credentials import Credentials
from pipeline.sandbox.faults import OK, read_rules
from pipeline.sandbox.iam import Tokens
from pipeline.sandbox.iris import Answer
from pipeline.sandbox.limits import Bucket, execution_slots
from pipeline.sandbox.replies import SERVICE, Refusal, bad_gateway_page, crashed, not_allowed, reply
from pipeline.sandbox.schedule import Schedule
from pipeline.sandbox.stats import Stats
from pipeline.sandbox.wire import deliver
from pipeline.sign import Request as Asked

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send

    from pipeline.sandbox.faults import Fault
    from pipeline.sandbox.options import Options

DIRECT: Final = "/vpc"  # the high-speed channel, straight to the instance: nobody asks for credentials
FOREIGN: Final = "00000000-0000-4000-8000-000000000000"  # the uuid of nobody's request

# Answers that do not fit their request, where a model takes several rows and gives a uuid back.
MISFITS: Final[dict[str, Callable[[Answer[Any]], Answer[Any]]]] = {
    "short": lambda answer: replace(answer, predictions=answer.predictions[:-1]),
    "long": lambda answer: replace(answer, predictions=answer.predictions + answer.predictions[-1:]),
    "foreign": lambda answer: replace(answer, uuid=FOREIGN),
    "blank": lambda answer: replace(answer, uuid=""),
}


class Model(Protocol):
    """What is behind a path: how it reads requests, what it predicts, how it answers. No I/O."""

    several: bool
    """Whether it takes several rows, and gives back the request's uuid."""

    def read(self, body: bytes, content_type: str = ...) -> tuple[object, Sequence[Any]]:
        """Return uuid and rows of a request. Raises Refusal."""

    def predict(self, rows: Any) -> list[Any]:
        """Return a prediction for each row."""

    def write(self, answer: Answer[Any]) -> bytes:
        """Return the reply's body."""

    def peek(self, body: bytes, content_type: str = ...) -> tuple[object, list[dict[str, Any]]]:
        """Return the uuid of any body, and by which values a schedule may tell its rows."""


class World:
    """What all services of one sandbox share."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.tokens = Tokens(options.token_seconds)
        self.credentials = Credentials(self.tokens, options.iam)
        self.schedule = Schedule(read_rules(options.faults), chaos=options.chaos, seed=options.seed)
        self.bucket = Bucket(options.rate)
        self.slots = execution_slots(options.slots)
        self.stats = Stats()
        self.recorded: deque[dict[str, Any]] = deque(maxlen=options.record)


@dataclass(frozen=True)
class Outcome:
    """What is to be sent, and how (`wire.MANNERS`, else whole)."""

    response: Response
    rows: int = 0
    manner: str = "whole"


class Service:
    """A deployed model behind the gateway, as an ASGI application."""

    def __init__(self, world: World, model: Model) -> None:
        self._world = world
        self._model = model

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or break off as the schedule says."""
        if scope["method"] != "POST":
            await not_allowed("POST")(scope, receive, send)
            return
        stats = self._world.stats
        with stats.flight():
            try:
                outcome = await self._outcome(Request(scope, receive))
            except ClientDisconnect:
                stats.dropped += 1
                return
            if await deliver(outcome.manner, outcome.response, scope, receive, send):
                stats.answered(outcome.response.status_code, outcome.rows)
            else:
                stats.dropped += 1

    async def _outcome(self, request: Request) -> Outcome:
        try:
            async with asyncio.timeout(self._world.options.timeout):
                return await self._pass_gateway(request)
        except TimeoutError:
            return Outcome(Refusal("504 APIG.0201").response())
        except Refusal as refusal:
            return Outcome(refusal.response())

    async def _pass_gateway(self, request: Request) -> Outcome:
        self._check_declared(int(request.headers.get("content-length", 0)))
        identity = request.headers.get("x-request-id")
        chance = self._world.schedule.chance()
        if self._world.schedule.drops_early(identity, chance):
            self._world.stats.by_fault["drop-early"] += 1
            return Outcome(not_allowed("POST"), manner="drop-early")
        body = await self._body(request)
        if self._world.options.record:
            self._world.recorded.append({"headers": dict(request.headers), "body": body})
        kind = request.headers.get("content-type", "")
        fault = self._world.schedule.draw(identity, lambda: self._model.peek(body, kind), chance)
        if fault != OK:
            self._world.stats.by_fault[fault.name] += 1
        if fault.kind == "html":
            return Outcome(bad_gateway_page())
        self._check_fault(fault)
        await self._check_credentials(request, body)
        if not self._world.bucket.take():
            raise Refusal("429 APIG.0308")
        return await self._execute(body, kind, fault)

    async def _check_credentials(self, request: Request, body: bytes) -> None:
        if request.scope.get("root_path") == DIRECT:
            return
        url = f"http://sandbox{request.scope['raw_path'].decode()}?{request.scope['query_string'].decode()}"
        await self._world.credentials.check(Asked(request.method, url, request.headers, body))

    def _check_declared(self, size: int) -> None:
        # The rest of a refused body is read and thrown away by the server below us, so that a client that sends
        # first and reads afterwards finds the reply.
        if size > self._world.options.body_limit:
            self._world.stats.received(0, declared=size)
            self._refuse_size()

    async def _body(self, request: Request) -> bytes:
        chunks: list[bytes] = []
        size = 0
        try:
            async for chunk in request.stream():
                size += len(chunk)
                chunks.append(chunk)
                if size > self._world.options.body_limit:
                    self._refuse_size()
        finally:
            self._world.stats.received(size)
        return b"".join(chunks)

    def _refuse_size(self) -> None:
        self._world.stats.bodies_over_limit += 1
        raise Refusal("413 APIG.0201")

    def _check_fault(self, fault: Fault) -> None:
        if fault.kind == "expire":
            self._world.tokens.expire_all()
        if fault.kind == "error":
            raise Refusal(fault.error, retry_after=fault.retry_after)

    async def _execute(self, body: bytes, kind: str, fault: Fault = OK) -> Outcome:
        options = self._world.options
        async with self._world.slots:
            uuid, rows = self._model.read(body, kind)
            self._world.stats.rows_received += len(rows)
            answer = Answer(uuid, self._model.predict(rows))
            await asyncio.sleep(options.latency + options.row_latency * len(rows) + fault.seconds)
        if fault.kind == "crash":
            return Outcome(crashed())
        if fault.kind == "garbage":
            return Outcome(reply(b'{"data": {"resp_data": [<', server=SERVICE))
        misfit = MISFITS.get(fault.kind) if self._model.several else None
        answer = misfit(answer) if misfit else answer
        content = self._model.write(answer)
        return Outcome(self._reply(content, fault.kind), len(answer.predictions), fault.kind)

    def _reply(self, content: bytes, kind: str) -> Response:  # noqa: ARG002 - how it goes out is told beside it
        """Return what carries the model's answer; `kind` is the fault that it meets."""
        return reply(content, server=SERVICE)
