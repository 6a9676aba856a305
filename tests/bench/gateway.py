"""A service under pressure: slots that change, a rate that collapses under a queue, 429, long replies, poison rows.

It answers as `server.py` does, in order of arrival. `GET /stats` also tells of each request when it came, when it was
answered (seconds since the first one came) and the status.
"""

from __future__ import annotations

import argparse
import asyncio
import sys

import msgspec
from server import ANSWER, ASKED, Connection, Service, serve

from pipeline.sandbox.limits import Bucket

CUT = 40.0  # seconds after which a request that still waits is answered with 504
CROWD = 2  # a rate collapses when more than so many times the slots wait
DRAG = 4  # and all takes so many times as long
CONTENT = msgspec.defstruct("Content", [("content", str)], gc=False)
CONTENTS = msgspec.defstruct("Contents", [("req_data", list[CONTENT])])
FILES = msgspec.defstruct("Files", [("data", CONTENTS), ("meta", dict[str, str], {})])
LONG = msgspec.defstruct("Long", [("score", float), ("text", str)], gc=False)


class Gateway(Service):
    """Has `slots` places: pairs of seconds since the first request, and the places from then on."""

    def __init__(self, given: argparse.Namespace) -> None:
        super().__init__(given.latency, sys.maxsize)
        self.given = given
        self.slots = given.slots[0][1]  # 0, unlike there, is none
        self.bucket = Bucket(given.rate)
        self.decode = msgspec.json.Decoder(FILES if given.files else ASKED).decode
        self.log: list[tuple[float, float, int]] = []
        self.began = 0.0
        self.text = "x" * given.reply

    def stats(self) -> bytes:
        return self.reply("200 OK", {"requests": self.requests, "peak_in_service": self.peak, "log": self.log})

    def enter(self, connection: Connection) -> None:
        connection.arrived = asyncio.get_running_loop().time()
        if not self.began:
            self.begin(connection.arrived)
        if not self.bucket.take():
            self.end(connection, self.refusal("429 Too Many Requests", "APIG.0308"))
            return
        self.line.append(connection)
        self.admit()

    def begin(self, now: float) -> None:
        self.began = now
        for seconds, slots in self.given.slots[1:]:
            asyncio.get_running_loop().call_at(now + seconds, self.change, slots)

    def change(self, slots: int) -> None:
        self.slots = slots
        self.admit()

    def admit(self) -> None:
        """Let those in for whom there is a place."""
        loop = asyncio.get_running_loop()
        while self.line and self.busy < self.slots:
            connection = self.line.popleft()
            if loop.time() - connection.arrived > CUT:
                self.end(connection, self.refusal("504 Gateway Timeout", "ModelArts.4503"))
                continue
            self.busy += 1
            self.peak = max(self.peak, self.busy)
            drag = DRAG if self.given.collapses and len(self.line) > CROWD * self.slots else 1
            loop.call_later(self.latency * drag, self.leave, connection)

    def leave(self, connection: Connection) -> None:
        self.busy -= 1
        self.end(connection, self.answer(connection.body))
        self.admit()

    def end(self, connection: Connection, reply: bytes) -> None:
        now = asyncio.get_running_loop().time()
        self.log.append((connection.arrived - self.began, now - self.began, int(reply[9:12])))
        connection.send(reply)

    def answer(self, body: bytes) -> bytes:
        if not (self.given.files or self.given.reply or self.given.poison):
            return super().answer(body)
        self.requests += 1
        asked = self.decode(body)
        rows = asked.data.req_data
        if self.given.files:
            answers = [ANSWER("file", len(row.content)) for row in rows]
        elif {row.sepal_length for row in rows} & self.given.poison:
            return self.refusal("400 Bad Request", "MR.0105")
        else:
            answers = [LONG(row.sepal_length, self.text) for row in rows]
        return self.reply("200 OK", {"meta": {"uuid": ""} | asked.meta, "data": {"resp_data": answers}})

    def refusal(self, status: str, code: str) -> bytes:
        reply = self.reply(status, {"error_code": code, "error_msg": status})
        after = self.given.retry_after if status.startswith("429") else None
        return reply if after is None else reply.replace(b"\r\n", f"\r\nRetry-After: {after}\r\n".encode(), 1)


def phases(text: str) -> list[tuple[float, int]]:
    """Read `64,20:16,40:64`: 64 slots, after 20 seconds 16, after 40 seconds 64 again."""
    first, *changes = text.split(",")
    return [(0.0, int(first)), *((float(at), int(slots)) for at, slots in (one.split(":") for one in changes))]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--latency", type=float, default=0.2, help="seconds each request stays in service")
    options.add_argument("--slots", type=phases, default=[(0.0, sys.maxsize)], help="64, or 64,20:16,40:64")
    options.add_argument("--collapses", action="store_true", help="all gets slower where too many wait")
    options.add_argument("--rate", type=float, help="requests a second; more are refused with 429")
    options.add_argument("--retry-after", type=int, help="seconds that a 429 asks for")
    options.add_argument("--reply", type=int, default=0, help="bytes of text in each answer")
    options.add_argument("--files", action="store_true", help="rows have `content`")
    options.add_argument("--poison", type=float, nargs="*", default=[], help="sepal_length of rows that are refused")
    given = options.parse_args()
    given.poison = {*given.poison}
    asyncio.run(serve(0, Gateway(given)))


if __name__ == "__main__":
    main()
