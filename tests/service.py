"""A recording service in the ModelArts form: every answer depends on its row, and every request is noted with its time.

For what the sandbox does not tell: when each request came and went, and answers that wait until a test lets them go.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import PIPE, Popen
from sys import executable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from ssl import SSLContext

    Answer = Callable[["Call"], "tuple[int, Mapping[str, str], bytes]"]

BENCH = Path(__file__).with_name("bench") / "server.py"
STARVED_SECONDS = 5.0


@dataclass
class Call:
    """One request as it arrived, in the clock's seconds; `left` is None until it is answered."""

    headers: Mapping[str, str]
    body: bytes
    arrived: float
    left: float | None = None
    method: str = "POST"
    path: str = ""

    @property
    def rows(self) -> list[dict[str, object]]:
        return json.loads(self.body)["data"]["req_data"]

    @property
    def places(self) -> list[int]:
        """Which rows these are, where `sepal_length` is the row's number."""
        return [int(row["sepal_length"]) for row in self.rows]


def score(call: Call) -> tuple[int, Mapping[str, str], bytes]:
    """Answer each row with its own `sepal_length`."""
    meta = json.loads(call.body).get("meta", {"uuid": ""})
    answers = [{"predictresult": "setosa", "score": row["sepal_length"]} for row in call.rows]
    return 200, {}, json.dumps({"meta": meta, "data": {"resp_data": answers}}).encode()


def refusal(status: int, code: str, **headers: str) -> tuple[int, Mapping[str, str], bytes]:
    """Refuse as a gateway does; an underscore in a header's name is a hyphen."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, named, json.dumps({"error_code": code, "error_msg": "no"}).encode()


@dataclass
class Service:
    """What the service saw, in order of arrival."""

    answer: Answer
    calls: list[Call] = field(default_factory=list)
    in_flight: int = 0
    peak: int = 0
    url: str = ""
    changed: threading.Condition = field(default_factory=threading.Condition)

    def take(
        self, headers: Mapping[str, str], body: bytes, method: str = "POST", path: str = ""
    ) -> tuple[Call, tuple[int, Mapping[str, str], bytes]]:
        """Note a request, and answer it."""
        call = Call(dict(headers), body, time.monotonic(), method=method, path=path)
        with self.changed:
            self.calls.append(call)
            self.in_flight += 1
            self.peak = max(self.peak, self.in_flight)
            self.changed.notify_all()
        try:
            return call, self.answer(call)
        finally:
            with self.changed:
                self.in_flight -= 1
                call.left = time.monotonic()
                self.changed.notify_all()

    @property
    def answered(self) -> int:
        return sum(call.left is not None for call in self.calls)


class Crowd:
    """Answers only while `places` requests are here at once, oldest first, until `total` have come.

    Each takes `seconds` at the least. A client that lets its window drain waits in vain; it is then let go, and counted
    in `starved`.
    """

    def __init__(self, places: int, total: int, *, seconds: float = 0.0) -> None:
        self._places, self._total, self._seconds = places, total, seconds
        self._here: list[Call] = []
        self._came = 0
        self._changed = threading.Condition()
        self.starved = 0

    def __call__(self, call: Call) -> tuple[int, Mapping[str, str], bytes]:
        time.sleep(self._seconds)
        with self._changed:
            self._here.append(call)
            self._came += 1
            self._changed.notify_all()
            self.starved += not self._changed.wait_for(lambda: self._may_go(call), STARVED_SECONDS)
            self._here.remove(call)
            self._changed.notify_all()
        return score(call)

    def _may_go(self, call: Call) -> bool:
        if self.starved or self._came >= self._total:
            return True
        return len(self._here) >= self._places and self._here[0] is call


@contextmanager
def recording(answer: Answer = score, tls: SSLContext | None = None) -> Iterator[Service]:
    """Serve on a free port of the loopback, over TLS where a context is given; `url` is what a job calls."""
    service = Service(answer)
    server = _Server(("127.0.0.1", 0), _handler(service))
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    service.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}/v1/infers/iris"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        thread.join()
        server.socket.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True  # an idle connection is not waited for
    request_queue_size = 512

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news."""


def _handler(service: Service) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one piece

        def setup(self) -> None:
            super().setup()
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            _, (status, headers, content) = service.take(self.headers, body, self.command, self.path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_PUT = do_POST  # noqa: N815 - as the library has it

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextmanager
def fast(*arguments: str) -> Iterator[str]:
    """Run the benchmark's service as a process; yields the URL to call. `GET /stats` beside it tells what it saw."""
    with Popen([executable, BENCH, *arguments], stdout=PIPE, text=True) as running:
        try:
            yield running.stdout.readline().strip()
        finally:
            running.terminate()
