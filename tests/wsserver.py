"""A websocket server that does what a script says, message by message: for services that no proper server would be."""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import serve

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator

    from websockets.sync.server import ServerConnection

    Script = Callable[["WsServer", ServerConnection], None]


@dataclass
class WsServer:
    """A listening script: `stopping` is set at the end, `connections` are those that came, `heard` all messages."""

    url: str
    connections: list[ServerConnection] = field(default_factory=list)
    heard: list[str | bytes] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    def hear(self, connection: ServerConnection) -> str | bytes:
        """Wait for a message."""
        self.heard.append(connection.recv())
        return self.heard[-1]


@contextmanager
def conversing(script: Script, tls: ssl.SSLContext | None = None, **options: object) -> Iterator[WsServer]:
    """Run `script(server, connection)` for each connection, in a thread of its own, on a free port of the loopback."""

    def handle(connection: ServerConnection) -> None:
        served.connections.append(connection)
        with suppress(ConnectionClosed):
            script(served, connection)

    with serve(handle, "127.0.0.1", 0, ssl=tls, compression=None, **{"max_size": None} | options) as server:
        scheme = "wss" if tls else "ws"
        served = WsServer(f"{scheme}://127.0.0.1:{server.socket.getsockname()[1]}/v1/ws/iris")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield served
        finally:
            served.stopping.set()
            server.shutdown()
            for connection in served.connections:
                connection.close_socket()
            thread.join()


def echoing(server: WsServer, connection: ServerConnection) -> None:
    """Answer each message with itself."""
    while True:
        connection.send(server.hear(connection))
