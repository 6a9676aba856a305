"""A server that does what a script says, byte by byte: for replies that no proper server would give."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import struct
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Script = Callable[["RawServer", socket.socket], None]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass
class RawServer:
    """A listening script: `stopping` is set at the end, `connections` counts, `requests` are those that were read."""

    port: int
    scheme: str
    connections: int = 0
    requests: list[bytes] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/v1/infers/iris"

    def read(self, connection: socket.socket) -> bytes:
        """Read one whole request; empty at the end of the connection."""
        data = b""
        while b"\r\n\r\n" not in data:
            piece = connection.recv(65536)
            if not piece:
                return b""
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        while len(body) < length:
            body += connection.recv(65536)
        self.requests.append(head + b"\r\n\r\n" + body)
        return self.requests[-1]

    def trickle(self, connection: socket.socket, head: bytes, drop: bytes) -> None:
        """Send `head`, then `drop` every 10 ms for ever."""
        connection.sendall(head)
        while not self.stopping.wait(0.01):
            connection.sendall(drop)


def answering(reply: bytes) -> Script:
    """Give this reply to each request, over connections that are kept."""

    def script(server: RawServer, connection: socket.socket) -> None:
        while server.read(connection):
            connection.sendall(reply)

    return script


def cut(connection: socket.socket) -> None:
    """End the connection with a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@contextmanager
def serving(script: Script, tls: ssl.SSLContext | None = None) -> Iterator[RawServer]:
    """Run `script(server, connection)` for each connection, in a thread of its own, on a free port of the loopback."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        server = RawServer(listener.getsockname()[1], "https" if tls else "http")
        kept: list[socket.socket] = []
        threads = [threading.Thread(target=_accept, args=(server, listener, script, tls, kept))]
        threads[0].start()
        try:
            yield server
        finally:
            server.stopping.set()
            listener.shutdown(socket.SHUT_RDWR)
            threads[0].join()
            for connection in kept:
                with suppress(OSError):
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)
            for thread in threading.enumerate():
                if thread.name == f"raw-{server.port}":
                    thread.join()


def _accept(server: RawServer, listener: socket.socket, script: Script, tls: object, kept: list[socket.socket]) -> None:
    with suppress(OSError):
        while True:
            connection = listener.accept()[0]
            server.connections += 1
            kept.append(connection)
            arguments = (server, connection, script, tls)
            threading.Thread(target=_converse, args=arguments, name=f"raw-{server.port}").start()


def _converse(server: RawServer, connection: socket.socket, script: Script, tls: ssl.SSLContext | None) -> None:
    with suppress(OSError), connection:
        if tls is None:
            script(server, connection)
            return
        with tls.wrap_socket(connection.dup(), server_side=True) as secured:
            script(server, secured)


@dataclass(frozen=True)
class Authority:
    """A certificate authority of the test's own, and a server certificate for 127.0.0.1 that it signed."""

    ca: str
    server: ssl.SSLContext


def authority(folder: Path, address: str = "127.0.0.1") -> Authority:
    """Make one; its files are put in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = _certificate("test authority", ca_key, "test authority", ca_key, None)
    leaf = _certificate(address, key, "test authority", ca_key, address)
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    (folder / "ca.pem").write_bytes(ca.public_bytes(pem))
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    (folder / "server.pem").write_bytes(private + leaf.public_bytes(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return Authority(str(folder / "ca.pem"), context)


def _certificate(name: str, key: object, issuer: str, signer: object, address: str | None) -> x509.Certificate:
    today = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - dt.timedelta(days=1))
        .not_valid_after(today + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=address is None, path_length=None), critical=True)
    )
    if address is not None:
        names = x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(signer, hashes.SHA256())
