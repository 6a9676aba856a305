"""The sandbox service as a process (`bulkscore serve`), or as a thread of this one (`make run`, tests)."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING, Final

import uvicorn

from pipeline.errors import JobError
from pipeline.sandbox.app import build
from pipeline.sandbox.credentials import TOLD
from pipeline.sandbox.options import Options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Options", "running", "serve"]

KEEP_ALIVE: Final = 75  # seconds an idle connection is kept, as gateways do
NEVER_TOO_LARGE: Final = 2**31  # bytes of a message: whether it is, the service says
MOMENT: Final = 0.01  # seconds: several turns of the event loop


class _Server(uvicorn.Server):
    """Uvicorn, telling when it accepts, and stopping at once and normally."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept, and say so."""
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002 -- uvicorn's signature
        """Stop at once: nobody waits for a sandbox to finish a 40 s answer."""
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        # Tasks go when their connections are gone, so that they find no one to send an error to.
        await asyncio.sleep(MOMENT)
        tasks = list(self.server_state.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let SIGINT and SIGTERM stop the server, and do no more: it ended as it was told to."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def serve(options: Options) -> None:
    """Serve until SIGINT or SIGTERM; one line with the URL goes to stdout when the server accepts.

    Raises:
        JobError: the address cannot be listened on, or a file named in the options cannot be used.

    """

    def announce() -> None:
        print(f"bulkscore sandbox: {_url(options, listener)}", flush=True)
        print(TOLD, file=sys.stderr, flush=True)

    config = _config(options)
    with _listen(options) as listener:
        _Server(config, announce).run(sockets=[listener])


@contextlib.contextmanager
def running(options: Options) -> Iterator[str]:
    """Serve from a thread of this process; yields the base URL, and stops the server at the end.

    Raises:
        JobError: the address cannot be listened on, or a file named in the options cannot be used.

    """
    accepts = threading.Event()
    server = _Server(_config(options), accepts.set)
    with _listen(options) as listener:
        url = _url(options, listener)

        def work() -> None:
            try:
                server.run([listener])
            finally:
                accepts.set()  # a server that failed is not waited for; the first call tells

        thread = threading.Thread(target=work, name="bulkscore-sandbox", daemon=True)
        thread.start()
        accepts.wait()
        try:
            yield url
        finally:
            server.should_exit = True
            thread.join()


def _config(options: Options) -> uvicorn.Config:
    if options.tls_key and not options.tls_cert:
        raise JobError(f"--tls-key {options.tls_key} is of no use without a certificate; add --tls-cert")
    config = uvicorn.Config(
        build(options),
        http="httptools",
        ws="websockets-sansio",
        ws_max_size=NEVER_TOO_LARGE,
        ws_per_message_deflate=False,
        loop="asyncio",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE,
        ssl_certfile=options.tls_cert,
        ssl_keyfile=options.tls_key,
    )
    try:
        config.load()
    except OSError as error:
        raise JobError(f"--tls-cert {options.tls_cert}, --tls-key {options.tls_key}: {error}") from error
    return config


def _listen(options: Options) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        listener = socket.create_server((options.host, options.port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise JobError(f"{options.host}:{options.port} cannot be listened on: {error}; try --port 0") from error
    # Connections inherit it. Asyncio sets it only for sockets made with an explicit protocol number, and without
    # it every answer waits 40 ms for the acknowledgement of its head.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _url(options: Options, listener: socket.socket) -> str:
    scheme = "https" if options.tls_cert else "http"
    host = f"[{options.host}]" if ":" in options.host else options.host
    return f"{scheme}://{host}:{listener.getsockname()[1]}"
