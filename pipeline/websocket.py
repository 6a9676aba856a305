"""Requests over websockets: one connection per request in flight, used again for the next one.

All connections of a process live in one thread's event loop, so that a reply finds its request whichever connection it
comes over. What is an answer, and to what:

- A message with the `meta.uuid` of a request that waits is the answer to that request, over any connection.
- A message with another one answers nothing that sent a uuid.
- A message without one answers the request that waits on its connection, unless the service is known to send uuids
  back: then it is a push, where it is no error.
- While nothing waits on a connection, what comes over it answers nothing. Without uuids it then cannot be told whose
  the next one will be, so the connection is given up; and so it is after an answer that does not fit (`settle`).

A connection whose request ran out of time is closed: a late reply must not be taken for the next one.
"""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec
from requests.structures import CaseInsensitiveDict
from requests.utils import get_environ_proxies, select_proxy
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI, ProxyError

from pipeline.closing import LOST, status_of
from pipeline.errors import JobError
from pipeline.transport import DEFAULTS, FENCE_SECONDS, NoReply, Reply, mishap, place_of, tls_context

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

CLOSE_SECONDS: Final = 1.0

_NOT_JSON: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_SCHEMES: Final = {"http": "ws", "https": "wss"}
_OK: Final = 200
_ABSENT: Final = msgspec.Raw()


class _Meta(msgspec.Struct):
    uuid: str | None = None


class _Marked(msgspec.Struct):
    """What is looked at of a message: whose answer it says it is, and whether it tells of an error."""

    meta: _Meta | str | None = None
    erno: msgspec.Raw = _ABSENT
    error: msgspec.Raw = _ABSENT
    error_code: msgspec.Raw = _ABSENT

    @property
    def uuid(self) -> str | None:
        """None where the message has none; one that is there may be blank."""
        uuid = self.meta.uuid if isinstance(self.meta, _Meta) else self.meta
        return None if uuid is None else uuid.strip().lower()

    @property
    def erring(self) -> bool:
        return any(bytes(one) not in {b"", b"null"} for one in (self.erno, self.error, self.error_code))


_MARKED: Final = msgspec.json.Decoder(_Marked)


class _Asked:
    """A request that waits; `named` is whether it carried its uuid."""

    def __init__(self, uuid: str, body: bytes) -> None:
        self.uuid = uuid.lower()
        self.named = bool(uuid) and uuid.encode() in body
        self.sent = False
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()


class _Connection:
    """A websocket, and the request that waits on it."""

    def __init__(self, url: str, socket: ClientConnection) -> None:
        self.url = url
        self.socket = socket
        self.asked: _Asked | None = None
        self.sends_uuids = False  # whether what was asked over it had any
        assert socket.response is not None
        self.headers = CaseInsensitiveDict(socket.response.headers.raw_items())
        self.listening: asyncio.Task[None] | None = None

    @property
    def waits(self) -> _Asked | None:
        """The request that has no answer yet."""
        return self.asked if self.asked and not self.asked.answer.done() else None


class WebSockets:
    """Asks over websockets, for any number of threads at once. One per worker process; close it when all is answered.

    `text` is whether requests are text messages; `greeting` messages come first over each connection and answer
    nothing. `verify` and `cert` are as in `Transport`. Raises `JobError` for unusable certificates.
    """

    def __init__(
        self,
        *,
        text: bool = True,
        greeting: int = 0,
        verify: bool | str = True,
        cert: tuple[str, str] | str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.unasked = 0  # messages that answered nothing
        self._text = text
        self._greeting = greeting
        self._context = tls_context(verify, cert)
        self._clock = clock
        self._open: dict[_Connection, None] = {}
        self._idle: dict[str, list[_Connection]] = {}
        self._doubted: dict[str, _Connection] = {}  # by the request whose answer came without a uuid
        self._echoes = False  # whether the service sends uuids back
        self._ending, self._ended = threading.Lock(), False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="websockets", daemon=True)
        self._thread.start()

    def post(
        self, url: str, *, body: bytes, headers: Mapping[str, str], deadline_seconds: float, uuid: str = ""
    ) -> Reply | NoReply:
        """One attempt, over within `deadline_seconds`, a new connection included; its headers are the handshake's.

        Raises `JobError` for a URL or a header that cannot be sent.
        """
        start = self._clock()
        attempt = self._ask(url, body, headers, deadline_seconds, uuid)
        future = self._submit(attempt)
        try:
            return future.result(deadline_seconds + FENCE_SECONDS)
        except CancelledError:
            message = f"{place_of(url)}: the connections are closed"
            return NoReply("reset", message, received=True, seconds=self._clock() - start)
        except TimeoutError:  # the loop hangs
            return _late(url, deadline_seconds, received=True, seconds=self._clock() - start)

    def signed(self, body: bytes) -> tuple[str, bytes]:  # noqa: ARG002 it is the handshake that is signed
        """Return the method and the body that a signature is over."""
        return "GET", b""

    def settle(self, uuid: str, *, fits: bool) -> None:
        """Say whether the last answer to a request was one; what it came over is used again only then."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._settled, uuid, fits)

    def close(self) -> None:
        """Close the connections and stop the thread."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _submit(self, work: Coroutine[Any, Any, Reply | NoReply]) -> Future[Reply | NoReply]:
        """Give the loop something to do; where it has ended, nobody would ever do it, and it is cancelled."""
        with self._ending:
            if not self._ended:
                return asyncio.run_coroutine_threadsafe(work, self._loop)
        work.close()
        never: Future[Reply | NoReply] = Future()
        never.cancel()
        return never

    def _run(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            with self._ending:  # what was begun before is let go by `_end`
                self._ended = True
            self._loop.run_until_complete(self._end())
            self._loop.close()

    async def _end(self) -> None:
        """Say goodbye, and leave nobody waiting."""
        await asyncio.gather(*(one.socket.close() for one in self._open), return_exceptions=True)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(
        self, url: str, body: bytes, headers: Mapping[str, str], deadline_seconds: float, uuid: str
    ) -> Reply | NoReply:
        start, asked = self._clock(), _Asked(uuid, body)
        try:
            async with asyncio.timeout(deadline_seconds):
                said, answer = await self._answer(url, body, headers, asked)
            return Reply(_OK, said, answer, self._clock() - start)
        except TimeoutError:
            return _late(url, deadline_seconds, received=asked.sent, seconds=self._clock() - start)
        except ConnectionClosed as end:
            return _closed(url, end, received=asked.sent, seconds=self._clock() - start)
        except InvalidStatus as refusal:
            response = refusal.response
            said = CaseInsensitiveDict(response.headers.raw_items())
            return Reply(response.status_code, said, bytes(response.body), self._clock() - start)
        except (OSError, InvalidHandshake) as error:
            return _unconnected(url, error, received=asked.sent, seconds=self._clock() - start)

    async def _answer(
        self, url: str, body: bytes, headers: Mapping[str, str], asked: _Asked
    ) -> tuple[Mapping[str, str], bytes]:
        idle = self._idle.setdefault(url, [])
        connection = idle.pop() if idle else await self._connected(url, headers)
        connection.asked, connection.sends_uuids = asked, asked.named
        try:
            asked.sent = True
            await connection.socket.send(body, text=self._text)
            answer = await asked.answer
        except BaseException:
            connection.asked = None
            self._drop(connection)
            raise
        connection.asked = None
        if not asked.named:
            self._doubted[asked.uuid] = connection
        elif connection in self._open:
            idle.append(connection)
        return connection.headers, answer

    def _settled(self, uuid: str, fits: bool) -> None:  # noqa: FBT001 the loop passes no names
        connection = self._doubted.pop(uuid.lower(), None)
        if connection and not fits:
            self._drop(connection)
        elif connection and connection in self._open:
            self._idle[connection.url].append(connection)

    async def _connected(self, url: str, headers: Mapping[str, str]) -> _Connection:
        connection = _Connection(url, await _Connect.to(url, headers, self._context))
        try:
            for _ in range(self._greeting):
                await connection.socket.recv(decode=False)
        except BaseException:
            connection.socket.transport.abort()
            raise
        self._open[connection] = None
        connection.listening = asyncio.create_task(self._listen(connection))
        return connection

    async def _listen(self, connection: _Connection) -> None:
        """Hear all that comes over a connection, to its end."""
        try:
            while True:
                self._heard(connection, await connection.socket.recv(decode=False))
        except ConnectionClosed as end:
            if connection.waits:
                connection.waits.answer.set_exception(end)
        finally:
            self._forget(connection)

    def _heard(self, connection: _Connection, message: bytes) -> None:
        asked = self._meant(connection, message)
        if asked:
            asked.answer.set_result(message)
            return
        self.unasked += 1
        if not (connection.waits or connection.sends_uuids):
            self._drop(connection)

    def _meant(self, connection: _Connection, message: bytes) -> _Asked | None:
        """Find the request that a message answers."""
        marked = _marked(message)
        here = connection.waits
        if marked.uuid:
            for one in (connection, *self._open):
                if one.waits and one.waits.uuid == marked.uuid:
                    self._echoes = True
                    return one.waits
            return here if here and not here.named else None
        pushed = here and here.named and self._echoes and marked.uuid is None and not marked.erring
        return None if pushed else here

    def _drop(self, connection: _Connection) -> None:
        self._forget(connection)
        connection.socket.transport.abort()

    def _forget(self, connection: _Connection) -> None:
        self._open.pop(connection, None)
        with suppress(ValueError):
            self._idle[connection.url].remove(connection)


class _Connect(connect):
    """A handshake whose redirects are replies, as they are over HTTP."""

    @classmethod
    def to(cls, url: str, headers: Mapping[str, str], context: Any) -> _Connect:
        """Prepare one, over TLS and by proxy as for HTTP. Raises JobError for what cannot be sent."""
        parts = urlsplit(url)
        scheme = _SCHEMES.get(parts.scheme, parts.scheme)
        options: dict[str, Any] = {"ssl": context} if scheme == "wss" else {}
        proxy = _proxy(parts._replace(scheme=scheme.replace("ws", "http")).geturl())
        named = next((value for name, value in headers.items() if name.lower() == "host"), None)
        if named and not proxy:  # what is called by its address, and knows itself by this name
            options |= {"host": parts.hostname, "port": parts.port or (443 if scheme == "wss" else 80)}
        try:
            return cls(
                parts._replace(scheme=scheme, netloc=named or parts.netloc).geturl(),
                additional_headers=_sendable(headers),
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


def _sendable(headers: Mapping[str, str]) -> dict[str, str]:
    for value in headers.values():
        if not (value.isascii() and value.isprintable()):
            raise JobError("a header has characters that HTTP does not allow; look for line ends in secrets")
    return {name: value for name, value in headers.items() if name.lower() != "host"}


def _proxy(url: str) -> str | None:
    proxy = select_proxy(url, get_environ_proxies(url))
    if proxy and proxy.lower().startswith("socks"):
        raise JobError("the environment names a SOCKS proxy; allowed: an http:// proxy, or the host in NO_PROXY")
    return proxy if proxy is None or "://" in proxy else f"http://{proxy}"


def _marked(message: bytes) -> _Marked:
    try:
        return _MARKED.decode(message)
    except _NOT_JSON:
        return _Marked()


def _late(url: str, deadline_seconds: float, *, received: bool, seconds: float) -> NoReply:
    message = f"{place_of(url)}: no complete answer within {deadline_seconds:g} s"
    return NoReply("timeout", message, received, seconds)


def _closed(url: str, end: ConnectionClosed, *, received: bool, seconds: float) -> Reply | NoReply:
    """Judge the end of a connection by its close code: it is the reply of that status which means the same."""
    code = end.rcvd.code if end.rcvd else None
    reason = " ".join(end.rcvd.reason.split()) if end.rcvd else ""
    status = status_of(code) if code else LOST
    if status is not LOST:
        words = f"the service closed the connection{f': {reason}' if reason else ''}"
        body = msgspec.json.encode({"code": code, "message": words})
        return Reply(status, CaseInsensitiveDict[str](), body, seconds)
    if end.rcvd is None and end.sent is not None:
        return NoReply("protocol", f"{place_of(url)}: what came is no websocket message", received, seconds)
    words = f"the connection was closed with {code}" if code else "the connection was lost"
    return NoReply("reset", f"{place_of(url)}: {words}", received, seconds)


def _unconnected(url: str, error: Exception, *, received: bool, seconds: float) -> NoReply:
    if isinstance(error, ProxyError):
        return NoReply("refused", f"{place_of(url)}: the proxy gives no connection", received, seconds)
    if isinstance(error, InvalidHandshake):
        lost = isinstance(error.__cause__, EOFError | OSError)
        kind, words = ("reset", "the connection was lost") if lost else ("protocol", "the reply is no handshake")
        return NoReply(kind, f"{place_of(url)}: {words}", received, seconds)  # type: ignore[arg-type]
    kind, words = mishap(error)
    return NoReply(kind, f"{place_of(url)}: {words}", received, seconds)
