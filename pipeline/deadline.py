"""A deadline that holds: connect, handshake, send, wait, and a reply that trickles in for ever.

A socket's own timeout starts again with every byte, so it bounds nothing. Here a watchdog thread shuts down the socket
of an exchange whose time is over, and the thread that is blocked on it wakes. The rules that make this safe:

- An exchange belongs to the thread that asks. Each connection shows the socket it is about to use to the exchange
  (`attach`), and only an attached socket can be shut down.
- A connection is detached before it goes back to its pool, and closed instead if its exchange has expired by then. So
  the deadline of one exchange never cuts the next one on the same connection.
- Attaching, detaching and expiring happen under one lock.

How long a look-up of a host name takes is bounded by the resolver alone.
"""

from __future__ import annotations

import math
import socket
import ssl
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from requests import PreparedRequest, Response
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from urllib3.util.connection import allowed_gai_family, create_connection

from pipeline.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from urllib3._base_connection import BaseHTTPConnection
    from urllib3.response import BaseHTTPResponse

# Head and body up to this size leave in one piece: one system call and one segment less.
_ONE_PIECE: Final = 64 * 1024


class Exchange:
    """One request and its reply: when its time is over, and the socket that it may be blocked on."""

    __slots__ = ("_clock", "_lock", "_socket", "ends", "expired", "last", "sent")

    def __init__(self, ends: float, clock: Callable[[], float], lock: threading.Lock) -> None:
        self.ends = ends
        self.expired = False
        self.sent = False  # whether any of the request may have left
        self.last = False  # whether the server may close the connection behind its reply
        self._clock = clock
        self._lock = lock
        self._socket: socket.socket | None = None

    def left(self) -> float:
        """Seconds that are left, never quite 0: to a socket that would mean not to wait at all."""
        return max(self.ends - self._clock(), 0.001)

    def attach(self, sock: socket.socket, *, sends: bool = False) -> None:
        """Make `sock` the one to shut down when time is over, which is now if it already is."""
        with self._lock:
            self._socket = sock
            self.sent = self.sent or (sends and not self.expired)
            if self.expired:
                self._shut_down()

    def detach(self) -> bool:
        """Let the socket go, and tell whether it is still good for another exchange."""
        with self._lock:
            self._socket = None
            return not (self.expired or self.last)

    def expire(self) -> None:
        """End it. The caller holds the lock."""
        self.expired = True
        self._shut_down()

    def _shut_down(self) -> None:
        if self._socket is not None:
            with suppress(OSError):  # closed or no longer connected is as good
                # not SSLSocket.shutdown, which takes the TLS session away under the thread that reads
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


class _Mine(threading.local):
    exchange: Exchange | None = None  # of the current thread


_mine = _Mine()


def _attach(sock: socket.socket, *, sends: bool = False) -> None:
    if _mine.exchange is not None:
        _mine.exchange.attach(sock, sends=sends)


class Watchdog:
    """A thread that expires exchanges. It wakes about once per deadline's length, not once per exchange."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._running: set[Exchange] = set()
        self._next = math.inf
        self._closed = False
        self._thread = threading.Thread(target=self._watch, name="deadlines", daemon=True)
        self._thread.start()

    @contextmanager
    def within(self, seconds: float) -> Iterator[Exchange]:
        """Bound all that this thread asks through a `DeadlineAdapter` in the body, taken together, to `seconds`."""
        exchange = Exchange(self._clock() + seconds, self._clock, self._lock)
        exchange.expired = seconds <= 0
        with self._lock:
            self._running.add(exchange)
            if exchange.ends < self._next:
                self._changed.notify()
        _mine.exchange = exchange
        try:
            yield exchange
        finally:
            _mine.exchange = None
            exchange.detach()
            with self._lock:
                self._running.discard(exchange)

    def close(self) -> None:
        """Stop the thread. Exchanges that still run lose their deadline."""
        with self._lock:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _watch(self) -> None:
        with self._lock:
            while not self._closed:
                now = self._clock()
                for exchange in [one for one in self._running if one.ends <= now]:
                    exchange.expire()
                    self._running.discard(exchange)
                self._next = min((one.ends for one in self._running), default=math.inf)
                self._changed.wait(None if self._next == math.inf else self._next - now)


class WatchedTlsSocket(ssl.SSLSocket):
    """For `SSLContext.sslsocket_class`: lets the watchdog reach a handshake, too."""

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002 the signature is given
        """Shake hands within the exchange's time."""
        _attach(self)
        super().do_handshake(block)


class _Connection(HTTPConnection):
    """A connection that shows its sockets to the exchange of the current thread."""

    _held: list[bytes] | None = None

    def _new_conn(self) -> socket.socket:
        """Connect, raising what urllib3 raises."""
        try:
            sock = self._first_that_answers()
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error
        except UnicodeError as error:  # a label that is empty or too long
            raise NameResolutionError(self.host, self, socket.gaierror("not a host name")) from error
        except TimeoutError as error:
            raise ConnectTimeoutError(self, "no connection in time") from error
        except OSError as error:
            raise NewConnectionError(self, "no connection") from error
        sock.settimeout(self.timeout)
        _attach(sock)
        return sock

    def _first_that_answers(self) -> socket.socket:
        """Try each address of the host with a fair share of the time; urllib3 gives all of it to each."""
        exchange = _mine.exchange
        found = socket.getaddrinfo(self._dns_host, self.port, allowed_gai_family(), socket.SOCK_STREAM)
        for untried, (*_, address) in zip(range(len(found), 0, -1), found, strict=True):
            share = exchange.left() / untried if exchange else self.timeout
            try:
                return create_connection((str(address[0]), self.port), share, None, self.socket_options)
            except OSError:
                if untried == 1:
                    raise
        raise OSError("the host has no address")

    def request(self, *args: Any, **options: Any) -> None:
        """Send a request; the head waits for the body, and both leave together unless the body is big."""
        if self.sock is None:
            self.connect()
        _attach(self.sock, sends=True)
        held: list[bytes] = []
        self._held = held
        try:
            super().request(*args, **options)
        finally:
            self._held = None
        for data in [b"".join(held)] if sum(map(len, held)) <= _ONE_PIECE else held:
            self.send(data)

    def send(self, data: Any) -> None:
        """Send, or hold back what belongs to a request that is being composed."""
        if self._held is None:
            super().send(data)
        else:
            self._held.append(data)


class _TlsConnection(_Connection, HTTPSConnection):
    """The same over TLS."""


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection

    def _put_conn(self, conn: BaseHTTPConnection | None) -> None:
        if conn is not None and _mine.exchange is not None and not _mine.exchange.detach():
            conn.close()
            conn = None
        super()._put_conn(conn)


class _TlsPool(_Pool, HTTPSConnectionPool):
    ConnectionCls = _TlsConnection

    def _validate_conn(self, conn: BaseHTTPConnection) -> None:
        """Connect, without urllib3's warning per request where nothing is verified: each run says so once."""
        if conn.is_closed:
            conn.connect()


_POOLS: Final = {"http": _Pool, "https": _TlsPool}


class DeadlineAdapter(HTTPAdapter):
    """An adapter of `requests` on which `Watchdog.within` has its effect.

    TLS is as `context` says, whose `sslsocket_class` should be `WatchedTlsSocket`; where a request has a `Host`, the
    service is asked for, and believed, under that name. The proxy of a URL, and its `Host`, are those of its first use.
    Replies carry no cookies, and nothing is tried again. Keeps up to `connections` idle.
    """

    def __init__(self, context: ssl.SSLContext, *, connections: int = 1) -> None:
        self._context = context
        self._routes: dict[str, tuple[HTTPConnectionPool, str]] = {}
        super().__init__(pool_connections=1000, pool_maxsize=connections, max_retries=0, pool_block=False)

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        """Make the pools of direct connections."""
        super().init_poolmanager(*args, **options, ssl_context=self._context)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        """Make the pools of connections through `proxy`; they too are watched."""
        if proxy.lower().startswith("socks"):
            raise JobError("the environment names a SOCKS proxy; allowed: an http:// proxy, or the host in NO_PROXY")
        manager = super().proxy_manager_for(proxy, **options, ssl_context=self._context)
        manager.pool_classes_by_scheme = _POOLS
        return manager

    def close(self) -> None:
        """Close the idle connections; from now on every request fails."""
        for pool, _ in self._routes.values():
            pool.close()
        super().close()

    def get_connection_with_tls_context(self, request: PreparedRequest, *_: object, **__: object) -> HTTPConnectionPool:
        """Look up the pool."""
        return self._route(request)[0]

    def request_url(self, request: PreparedRequest, *_: object) -> str:
        """Look up what goes into the request line."""
        return self._route(request)[1]

    def build_connection_pool_key_attributes(
        self,
        request: PreparedRequest,
        verify: bool | str,  # noqa: FBT001 the signature is given
        cert: Any = None,
    ) -> tuple[Any, Any]:
        """Name the service by its `Host`, if it has one, in place of the URL's address."""
        place: Any
        options: Any
        place, options = super().build_connection_pool_key_attributes(request, verify, cert)
        host = next((str(value) for name, value in request.headers.items() if name.lower() == "host"), "")
        if host and place["scheme"] == "https":
            options["server_hostname"] = urlsplit(f"//{host}").hostname
        return place, options

    def cert_verify(self, *_: object) -> None:
        """Do nothing: the context knows."""

    def build_response(self, req: PreparedRequest, resp: BaseHTTPResponse) -> Response:
        """Wrap the reply, without the cookie jar and the guess at an encoding that nobody here wants."""
        response = Response.__new__(Response)
        response.__dict__.update(
            raw=resp,
            status_code=resp.status,
            headers=resp.headers,
            reason=resp.reason,
            url=req.url,
            request=req,
            history=[],
            cookies={},
            encoding=None,
            _content=False,
            _content_consumed=False,
        )
        return response

    def _route(self, request: PreparedRequest) -> tuple[HTTPConnectionPool, str]:
        url = str(request.url)
        if url not in self._routes:
            proxies = get_environ_proxies(url)
            verify = self._context.verify_mode is not ssl.CERT_NONE
            pool: Any = super().get_connection_with_tls_context(request, verify, proxies)
            self._routes[url] = pool, super().request_url(request, proxies)
        return self._routes[url]
