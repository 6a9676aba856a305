"""A websocket and the request that waits on it, as the event loop's thread sees them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from requests.structures import CaseInsensitiveDict
from websockets.exceptions import WebSocketException

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

OK: Final = 200

_OUTAGES: Final = (OSError, EOFError, WebSocketException, asyncio.CancelledError)


class Asked:
    """A request that waits; `named` is whether it carried its uuid."""

    def __init__(self, uuid: str, body: bytes) -> None:
        self.uuid = uuid.lower()
        self.named = bool(uuid) and uuid.encode() in body
        self.sent = False
        self.proved = False  # whether the answer carried the uuid, too
        self.status = OK
        self.answered = False  # whether its connection had answered something before
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()


class Connection:
    """A websocket, and the request that waits on it."""

    def __init__(self, url: str, socket: ClientConnection) -> None:
        self.url = url
        self.socket = socket
        self.asked: Asked | None = None
        self.named = False  # whether what was asked over it had a uuid
        self.answered = False
        self.stale = False  # whether the credentials of its handshake may be dead
        assert socket.response is not None
        self.headers = CaseInsensitiveDict(socket.response.headers.raw_items())
        self.listening: asyncio.Task[None] | None = None

    @property
    def waits(self) -> Asked | None:
        """The request that has no answer yet."""
        return self.asked if self.asked and not self.asked.answer.done() else None


def ignore_outages(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Say nothing of a connection that was lost: whoever asked over it is told."""
    if not isinstance(context.get("exception"), _OUTAGES):
        loop.default_exception_handler(context)
