"""One POST: what the service said, or what became of a request that got no answer.

Every error of the libraries below is translated here, by one table.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import time
from copy import copy
from dataclasses import dataclass, field
from http.client import HTTPException, IncompleteRead
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlsplit

import requests
import urllib3.exceptions as foreign
from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3.util.ssl_ import create_urllib3_context

from pipeline import __version__
from pipeline.deadline import DeadlineAdapter, Watchdog, WatchedTlsSocket
from pipeline.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from requests import PreparedRequest
    from urllib3.response import BaseHTTPResponse

Kind = Literal["refused", "unknown-host", "reset", "timeout", "tls", "protocol"]

# The sockets' own timeouts are a second fence, and a later one: the two must not race to end one exchange.
FENCE_SECONDS: Final = 1.0

CRASHED: Final = 500
"""Behind such a reply some servers close the connection (uvicorn does), without a word: it is not used again."""

DEFAULTS: Final = {"User-Agent": f"bulkscore/{__version__}", "Accept": "*/*", "Accept-Encoding": "gzip, deflate"}

# Foreign errors, most specific first: the first row that fits the error, or anything that it wraps, says what happened.
# No text of theirs is passed on, because some of them quote what was sent.
_MISHAPS: Final[tuple[tuple[Kind, str, tuple[type[Exception], ...]], ...]] = (
    ("unknown-host", "no such host", (socket.gaierror, foreign.NameResolutionError)),
    ("reset", "the connection was lost", (ssl.SSLEOFError, ssl.SSLZeroReturnError)),
    ("tls", "TLS failed", (ssl.SSLError, foreign.SSLError, requests.exceptions.SSLError)),
    ("refused", "no connection", (ConnectionRefusedError, foreign.NewConnectionError, foreign.ClosedPoolError)),
    ("timeout", "no answer in time", (TimeoutError, foreign.TimeoutError, requests.Timeout)),
    ("reset", "the connection was lost", (ConnectionError,)),
    ("refused", "the proxy gives no connection", (foreign.ProxyError, requests.exceptions.ProxyError)),
    ("protocol", "the reply is cut short", (IncompleteRead,)),
    ("protocol", "the reply cannot be decoded", (foreign.DecodeError, requests.exceptions.ContentDecodingError)),
    ("protocol", "the reply is not HTTP", (HTTPException, requests.exceptions.ChunkedEncodingError)),
    ("protocol", "the request cannot be sent", (ValueError, foreign.PoolError, requests.URLRequired)),
    ("reset", "the connection was lost", (OSError,)),
    ("protocol", "the exchange failed", (foreign.HTTPError,)),
)
# By the number of OpenSSL's verdict on a certificate (X509_V_ERR_...), and by the words of other failures.
_BY_VERDICT: Final[tuple[tuple[frozenset[int], str], ...]] = (
    (frozenset({2, 18, 19, 20, 21}), "name the authority that signed it in service.tls.ca"),
    (frozenset({9, 10}), "it must be renewed where the service is, unless the clock of this machine is wrong"),
    (frozenset({62, 64}), "call the service by a name in its certificate, or give that name as service.headers.Host"),
)
_BY_WORDS: Final[tuple[tuple[str, str], ...]] = (
    ("alert", "if it asks for our certificate, give the right one in service.tls.cert and service.tls.key"),
    ("wrong version number", "nobody speaks TLS there; service.url may have to begin with http"),
)
_CA: Final = "service.tls.ca"
_TUNNEL: Final = re.compile(r"Tunnel connection failed: (\d{3})\b")
_FOREIGN: Final = (OSError, HTTPException, foreign.HTTPError)


@dataclass(frozen=True, slots=True)
class Reply:
    """What the service said, whatever its status. Names of headers are case-insensitive; the body is decoded (gzip)."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    seconds: float


@dataclass(frozen=True, slots=True)
class NoReply:
    """What became of a request that got no complete answer.

    `message` is one line without anything that was sent. `received` is whether the service may have seen the request:
    False only where no connection came about, or nothing was sent over it.
    """

    kind: Kind
    message: str
    received: bool
    seconds: float


def tls_context(verify: bool | str, cert: tuple[str, str] | str | None) -> ssl.SSLContext:  # noqa: FBT001 as in requests
    """One context for all connections: reading the CA bundle for each would cost 10 ms every time."""
    context = create_urllib3_context()
    context.sslsocket_class = WatchedTlsSocket
    if verify is False:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        _load_authorities(context, verify)
    if cert is not None:
        certificate, key = (cert, None) if isinstance(cert, str) else cert
        try:
            context.load_cert_chain(certificate, key, password=lambda: "")  # or OpenSSL would ask at the terminal
        except OSError as error:
            raise JobError(f"service.tls.cert: {certificate}, {key}: {_detail([error])}") from None
    return context


def trusting_context(verify: bool | str) -> ssl.SSLContext:  # noqa: FBT001 as in requests
    """One context for whom everybody's authorities vouch for, or `verify`, where it names a file: besides, not instead.

    `tls.ca` is the service's; who else is asked for it may be private too, or known to all.
    """
    context = tls_context(verify is not False, None)
    if isinstance(verify, str):
        _load(context, _CA, verify)
    return context


def _load_authorities(context: ssl.SSLContext, verify: bool | str) -> None:  # noqa: FBT001 as in requests
    named = (
        (_CA, verify if isinstance(verify, str) else None),
        *((name, os.environ.get(name)) for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")),
        ("certifi", DEFAULT_CA_BUNDLE_PATH),
    )
    _load(context, *next((place, path) for place, path in named if path))


def _load(context: ssl.SSLContext, place: str, bundle: str) -> None:
    try:
        context.load_verify_locations(**{"capath" if Path(bundle).is_dir() else "cafile": bundle})
    except OSError as error:
        raise JobError(f"{place}: {bundle}: {_detail([error])}; allowed: PEM certificates") from None


class Transport:
    """Posts, for up to `connections` threads at once; idle connections are kept and used again. One per worker process.

    `verify` and `cert` are as in `requests`; True means `REQUESTS_CA_BUNDLE`, else certifi's authorities. Redirects are
    replies. Nothing is tried again. Raises `JobError` for unusable certificates. Close it when all posts are over.
    """

    _defaults: Mapping[str, str] = DEFAULTS

    def __init__(
        self,
        *,
        verify: bool | str = True,
        cert: tuple[str, str] | str | None = None,
        connections: int,
        method: str = "POST",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._adapter = DeadlineAdapter(tls_context(verify, cert), connections=connections)
        self._watchdog = Watchdog(clock)
        self._clock = clock
        self._method = method
        self._prepared: dict[str, PreparedRequest] = {}

    def post(
        self,
        url: str,
        *,
        body: bytes,
        headers: Mapping[str, str],
        deadline_seconds: float,
        uuid: str = "",  # noqa: ARG002 a reply comes over the connection of its request
    ) -> Reply | NoReply:
        """One attempt, over within `deadline_seconds`. Raises `JobError` for a URL or a header that cannot be sent."""
        start = self._clock()
        error: Exception | None = None
        with self._watchdog.within(deadline_seconds) as exchange:
            try:
                response = self._send(self._request(url, body, headers), max(deadline_seconds, 0) + FENCE_SECONDS)
                exchange.last = response.status == CRASHED
                status, said, content = self._receive(response)
            except _FOREIGN as problem:
                error = problem
        seconds = self._clock() - start
        if exchange.expired:
            message = f"{place_of(url)}: no complete answer within {deadline_seconds:g} s"
            return NoReply("timeout", message, exchange.sent, seconds)
        if error is not None:
            kind, words = mishap(error)
            return NoReply(kind, f"{place_of(url)}: {words}", exchange.sent, seconds)
        return Reply(status, said, content, seconds)

    def signed(self, body: bytes) -> tuple[str, bytes]:
        """Return the method and the body that a signature is over."""
        return self._method, body

    def settle(self, uuid: str, *, fits: bool) -> None:
        """Hear whether the last reply to a request was an answer; here nobody doubts whose it is."""

    def close(self) -> None:
        """Close the idle connections and stop the watchdog."""
        self._adapter.close()
        self._watchdog.close()

    def _send(self, request: PreparedRequest, timeout: float) -> BaseHTTPResponse:
        try:
            return self._adapter.send(request, stream=True, timeout=timeout).raw
        except _FOREIGN:
            raise
        except ValueError:  # its text quotes the value
            raise JobError("a header has characters that HTTP does not allow; look for line ends in secrets") from None

    def _receive(self, response: BaseHTTPResponse) -> tuple[int, Mapping[str, str], bytes]:
        """Read a reply to its end: its status, headers and body."""
        return response.status, response.headers, response.read(decode_content=True)

    def _request(self, url: str, body: bytes, headers: Mapping[str, str]) -> PreparedRequest:
        request = copy(self._prepared.get(url) or self._prepare(url))
        given = {name.lower() for name in headers}
        defaults = {name: value for name, value in self._defaults.items() if name.lower() not in given}
        # a plain dict does for the adapter, at a tenth of the cost
        request.headers = {**defaults, **headers, "Content-Length": str(len(body))}  # type: ignore[assignment]
        request.body = body
        return request

    def _prepare(self, url: str) -> PreparedRequest:
        try:
            request = self._prepared[url] = requests.Request(self._method, url).prepare()
        except ValueError:
            raise JobError(
                f"service.url: {url!r} is not a URL; allowed: http://host/path or https://host/path"
            ) from None
        return request


def place_of(url: str) -> str:
    """Return what of a URL may be told: no path, and nobody's name and password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def mishap(error: BaseException) -> tuple[Kind, str]:
    """Look up what happened, with a line about it."""
    causes = list(_causes(error))
    for kind, words, types in _MISHAPS:
        if any(isinstance(cause, types) for cause in causes):
            told = (words, _detail(causes), _mend(causes) if kind == "tls" else "")
            return kind, ": ".join(filter(None, told[:2])) + (f"; {told[2]}" if told[2] else "")
    raise error


def _mend(causes: Iterable[BaseException]) -> str:
    """Say what to do about TLS that failed."""
    cause = next((one for one in causes if isinstance(one, ssl.SSLError)), None)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return next((mend for codes, mend in _BY_VERDICT if cause.verify_code in codes), "see service.tls")
    said = _detail([cause]) if cause else ""
    return next((mend for words, mend in _BY_WORDS if words in said), "see service.tls")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Walk through the error and all that it wraps, in each of the ways that are in use."""
    yield error
    for inner in {id(one): one for one in (*error.args, getattr(error, "reason", None), error.__cause__)}.values():
        if isinstance(inner, BaseException):
            yield from _causes(inner)


def _detail(causes: Iterable[BaseException]) -> str:
    """Find the operating system's or OpenSSL's own words: they quote nothing that was sent."""
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return str(cause.verify_message)
        if isinstance(cause, ssl.SSLError):
            return str(cause.reason).replace("_", " ").lower()
        if isinstance(cause, OSError) and isinstance(cause.strerror, str):
            return cause.strerror
        refused = _TUNNEL.match(str(cause)) if isinstance(cause, OSError) else None
        if refused:  # the proxy's words behind it could be anything
            return f"it answers {refused[1]}"
    return ""
