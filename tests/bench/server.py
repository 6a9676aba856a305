"""The service under the benchmark: iris in the ModelArts form, over keep-alive HTTP/1.1 on loopback, on one core.

Every answer depends on its own row (`score` is the row's sepal_length), and a row that lacks a feature is refused, so
that no client looks fast by sending less. A file, in a form or as base64 in JSON, is answered with its CRC-32; so is
each tensor `image` of instances, as MindSpore Serving has them. `GET /stats` tells requests, rows and the CPU seconds
spent here: set against wall time, they show whether a client waited for this process.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import signal
import sys
import time
import zlib
from base64 import b64decode
from collections import deque

import msgspec

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
FEATURES = [(f"{part}_{side}", float) for part in ("sepal", "petal") for side in ("length", "width")]
ROW = msgspec.defstruct("Row", FEATURES, gc=False)
ANSWER = msgspec.defstruct("Answer", [("predictresult", str), ("score", float)], gc=False)
DATA = msgspec.defstruct("Data", [("req_data", list[ROW])])
IMAGE = msgspec.defstruct("Image", [("image", msgspec.defstruct("Tensor", [("b64", str)]))])
INSTANCES = msgspec.defstruct("Instances", [("instances", list[IMAGE])])
ASKED = msgspec.defstruct("Asked", [("data", DATA), ("meta", dict[str, str], {})])


class Service:
    """Answers bodies; `latency` seconds each, at most `slots` at once (0: no bound), the rest wait in line."""

    def __init__(self, latency: float, slots: int) -> None:
        self.latency, self.slots = latency, slots or sys.maxsize
        self.requests = self.rows = self.busy = self.peak = 0
        self.line: deque[Connection] = deque()
        self.decode = msgspec.json.Decoder(ASKED).decode
        self.instances = msgspec.json.Decoder(INSTANCES).decode
        self.encode = msgspec.json.Encoder().encode

    def reply(self, status: str, content: dict) -> bytes:
        body = self.encode(content)
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode() + body

    def stats(self) -> bytes:
        counters = {"requests": self.requests, "rows": self.rows, "peak_in_service": self.peak}
        return self.reply("200 OK", counters | {"cpu": time.process_time()})

    def answer(self, body: bytes) -> bytes:
        self.requests += 1
        if body.startswith((b"--", b'{"image"')):
            self.rows += 1
            return self.reply("200 OK", {"crc": zlib.crc32(file_in(body))})
        if body.startswith(b'{"instances"'):
            answers = [{"crc": zlib.crc32(b64decode(one.image.b64))} for one in self.instances(body).instances]
            self.rows += len(answers)
            return self.reply("200 OK", {"instances": answers})
        try:
            asked = self.decode(body)
        except msgspec.MsgspecError as error:
            return self.reply("400 Bad Request", {"error_code": "BENCH.0400", "error_msg": str(error)})
        rows = asked.data.req_data
        self.rows += len(rows)
        answers = [ANSWER("setosa" if row.petal_length < 2.5 else "virginica", row.sepal_length) for row in rows]
        return self.reply("200 OK", {"meta": {"uuid": ""} | asked.meta, "data": {"resp_data": answers}})

    def enter(self, connection: Connection) -> None:
        if not self.latency:
            connection.finish()
        elif self.busy >= self.slots:
            self.line.append(connection)
        else:
            self.busy += 1
            self.peak = max(self.peak, self.busy)
            asyncio.get_running_loop().call_later(self.latency, self.leave, connection)

    def leave(self, connection: Connection) -> None:
        self.busy -= 1
        connection.finish()
        if self.line:
            self.enter(self.line.popleft())


def file_in(body: bytes) -> bytes:
    """Return the only file in a form, or in JSON."""
    if body.startswith(b"{"):
        return b64decode(msgspec.json.decode(body)["image"])
    return body[body.index(b"\r\n\r\n") + 4 : body.rindex(b"\r\n--")]


class Connection(asyncio.Protocol):
    """One keep-alive connection with one request in service at a time."""

    def __init__(self, service: Service) -> None:
        self.service, self.buffer, self.body = service, bytearray(), None

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if self.body is None:
            self.take()

    def take(self) -> None:
        """Take the next whole request out of the buffer, if it is there."""
        end = self.buffer.find(b"\r\n\r\n") + 4
        length = LENGTH.search(self.buffer, 0, end)
        total = end + (int(length[1]) if length else 0)
        if end < 4 or len(self.buffer) < total:
            return
        asks = self.buffer.startswith(b"POST ")
        self.body = bytes(memoryview(self.buffer)[end:total])
        del self.buffer[:total]
        if asks:
            self.service.enter(self)
        else:
            self.send(self.service.stats())

    def finish(self) -> None:
        self.send(self.service.answer(self.body))

    def send(self, reply: bytes) -> None:
        self.body = None
        self.transport.write(reply)
        if self.buffer:
            self.take()


async def serve(port: int, service: Service) -> None:
    """Print the URL to call, and serve until SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    listener = await loop.create_server(lambda: Connection(service), "127.0.0.1", port, backlog=1024)
    sys.stdout.write(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1/infers/iris\n")
    sys.stdout.flush()
    await stop.wait()


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--port", type=int, default=0, help="0, the default: a free one")
    options.add_argument("--latency", type=float, default=0.0, help="seconds each request stays in service")
    options.add_argument("--slots", type=int, default=0, help="requests in service at once; 0: no bound")
    given = options.parse_args()
    asyncio.run(serve(given.port, Service(given.latency, given.slots)))
