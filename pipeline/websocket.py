"""Requests over websockets: one connection per request in flight, used again for the next one.

All connections of a process live in one thread's event loop, so that a reply finds its request whichever connection it
comes over. What is an answer, and to what:

- A message with the `meta.uuid` of a request that waits is the answer to that request, over any connection.
- A message with another one answers nothing that sent a uuid.
- A message without one answers the request that waits on its connection, unless the service is known to send uuids
  back: then it is a push, where it is JSON and tells of no error.
- While nothing waits on a connection, what comes over it answers nothing. Unless the service is known to send uuids
  back it then cannot be told whose the next one will be: where uuids were sent the connection is given up, and so it is
  after an answer that does not fit (`settle`); where none were, the job ends (`Refused`), for nothing would show that
  answers have shifted.

So that this is seen, an answer without its uuid counts only after `settle`, which looks for what comes right behind it.
And until a process has its first answer each new connection is listened to for a moment before anything is asked over
it: what a service says first answers nothing. Where no uuids are sent that is all that tells a greeting from an answer;
one that comes later, from a service that takes longer still, must be announced (`greeting`).

A message without its uuid that tells of an error is a reply with the status of that error, not an answer.

A connection whose request ran out of time is closed: a late reply must not be taken for the next one.
"""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from pipeline.connection import OK, Asked, Connection, ignore_outages
from pipeline.errors import Refused
from pipeline.handshake import Handshake, closed, late, refused, unconnected
from pipeline.messages import is_stale, marked
from pipeline.transport import FENCE_SECONDS, NoReply, Reply, place_of, tls_context

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from pipeline.messages import Marked

MOMENT_SECONDS: Final = 0.5
"""How long, before a process has its first answer, it listens for what a service says first or behind an answer."""

QUIET_SECONDS: Final = 0.002
"""How long it listens behind later ones."""

_T = TypeVar("_T")


class WebSockets:
    """Asks over websockets, for any number of threads at once. One per worker process; close it when all is answered.

    `text` is whether requests are text messages; `greeting` messages come first over each connection and answer
    nothing. `verify` and `cert` are as in `Transport`; `moment` is in seconds. Raises `JobError` for unusable
    certificates.
    """

    def __init__(
        self,
        *,
        text: bool = True,
        greeting: int = 0,
        verify: bool | str = True,
        cert: tuple[str, str] | str | None = None,
        moment: float = MOMENT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.unasked = 0  # messages that answered nothing
        self._text = text
        self._greeting = greeting
        self._moment = moment
        self._context = tls_context(verify, cert)
        self._clock = clock
        self._open: dict[Connection, None] = {}
        self._idle: dict[str, list[Connection]] = {}
        self._doubted: dict[str, Connection] = {}  # by the request whose answer came without a uuid
        self._echoing: set[str] = set()  # the URLs at which the service sends uuids back
        self._works = False  # whether anything was answered as agreed
        self._refusal: Refused | None = None
        self._ending, self._ended = threading.Lock(), False
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(ignore_outages)
        self._thread = threading.Thread(target=self._run, name="websockets", daemon=True)
        self._thread.start()

    def post(
        self, url: str, *, body: bytes, headers: Mapping[str, str], deadline_seconds: float, uuid: str = ""
    ) -> Reply | NoReply:
        """One attempt, over within `deadline_seconds`, a new connection included; its headers are the handshake's.

        Raises `JobError` for a URL or a header that cannot be sent, `Refused` where answers cannot be told apart.
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
        """Say whether the last answer to a request was one; what it came over is used again only then.

        Raises `Refused` where what came meanwhile shows that it may be another's.
        """
        if uuid.lower() not in self._doubted:
            self._works = self._works or fits
            return
        with suppress(CancelledError):
            self._submit(self._settled(uuid.lower(), fits=fits)).result()

    def close(self) -> None:
        """Close the connections and stop the thread."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _submit(self, work: Coroutine[Any, Any, _T]) -> Future[_T]:
        """Give the loop something to do; where it has ended, nobody would ever do it, and it is cancelled."""
        with self._ending:
            if not self._ended:
                return asyncio.run_coroutine_threadsafe(work, self._loop)
        work.close()
        never: Future[_T] = Future()
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
        start, asked = self._clock(), Asked(uuid, body)
        try:
            async with asyncio.timeout(deadline_seconds):
                said, answer = await self._answer(url, body, headers, asked)
            return Reply(asked.status, said, answer, self._clock() - start)
        except TimeoutError:
            return late(url, deadline_seconds, received=asked.sent, seconds=self._clock() - start)
        except ConnectionClosed as end:
            if asked.answered and end.rcvd and is_stale(end.rcvd.code):
                self._renew(url)
            known = {"answered": asked.answered, "works": self._works}
            return closed(url, end, received=asked.sent, seconds=self._clock() - start, **known)
        except InvalidStatus as refusal:
            return refused(refusal.response, self._clock() - start)
        except (OSError, UnicodeError, WebSocketException) as error:
            return unconnected(url, error, received=asked.sent, seconds=self._clock() - start)

    async def _answer(
        self, url: str, body: bytes, headers: Mapping[str, str], asked: Asked
    ) -> tuple[Mapping[str, str], bytes]:
        if self._refusal:
            raise self._refusal
        idle = self._idle.setdefault(url, [])
        connection = idle.pop() if idle else await self._connected(url, headers, named=asked.named)
        connection.asked, connection.named, asked.answered = asked, asked.named, connection.answered
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
        if asked.proved:
            self._rest(connection)
        else:
            self._doubted[asked.uuid] = connection
        return connection.headers, answer

    async def _settled(self, uuid: str, *, fits: bool) -> None:
        connection = self._doubted.pop(uuid)
        if fits and connection.url not in self._echoing:
            await asyncio.sleep(QUIET_SECONDS if self._works else self._moment)
        if self._refusal:
            raise self._refusal
        if fits:
            self._works = True
            self._rest(connection)
        else:
            self._drop(connection)

    def _rest(self, connection: Connection) -> None:
        """Keep a connection for the next request, if it is still good."""
        if connection.stale:
            self._drop(connection)
        elif connection in self._open:
            self._idle[connection.url].append(connection)

    def _renew(self, url: str) -> None:
        """Use none of the connections again that there are: their credentials may have died."""
        for one in [one for one in self._open if one.url == url]:
            one.stale = True
            if one in self._idle[url]:
                self._drop(one)

    async def _connected(self, url: str, headers: Mapping[str, str], *, named: bool) -> Connection:
        connection = Connection(url, await Handshake.to(url, headers, self._context))
        try:
            for _ in range(self._greeting):
                await connection.socket.recv(decode=False)
            if not self._works and url not in self._echoing:
                await self._await_silence(connection, named=named)
        except BaseException:
            self._drop(connection)
            raise
        self._open[connection] = None
        connection.listening = asyncio.create_task(self._listen(connection))
        return connection

    async def _await_silence(self, connection: Connection, *, named: bool) -> None:
        """Hear what a service says first. Raises Refused where that could be taken for an answer."""
        heard = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(self._moment):
                while True:
                    await connection.socket.recv(decode=False)
                    heard += 1
        self.unasked += heard
        if heard and not named:
            words = f"the service says something first over each connection ({place_of(connection.url)})"
            raise Refused(f"{words}; set service.options.greeting: {self._greeting + heard}")

    async def _listen(self, connection: Connection) -> None:
        """Hear all that comes over a connection, to its end."""
        try:
            while True:
                self._heard(connection, await connection.socket.recv(decode=False))
        except ConnectionClosed as end:
            if connection.waits:
                connection.waits.answer.set_exception(end)
        finally:
            self._forget(connection)

    def _heard(self, connection: Connection, message: bytes) -> None:
        mark = marked(message)
        asked = self._meant(connection, mark)
        if asked:
            connection.answered = True
            asked.status = OK if asked.proved else mark.status or OK
            asked.answer.set_result(message)
            return
        self.unasked += 1
        if connection.waits or connection.url in self._echoing or connection not in self._open:
            return
        if not connection.named:
            self._refuse(connection.url)
        self._drop(connection)

    def _meant(self, connection: Connection, mark: Marked) -> Asked | None:
        """Find the request that a message answers."""
        here = connection.waits
        if mark.uuid:
            for one in (connection, *self._open):
                if one.waits and one.waits.named and one.waits.uuid == mark.uuid:
                    self._echoing.add(connection.url)
                    one.waits.proved = True
                    return one.waits
            return here if here and not here.named else None
        echoing = here and here.named and connection.url in self._echoing
        return None if echoing and mark.uuid is None and not mark.erring else here

    def _refuse(self, url: str) -> None:
        """End the job: any answer that came without a uuid may be another's."""
        self._refusal = Refused(
            f"the service speaks without being asked, and sends no meta.uuid: answers cannot be told apart "
            f"({place_of(url)}); if it says something first, set service.options.greeting, and run with --restart"
        )
        for one in self._open:
            if one.waits and not one.waits.named:
                one.waits.answer.set_exception(self._refusal)

    def _drop(self, connection: Connection) -> None:
        self._forget(connection)
        if not connection.socket.transport.is_closing():  # else it is as good as gone, and must not be touched
            connection.socket.transport.abort()

    def _forget(self, connection: Connection) -> None:
        self._open.pop(connection, None)
        if connection in self._idle.get(connection.url, ()):
            self._idle[connection.url].remove(connection)
