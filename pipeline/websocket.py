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

from requests.structures import CaseInsensitiveDict
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from pipeline.handshake import Handshake, closed, late, unconnected
from pipeline.messages import marked
from pipeline.transport import FENCE_SECONDS, NoReply, Reply, place_of, tls_context

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from websockets.asyncio.client import ClientConnection

_OK: Final = 200


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
            return late(url, deadline_seconds, received=True, seconds=self._clock() - start)

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
            return late(url, deadline_seconds, received=asked.sent, seconds=self._clock() - start)
        except ConnectionClosed as end:
            return closed(url, end, received=asked.sent, seconds=self._clock() - start)
        except InvalidStatus as refusal:
            response = refusal.response
            said = CaseInsensitiveDict(response.headers.raw_items())
            return Reply(response.status_code, said, bytes(response.body), self._clock() - start)
        except (OSError, UnicodeError, WebSocketException) as error:
            return unconnected(url, error, received=asked.sent, seconds=self._clock() - start)

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
            if asked.answer.done() and not asked.answer.cancelled():
                asked.answer.exception()  # seen: what ended the sending ended the waiting too
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
        connection = _Connection(url, await Handshake.to(url, headers, self._context))
        try:
            for _ in range(self._greeting):
                await connection.socket.recv(decode=False)
        except BaseException:
            self._drop(connection)
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
        mark = marked(message)
        here = connection.waits
        if mark.uuid:
            for one in (connection, *self._open):
                if one.waits and one.waits.uuid == mark.uuid:
                    self._echoes = True
                    return one.waits
            return here if here and not here.named else None
        pushed = here and here.named and self._echoes and mark.uuid is None and not mark.erring
        return None if pushed else here

    def _drop(self, connection: _Connection) -> None:
        self._forget(connection)
        if not connection.socket.transport.is_closing():  # else it is as good as gone, and must not be touched
            connection.socket.transport.abort()

    def _forget(self, connection: _Connection) -> None:
        self._open.pop(connection, None)
        if connection in self._idle.get(connection.url, ()):
            self._idle[connection.url].remove(connection)
