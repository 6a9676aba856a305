"""The ways in by name (`service.transport`): adding one is a class in a file of its own, and a line here."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from pipeline.events import body_of
from pipeline.protocols import picker_of
from pipeline.sse import EventStreams
from pipeline.transport import NoReply, Reply, Transport
from pipeline.websocket import WebSockets

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from schemas.job import Service


class Way(Protocol):
    """How requests travel, for many threads at once."""

    def post(
        self, url: str, *, body: bytes, headers: Mapping[str, str], deadline_seconds: float, uuid: str = ""
    ) -> Reply | NoReply:
        """One attempt, over within `deadline_seconds`. Raises `JobError` for a URL or a header that cannot be sent."""

    def signed(self, body: bytes) -> tuple[str, bytes]:
        """Return the method and the body that a signature is over."""

    def settle(self, uuid: str, *, fits: bool) -> None:
        """Hear whether the last reply to the request was its answer."""

    def close(self) -> None:
        """Let all connections go."""


def way_of(service: Service, method: str) -> Way:
    """Return what carries the job's requests. Raises JobError for certificates that cannot be used."""
    tls = service.tls
    verify, cert = tls.ca or tls.verify, (tls.cert, tls.key) if tls.cert and tls.key else tls.cert
    return _WAYS[service.way](service, {"verify": verify, "cert": cert, "method": method})


def _http(service: Service, options: dict[str, Any]) -> Way:
    return Transport(connections=service.limits.in_flight, **options)


def _sse(service: Service, options: dict[str, Any]) -> Way:
    text = service.protocol == "json"
    form = service.options.events or ("all" if service.protocol == "openai-chat" else "joined" if text else "last")
    pick = picker_of(service)
    gather = partial(body_of, form=form, text=text, pick=pick)
    return EventStreams(gather=gather, picks=pick is not None, connections=service.limits.in_flight, **options)


def _websocket(service: Service, options: dict[str, Any]) -> Way:
    message = service.options.message or ("binary" if service.protocol == "file" else "json")
    options.pop("method")  # a handshake has its own
    return WebSockets(text=message == "json", greeting=service.options.greeting, **options)


_WAYS: Final[Mapping[str, Callable[[Service, dict[str, Any]], Way]]] = {
    "http": _http,
    "sse": _sse,
    "websocket": _websocket,
}
