"""A POST that is answered by a stream of events: they are collected to the end of the stream, and become the body."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from http.client import HTTPException, IncompleteRead
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import urllib3.exceptions as foreign
from requests.structures import CaseInsensitiveDict

from pipeline.events import Event, Stream, failed
from pipeline.messages import marked
from pipeline.status import SUCCESS
from pipeline.transport import DEFAULTS, Transport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from urllib3.response import BaseHTTPResponse

    Gather = Callable[[Sequence[Event]], bytes]

MEDIA_TYPE: Final = "text/event-stream"
DRAIN_SECONDS: Final = 0.05
"""How long the end of a reply is waited for behind `[DONE]`: a connection that has seen it is used again."""

_PIECE: Final = 65_536
_CRASHED: Final = 500


class EventStreams(Transport):
    """Posts as `Transport` does, and gives the events of a stream to `gather`, which makes the reply's body of them.

    A stream that breaks off is no reply. One that reports an error is a 500 of the model's own, with the event's data
    as its body. Once a stream has ended with `[DONE]` all must: by that alone a stream cut between two events is told
    from a whole one, where a proxy has closed it properly, or where only the end of the connection marks its end. A
    service that never says `[DONE]`, and whose streams have neither a length nor a last chunk, cannot be guarded so.

    A success that is no stream of events may be the whole answer: it is left as it is, unless it tells of an error,
    which is a 500 of the model's own too. Where `picks`, answers are found in events: it is taken for the only one.
    """

    _defaults: Mapping[str, str] = MappingProxyType({**DEFAULTS, "Accept": MEDIA_TYPE})

    def __init__(self, *, gather: Gather, picks: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self._gather = gather
        self._picks = picks
        self._marked = False

    def _receive(self, response: BaseHTTPResponse) -> tuple[int, Mapping[str, str], bytes]:
        media_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if response.status not in SUCCESS:
            return super()._receive(response)
        if media_type != MEDIA_TYPE:
            return self._whole(*super()._receive(response))
        events: list[Event] = []
        for event in self._events(response):
            if failed(event):
                response.close()
                return _CRASHED, _of_the_model(response.headers), event.data
            events.append(event)
        return response.status, response.headers, self._gather(events)

    def _whole(self, status: int, headers: Mapping[str, str], body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        if marked(body).status:
            return _CRASHED, _of_the_model(headers), body
        return status, headers, self._gather([Event(body)]) if self._picks else body

    def _events(self, response: BaseHTTPResponse) -> Iterator[Event]:
        """Yield the events to the end of the stream. Raises IncompleteRead where the reply ends, but not the stream."""
        stream = Stream()
        for piece in iter(partial(response.read1, _PIECE, decode_content=True), b""):
            yield from stream.feed(piece)
            if stream.done:
                self._marked = True
                _drain(response)
                return
        begun, bounded = stream.open, response.length_remaining is not None or getattr(response, "chunked", False)
        yield from stream.end()
        if not stream.done and (self._marked or (begun and not bounded)):
            raise IncompleteRead(b"")
        self._marked = stream.done


def _of_the_model(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Leave out who passed the stream on: what it says in the middle is the model's."""
    return CaseInsensitiveDict({name: value for name, value in headers.items() if name.lower() != "server"})


def _drain(response: BaseHTTPResponse) -> None:
    """Read the end of the reply if it is there, and close the connection if it is not."""
    sock = getattr(response.connection, "sock", None)
    if sock is None:  # all is read already
        return
    usual = sock.gettimeout()
    sock.settimeout(DRAIN_SECONDS)
    with suppress(OSError, HTTPException, foreign.HTTPError):
        if not response.read1(_PIECE, decode_content=True):
            sock.settimeout(usual)
            return
    response.close()
