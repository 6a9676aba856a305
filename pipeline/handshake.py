"""How a connection to a websocket service comes about, and what becomes of a request that gets no answer over it.

Every error of the library below is translated here.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec
from requests.structures import CaseInsensitiveDict
from requests.utils import get_environ_proxies, select_proxy
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidURI, ProxyError, WebSocketException

from pipeline.errors import JobError
from pipeline.messages import LOST, status_of
from pipeline.transport import DEFAULTS, NoReply, Reply, mishap, place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from websockets.client import ClientProtocol
    from websockets.http11 import Request, Response

CLOSE_SECONDS: Final = 1.0

_SUCCESS: Final = 2
_NOT_FOUND: Final = 404

_LOGGER: Final = logging.getLogger("bulkscore.websockets")
_LOGGER.setLevel(logging.WARNING)  # below it the library writes down headers, and credentials are among them

_SCHEMES: Final = {"http": "ws", "https": "wss"}


class Handshake(connect):
    """A handshake whose redirects are replies, as they are over HTTP."""

    @classmethod
    def to(cls, url: str, headers: Mapping[str, str], context: Any) -> Handshake:
        """Prepare one, over TLS and by proxy as for HTTP. Raises JobError for what cannot be sent."""
        parts = urlsplit(url)
        scheme = _SCHEMES.get(parts.scheme, parts.scheme)
        options: dict[str, Any] = {"ssl": context} if scheme == "wss" else {}
        proxy = _proxy(parts._replace(scheme=scheme.replace("ws", "http")).geturl())
        sendable = _sendable(headers)
        host = sendable.pop("host", None)
        if host and scheme == "wss":  # what is called by its address, and knows itself by this name
            options["server_hostname"] = urlsplit(f"//{host}").hostname
        try:
            return cls(
                parts._replace(scheme=scheme).geturl(),
                additional_headers=sendable,
                create_connection=_called(host),  # type: ignore[arg-type]
                logger=_LOGGER,
                user_agent_header=DEFAULTS["User-Agent"],
                compression=None,
                proxy=proxy,
                open_timeout=None,  # the deadline counts
                ping_timeout=None,  # a model at work may not have the time to answer
                close_timeout=CLOSE_SECONDS,
                max_size=None,
                **options,
            )
        except InvalidURI:
            raise JobError(f"service.url: {url!r} is not a URL; allowed: ws://host/path or wss://host/path") from None

    def process_redirect(self, exc: Exception) -> Exception:
        """Follow none."""
        return exc


def _called(host: str | None) -> Callable[..., ClientConnection]:
    """Return what makes connections to a service that is called so, to the letter, as it may have been signed."""

    def create(protocol: ClientProtocol, **options: Any) -> ClientConnection:
        if host:
            usual = protocol.connect

            def connect() -> Request:
                request = usual()
                del request.headers["Host"]
                request.headers["Host"] = host
                return request

            protocol.connect = connect  # type: ignore[method-assign]
        return ClientConnection(protocol, **options)

    return create


def _sendable(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers; that of the host is called `host`."""
    for value in headers.values():
        if not (value.isascii() and value.isprintable()):
            raise JobError("a header has characters that HTTP does not allow; look for line ends in secrets")
    return {"host" if name.lower() == "host" else name: value for name, value in headers.items()}


def _proxy(url: str) -> str | None:
    proxy = select_proxy(url, get_environ_proxies(url))
    if proxy and proxy.lower().startswith("socks"):
        raise JobError("the environment names a SOCKS proxy; allowed: an http:// proxy, or the host in NO_PROXY")
    return proxy if proxy is None or "://" in proxy else f"http://{proxy}"


def late(url: str, deadline_seconds: float, *, received: bool, seconds: float) -> NoReply:
    """Return what becomes of a request whose time is over."""
    message = f"{place_of(url)}: no complete answer within {deadline_seconds:g} s"
    return NoReply("timeout", message, received, seconds)


def closed(
    url: str, end: ConnectionClosed, *, received: bool, seconds: float, answered: bool = False, works: bool = False
) -> Reply | NoReply:
    """Judge the end of a connection by its close code: it is the reply of that status which means the same.

    `answered` and `works` are as in `status_of`.
    """
    code = end.rcvd.code if end.rcvd else None
    reason = " ".join(end.rcvd.reason.split()) if end.rcvd else ""
    status = status_of(code, answered=answered, works=works) if code else LOST
    if status is not LOST:
        words = f"the service closed the connection{f': {reason}' if reason else ''}"
        body = msgspec.json.encode({"code": code, "message": words})
        return Reply(status, CaseInsensitiveDict[str](), body, seconds)
    if end.rcvd is None and end.sent is not None:
        return NoReply("protocol", f"{place_of(url)}: what came is no websocket message", received, seconds)
    words = f"the connection was closed with {code}" if code else "the connection was lost"
    return NoReply("reset", f"{place_of(url)}: {words}", received, seconds)


def refused(response: Response, seconds: float) -> Reply:
    """Return the reply that a handshake got. A success is none: it is somebody else's, and no answer to a request."""
    if response.status_code // 100 != _SUCCESS:
        headers = CaseInsensitiveDict[str](response.headers.raw_items())
        return Reply(response.status_code, headers, bytes(response.body), seconds)
    words = f"the service does not speak websocket at this URL: it answers the handshake with {response.status_code}"
    body = msgspec.json.encode({"message": words})
    return Reply(_NOT_FOUND, CaseInsensitiveDict[str](), body, seconds)


def unconnected(url: str, error: Exception, *, received: bool, seconds: float) -> NoReply:
    """Return what becomes of a request for which there was no connection."""
    if isinstance(error, ProxyError):
        return NoReply("refused", f"{place_of(url)}: the proxy gives no connection", received, seconds)
    if isinstance(error, WebSocketException):
        lost = isinstance(error.__cause__, EOFError | OSError)
        kind, words = ("reset", "the connection was lost") if lost else ("protocol", "the reply is no handshake")
        return NoReply(kind, f"{place_of(url)}: {words}", received, seconds)  # type: ignore[arg-type]
    kind, words = mishap(error)
    return NoReply(kind, f"{place_of(url)}: {words}", received, seconds)
