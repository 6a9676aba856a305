"""The floor of the wire: replays one ready-made body over raw sockets, 16 in flight, and drops the answers.

What it costs is what moving the bytes costs any client. Its rate is the most that the benchmark's server was seen to
serve: as long as that is several times another client's rate, the server is not what that client waits for.
"""

from __future__ import annotations

import argparse
import json
import socket
from urllib.parse import urlsplit

IN_FLIGHT = 16
BATCH = 1000


def request(host: str, path: str) -> bytes:
    """Return one whole HTTP request of `BATCH` rows as long as the generated ones."""
    features = {"sepal_length": 5.84, "sepal_width": 3.1, "petal_length": 3.8, "petal_width": 1.2}
    uuid = "10eb0091-887f-4839-9929-cbc884f1e20e"
    body = json.dumps({"meta": {"uuid": uuid}, "data": {"req_data": [features] * BATCH}}, separators=(",", ":"))
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}\r\n{body}".encode()


def drop_reply(connection: socket.socket, buffer: memoryview) -> None:
    """Read one whole reply into `buffer` and check no more than its status."""
    got = connection.recv_into(buffer)
    head, separator, _ = bytes(buffer[:1024]).partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 ") or not separator:
        raise SystemExit(f"floor: not a reply with 200: {head[:80]!r}")
    left = len(head) + 4 + int(head.rpartition(b": ")[2]) - got
    while left:
        left -= connection.recv_into(buffer)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("url")
    options.add_argument("rows", type=int)
    given = options.parse_args()
    url = urlsplit(given.url)
    todo = given.rows // BATCH
    payload = request(url.netloc, url.path)
    buffer = memoryview(bytearray(1 << 20))
    connections = [socket.create_connection((url.hostname, url.port)) for _ in range(min(IN_FLIGHT, todo))]
    for connection in connections:
        connection.sendall(payload)
    for turn in range(todo):
        connection = connections[turn % len(connections)]
        drop_reply(connection, buffer)
        if turn + len(connections) < todo:
            connection.sendall(payload)


if __name__ == "__main__":
    main()
