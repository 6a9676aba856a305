"""The URLs of a service: whose turn it is, which one is left out for a while, and when it is tried again. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

AFTER: Final = 3
"""Failures in a row until a node that gives connections is left out: one may be the request's own fault."""

FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0

SURE: Final = frozenset({"refused", "unknown-host", "tls"})
"""What no request is to blame for: the node is left out at once."""

DOUBTFUL: Final = frozenset({502, 503, 504})
"""Statuses that a gateway gives in place of a node; any other answer shows that the node is there."""


class Pick(NamedTuple):
    """A request's node: where it goes, and since when it is on its way."""

    url: str
    number: int
    at: float


@dataclass(slots=True)
class _Node:
    url: str
    outstanding: int = 0
    turn: int = 0
    heard: bool = False
    answers: bool = False
    failures: int = 0
    failed_at: float = float("-inf")
    left_at: float = float("-inf")
    again_at: float | None = None
    """When it is tried again; None for a node that is asked like any other."""
    pause: float = FIRST_PAUSE
    on_trial: bool = False


class Nodes:
    """Balances requests over URLs by how many each has to answer. Guarded by its owner.

    Each `pick` is followed by one `answered`, `failed` or `unasked`. A node that fails is left out for a pause that
    doubles with every trial in vain; one request tries it, and an answer brings it back. Where all are out, whoever is
    due next is asked: how often, an outage decides.
    """

    def __init__(self, urls: Sequence[str], *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._nodes = [_Node(url) for url in urls]
        self._turn = 0

    def __len__(self) -> int:
        """How many there are."""
        return len(self._nodes)

    @property
    def out(self) -> list[str]:
        """The URLs that are left out now."""
        return [node.url for node in self._nodes if node.again_at is not None]

    def pick(self) -> Pick:
        """Choose the node of the next request."""
        now = self._clock()
        number = self._choose(now)
        node = self._nodes[number]
        self._turn += 1
        node.turn = self._turn
        node.outstanding += 1
        node.on_trial = node.again_at is not None
        return Pick(node.url, number, now)

    def _choose(self, now: float) -> int:
        due = [(node.again_at, n) for n, node in enumerate(self._nodes) if node.again_at is not None]
        ready = [(at, number) for at, number in due if at <= now and not self._nodes[number].on_trial]
        if ready or len(due) == len(self._nodes):
            return min(ready or due)[1]
        asked = ((node.outstanding, node.turn, n) for n, node in enumerate(self._nodes) if node.again_at is None)
        return min(asked)[2]

    def unasked(self, pick: Pick) -> None:
        """Note that a request did not go out after all."""
        self._back(pick)

    def answered(self, pick: Pick, *, well: bool) -> None:
        """Note that a node answered; `well` if with a success."""
        node = self._back(pick)
        node.heard = True
        node.answers = node.answers or well
        node.failures = 0
        if node.again_at is None or pick.at < node.left_at:  # or it was asked before its trouble began
            return
        if all(one.again_at is not None for one in self._nodes):  # the outage is over: nobody waits for a long pause
            for one in self._nodes:
                one.again_at, one.pause = self._clock(), FIRST_PAUSE
        node.again_at, node.pause = None, FIRST_PAUSE

    def lacks(self, url: str) -> None:
        """Note that a node that answered does not have the model: where there are others, it is left out."""
        for node in self._nodes:
            if node.url == url and len(self) > 1:
                node.left_at, node.answers = self._clock(), False
                self._leave(node, node.left_at, 0.0)

    def failed(self, pick: Pick, *, sure: bool, leave: float = 0.0) -> bool:
        """Note that a node failed; return whether that is its own trouble: it is left out, and others answer or may.

        Those may of which nothing was heard yet: the node that is asked first need not be a good one.
        `sure` if no request can be to blame; `leave` are the seconds for which the node asks to be left alone.
        """
        node, now = self._back(pick), self._clock()
        if node.again_at is None:
            node.failures += 1
            if sure or leave or node.failures >= AFTER:
                node.left_at, node.answers = now, False
                self._leave(node, now, leave)
        elif pick.at > node.failed_at:
            self._leave(node, now, leave)
        node.failed_at, node.heard = now, True
        others = (one.answers or not one.heard for one in self._nodes if one.again_at is None)
        return node.again_at is not None and any(others)

    def _leave(self, node: _Node, now: float, leave: float) -> None:
        node.again_at = now + max(node.pause, leave)
        node.pause = min(2 * node.pause, LONGEST_PAUSE)

    def _back(self, pick: Pick) -> _Node:
        node = self._nodes[pick.number]
        node.outstanding -= 1
        if pick.at >= node.left_at:
            node.on_trial = False
        return node
