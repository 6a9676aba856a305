"""Services over websockets: credentials are checked on the handshake, then each message is a request.

What the platform would refuse closes the connection, with the code that says the same as the status. What the model
refuses is a message of its own. `?greeting=2` in the URL makes a service that says two things before it listens.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
from starlette.requests import HTTPConnection

from pipeline.sandbox.digits import Digits, points_of
from pipeline.sandbox.faults import OK
from pipeline.sandbox.infer import DIRECT, FOREIGN, Outcome, Service
from pipeline.sandbox.replies import Refusal, bad_gateway_page, not_allowed
from pipeline.sandbox.wire import PACE
from pipeline.sign import Request

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import Message, Receive, Scope, Send

    from pipeline.sandbox.digits import Points
    from pipeline.sandbox.infer import Model, World

FRAGMENT: Final = 65_536  # bytes of the largest frame that the gateway passes on
JSON: Final = "application/json"
BINARY: Final = "application/octet-stream"

CODES: Final[dict[int, int]] = {
    400: 1007,
    401: 4401,
    403: 1008,
    404: 4404,
    408: 1012,
    413: 1009,
    429: 1013,
    500: 1011,
    502: 1014,
    503: 1013,
    504: 3008,
}
"""How a connection is closed where a reply would have this status."""


class Pictures(Digits):
    """Digits whose picture is a binary message; text messages are JSON."""

    def read(self, body: bytes, content_type: str = JSON) -> tuple[object, list[Points]]:
        """Return the points of the picture. Raises Refusal."""
        return ("", [points_of(body)]) if content_type == BINARY else super().read(body, content_type)


_NOTICE: Final = b'{"event": "notice", "text": "nobody asked for this"}'


class Sockets(Service):
    """A deployed model behind the gateway, over websockets."""

    def __init__(self, world: World, model: Model) -> None:
        super().__init__(world, model)
        self._open: list[Send] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        connection = HTTPConnection(scope)
        await receive()  # it wants to connect
        try:
            await self._check_handshake(connection)
        except Refusal as refusal:
            await refuse(refusal, scope, receive, send)
            return
        self._world.stats.websockets += 1
        await send({"type": "websocket.accept"})
        for number in range(int(connection.query_params.get("greeting", 0))):
            _frames(send, msgspec.json.encode({"event": "welcome", "number": number}))
        self._open.append(send)
        try:
            with suppress(OSError):  # the client has left
                while (message := await receive())["type"] == "websocket.receive":
                    if not await self._take(message, receive, send):
                        return
        finally:
            self._open.remove(send)

    async def _check_handshake(self, connection: HTTPConnection) -> None:
        scope = connection.scope
        if scope.get("root_path") == DIRECT:
            return
        url = f"http://sandbox{scope['raw_path'].decode()}?{scope['query_string'].decode()}"
        await self._world.credentials.check(Request("GET", url, connection.headers, b""))

    async def _take(self, message: Message, receive: Receive, send: Send) -> bool:
        """Answer a message; return whether the connection is still good."""
        text = message.get("text")
        body, kind = (message["bytes"], BINARY) if text is None else (text.encode(), JSON)
        stats = self._world.stats
        with stats.flight():
            outcome = await self._outcome_of(body, kind)
            if outcome.manner in BROKEN:
                stats.dropped += 1
                await BROKEN[outcome.manner](bytes(outcome.response.body), receive, send)
                return False
            status, content = outcome.response.status_code, bytes(outcome.response.body)
            if status != 200 and not content.startswith(b'{"erno"'):  # noqa: PLR2004
                stats.answered(status, 0)
                await send({"type": "websocket.close", "code": CODES[status], "reason": _reason(content)})
                return False
            if outcome.manner == "push":
                self._push(content)
            _frames(self._other(send) if outcome.manner == "swap" else send, content)
            stats.answered(status, outcome.rows)
            return True

    async def _outcome_of(self, body: bytes, kind: str) -> Outcome:
        try:
            async with asyncio.timeout(self._world.options.timeout):
                return await self._pass(body, kind)
        except TimeoutError:
            return Outcome(Refusal("504 APIG.0201").response())
        except Refusal as refusal:
            return Outcome(refusal.response())

    async def _pass(self, body: bytes, kind: str) -> Outcome:
        """Bring a message through the layers, as `_pass_gateway` does a request."""
        world = self._world
        world.stats.received(len(body))
        if len(body) > world.options.body_limit:
            self._refuse_size()
        chance = world.schedule.chance()
        if world.schedule.drops_early(None, chance):
            world.stats.by_fault["drop-early"] += 1
            return Outcome(not_allowed("POST"), manner="drop-early")
        fault = world.schedule.draw(None, lambda: self._model.peek(body, kind), chance)
        if fault != OK:
            world.stats.by_fault[fault.name] += 1
        if fault.kind == "html":
            return Outcome(bad_gateway_page())
        self._check_fault(fault)
        if fault.kind == "expire":
            raise Refusal("401 APIG.0307")
        if not world.bucket.take():
            raise Refusal("429 APIG.0308")
        return await self._execute(body, kind, fault)

    def _push(self, content: bytes) -> None:
        """Say to everybody what nobody asked: a notice, and what looks like this answer, for somebody unknown."""
        answer: dict[str, Any] = {**msgspec.json.decode(content), "meta": {"uuid": FOREIGN}}
        for one in self._open:
            _frames(one, _NOTICE)
            _frames(one, msgspec.json.encode(answer))

    def _other(self, send: Send) -> Send:
        return next((one for one in self._open if one is not send), send)


async def refuse(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a handshake as any other request, and see the connection end: else the server calls it unanswered."""
    await refusal.response()(scope, receive, send)
    await _gone(receive)  # says the server
    await _gone(receive)  # and so it is


def _reason(content: bytes) -> str:
    """Return what fits in a close frame of the words of a refusal."""
    try:
        body = msgspec.json.decode(content)
    except msgspec.DecodeError:
        return content[:100].decode()
    return f"{body.get('error_code', '')} {body.get('error_msg', '')}".strip()[:100]


def _frames(send: Send, content: bytes, *, whole: bool = True) -> None:
    """Send a text message at once, in frames of at most 64 KB; without its end unless `whole`."""
    protocol = _protocol(send)
    if protocol.disconnected or protocol.close_sent:
        return
    pieces = [content[start : start + FRAGMENT] for start in range(0, len(content), FRAGMENT)] or [b""]
    for number, piece in enumerate(pieces):
        say = protocol.conn.send_text if number == 0 else protocol.conn.send_continuation
        say(piece, fin=whole and number == len(pieces) - 1)
    protocol.transport.write(b"".join(protocol.conn.data_to_send()))


async def _reset(_content: bytes, receive: Receive, send: Send) -> None:
    transport = _protocol(send).transport
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
    await _gone(receive)


async def _truncate(content: bytes, receive: Receive, send: Send) -> None:
    _frames(send, content[: len(content) // 2], whole=False)
    _protocol(send).transport.close()
    await _gone(receive)


async def _trickle(content: bytes, receive: Receive, send: Send) -> None:
    protocol = _protocol(send)
    _frames(send, content[:1], whole=False)
    while not protocol.disconnected:
        with suppress(TimeoutError):
            async with asyncio.timeout(PACE):
                await _gone(receive)
        if not protocol.disconnected:
            protocol.conn.send_continuation(b" ", fin=False)
            protocol.transport.write(b"".join(protocol.conn.data_to_send()))


BROKEN: Final[dict[str, Callable[[bytes, Receive, Send], Awaitable[None]]]] = {
    "drop": _reset,
    "drop-early": _reset,
    "truncate": _truncate,
    "trickle": _trickle,
    "trickle-headers": _trickle,
}


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "websocket.disconnect":
        pass


def _protocol(send: Send) -> Any:
    return cast("Any", send).__self__  # as in `wire`: nothing may wrap it
