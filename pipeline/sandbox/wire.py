"""How an answer goes out: whole, or broken in one of the ways in which connections break.

Breaking needs the transport below ASGI. Uvicorn hands the outermost application a `send` that is bound to its
request cycle, which has it; so nothing may wrap `send` on the way to here.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send

    Manner = Callable[[Response, Scope, Receive, Send], Awaitable[None]]

PACE: Final = 1.0  # seconds between the bytes of a trickle


async def deliver(manner: str, response: Response, scope: Scope, receive: Receive, send: Send) -> bool:
    """Send in a manner of `MANNERS`, else whole; return whether all went out to a client that was still there."""
    broken = MANNERS.get(manner)
    if broken is not None:
        await broken(response, scope, receive, send)
        return False
    await response(scope, receive, send)
    return not _cycle(send).disconnected


async def _reset(_response: Response, _scope: Scope, receive: Receive, send: Send) -> None:
    transport = _transport(send)
    # Lingering for no time is what makes the kernel send RST rather than FIN.
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
    await _disconnected(receive)


async def _truncate(response: Response, _scope: Scope, receive: Receive, send: Send) -> None:
    body = bytes(response.body)
    await send(_start(response, response.raw_headers))
    await send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})
    _transport(send).close()
    await _disconnected(receive)


async def _trickle(response: Response, _scope: Scope, receive: Receive, send: Send) -> None:
    # Without a length the server sends chunks; blanks after JSON are still JSON, so there is no end to wait for.
    await send(_start(response, [(name, value) for name, value in response.raw_headers if name != b"content-length"]))
    pieces, left = _endless(bytes(response.body), b" "), False
    while not left:
        await send({"type": "http.response.body", "body": next(pieces), "more_body": True})
        left = await _left(receive)


async def _trickle_headers(_response: Response, _scope: Scope, receive: Receive, send: Send) -> None:
    pieces, left = _endless(b"HTTP/1.1 200 OK\r\nServer: ModelArts\r\nX-Padding: ", b"-"), False
    while not left:
        _transport(send).write(next(pieces))
        left = await _left(receive)


MANNERS: Final[dict[str, Manner]] = {
    "drop": _reset,
    "drop-early": _reset,
    "truncate": _truncate,
    "trickle": _trickle,
    "trickle-headers": _trickle_headers,
}


def _start(response: Response, headers: list[tuple[bytes, bytes]]) -> dict[str, Any]:
    return {"type": "http.response.start", "status": response.status_code, "headers": headers}


def _endless(beginning: bytes, then: bytes) -> Iterator[bytes]:
    return chain((bytes([byte]) for byte in beginning), repeat(then))


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _left(receive: Receive) -> bool:
    try:
        async with asyncio.timeout(PACE):
            await _disconnected(receive)
    except TimeoutError:
        return False
    return True


def _cycle(send: Send) -> Any:
    return cast("Any", send).__self__


def _transport(send: Send) -> asyncio.Transport:
    return cast("asyncio.Transport", _cycle(send).transport)
