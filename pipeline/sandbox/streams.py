"""Streams of events: how they go out, and what may happen to them on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from uuid import uuid4

from starlette.responses import Response

from pipeline.sandbox.infer import Service
from pipeline.sandbox.replies import SERVICE

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

MEDIA_TYPE: Final = "text/event-stream;charset=UTF-8"
PIECE: Final = 7
"""Bytes at a time: an odd number, so that characters, line ends and fields are cut."""

_FAILURE: Final = b'event: error\ndata: {"error": {"message": "the model ran out of memory", "code": 500}}\n\n'


class Stream(Response):
    """A reply in small pieces, whose length nobody knows when it begins."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI
        """Send it."""
        headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        body = bytes(self.body)
        for start in range(0, len(body), PIECE):
            await send({"type": "http.response.body", "body": body[start : start + PIECE], "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class Streaming(Service):
    """A model that answers by a stream of events."""

    def _reply(self, content: bytes, kind: str) -> Response:
        """Return the stream, with what the schedule has for it: an error in its middle, or no end."""
        events = content.split(b"\n\n")
        if kind in {"short", "error-event"}:
            content = b"\n\n".join([*events[: len(events) // 2], b""]) + (_FAILURE if kind == "error-event" else b"")
        headers = {"Server": SERVICE, "X-Request-Id": uuid4().hex}
        return Stream(content, headers=headers, media_type=MEDIA_TYPE)
