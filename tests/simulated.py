"""Services and clients in virtual time: a minute of requests in a fraction of a second, the same for the same seed."""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

from pipeline.window import Pace, Window

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

REFUSED_SECONDS = 0.005


class World:
    """A clock, and what happens when; it may begin at any time."""

    def __init__(self, start: float = 1000.0) -> None:
        self.now = self.start = start
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def __call__(self) -> float:
        return self.now

    @property
    def elapsed(self) -> float:
        return self.now - self.start

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), action))

    def run(self, seconds: float) -> None:
        """Let that much time pass."""
        end = self.start + seconds
        while self._events and self._events[0][0] <= end:
            self.now, _, action = heapq.heappop(self._events)
            action()
        self.now = end


@dataclass
class Done:
    """A request as its client saw it: when it was sent and when it ended, since the start, and what came of it."""

    sent: float
    ended: float
    status: int

    @property
    def seconds(self) -> float:
        return self.ended - self.sent


@dataclass
class Service:
    """Serves in order of arrival, as many at once as there are slots.

    `takes(rows)` draws a request's seconds; `slots()` may change; `refuses(service)` answers 429 at once; a request
    that has been here for `cut` seconds is answered with 504, and, where it waits, not served. `drag(waiting)` is the
    factor by which all gets slower while so many wait.
    """

    world: World
    takes: Callable[[int], float]
    slots: Callable[[], int]
    refuses: Callable[[Service], bool] = lambda _: False
    cut: float = 40.0
    drag: Callable[[int], float] = lambda _: 1.0
    busy: int = 0
    line: deque = field(default_factory=deque)
    most_waiting: int = 0

    def ask(self, rows: int, answered: Callable[[int], None]) -> None:
        if self.refuses(self):
            self.world.after(REFUSED_SECONDS, lambda: answered(429))
            return
        self.line.append((self.world.now, rows, answered))
        self._serve()
        self.most_waiting = max(self.most_waiting, len(self.line))

    def _serve(self) -> None:
        while self.line and self.busy < self.slots():
            came, rows, answered = self.line.popleft()
            waited = self.world.now - came
            if waited >= self.cut:
                answered(504)
                continue
            seconds = self.takes(rows) * self.drag(len(self.line))
            self.busy += 1
            self.world.after(seconds, self._leave)
            self.world.after(
                min(seconds, self.cut - waited),
                lambda at=answered, ok=waited + seconds <= self.cut: at(200 if ok else 504),
            )

    def _leave(self) -> None:
        self.busy -= 1
        self._serve()


class Client:
    """A worker with as much to send as its window takes; what fails is sent again after a pause.

    Its clock is `offset` seconds ahead of the world's: it may run on another host.
    """

    def __init__(
        self,
        world: World,
        service: Service,
        rng: Random,
        *,
        upper: int = 512,
        rows: Callable[[], int] = lambda: 1,
        overhead: float = 0.0005,
        offset: float = 0.0,
    ) -> None:
        self.window = Window(upper, clock=lambda: world.now + offset)
        self.done: list[Done] = []
        self.limits: list[tuple[float, int]] = []
        self._world, self._service, self._rng, self._rows, self._overhead = world, service, rng, rows, overhead
        self._pace = Pace(None)
        self._resting = 0
        self._line: deque[tuple[int, int]] = deque()
        self._again: deque[tuple[int, int]] = deque()
        self.stopped = False

    def go(self) -> None:
        """Send what the window takes."""
        while self.window.open and not self.stopped and self._resting <= 2 * self.window.limit + 16:
            rows, failures = self._again.popleft() if self._again else (self._rows(), 0)
            self.window.in_flight += 1
            self.window.waiting += 1
            self._line.append((rows, failures))
            if len(self._line) == 1:
                self._take_turn()

    def _take_turn(self) -> None:
        """One waits for its turn at a time, as threads do behind a lock."""
        wait = self._pace.turn(self._world.now, self.window.rate)
        self._world.after(wait, self._leave) if wait else self._leave()

    def _leave(self) -> None:
        rows, failures = self._line.popleft()
        self._world.after(self._overhead, lambda: self._send(rows, failures))
        if self._line:
            self._take_turn()

    def _send(self, rows: int, failures: int) -> None:
        self.window.waiting -= 1
        sent, began = self.window.send(), self._world.now

        def answered(status: int) -> None:
            self.window.in_flight -= 1
            seconds = self._world.now - began
            self.done.append(Done(began - self._world.start, self._world.elapsed, status))
            if status == 200:
                self.window.success(sent, seconds, rows)
            else:
                self.window.pressure(sent) if status == 429 else self.window.late(sent, seconds, rows)
                self._resting += 1
                pause = 0.5 * 2 ** min(failures, 6) * self._rng.uniform(0.5, 1)
                self._world.after(pause, lambda: self._rested(rows, failures + 1))
            self.limits.append((self._world.elapsed, self.window.limit))
            self.go()

        self._service.ask(rows, answered)

    def _rested(self, rows: int, failures: int) -> None:
        self._resting -= 1
        self._again.append((rows, failures))
        self.go()


def rate(done: list[Done], start: float, end: float) -> float:
    """Successes a second between two times."""
    return sum(one.status == 200 and start <= one.ended < end for one in done) / (end - start)


def percentile(done: list[Done], share: float, spans: list[tuple[float, float]]) -> float:
    """The time in the service that so large a share of the successes sent in these spans did not exceed."""
    times = sorted(one.seconds for one in done if one.status == 200 and any(a <= one.sent < b for a, b in spans))
    return times[min(len(times) - 1, int(share * len(times)))]
