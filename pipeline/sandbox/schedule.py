"""Which fault an attempt meets: the script's, else chance's. Randomness comes from a seed, so a run can be repeated."""

from __future__ import annotations

from collections import deque
from random import Random
from typing import TYPE_CHECKING, Any, Final

from pipeline.sandbox.faults import OK, Fault, RowKey, parse

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.sandbox.faults import Rules

# What chance draws from: what a client must survive without a word from anybody. Nothing that never ends.
CHAOS: Final = tuple(
    parse("chaos", entry)
    for entry in (
        *(429, "429 after 1s", 500, 503, 504, "ModelArts.4206", "html"),
        *("drop", "truncate", "garbage", "short", "long", "foreign", "slow 1s"),
    )
)


class Schedule:
    """Hands out the faults of a script, attempt by attempt; `chaos` is the probability of one where it is silent."""

    def __init__(self, rules: Rules, *, chaos: float = 0.0, seed: int = 1) -> None:
        self._requests = {key: deque(faults) for key, faults in rules.items() if isinstance(key, int)}
        self._rows = {key: deque(faults) for key, faults in rules.items() if isinstance(key, RowKey)}
        self._last_scripted = max(self._requests, default=0)
        self._numbers: dict[str, int] = {}
        self._arrived = 0
        self._chaos = chaos
        self._random = Random(seed)  # noqa: S311 -- reproducible, not secret

    def drops_early(self, identity: str | None) -> bool:
        """Return whether this attempt is to be reset before its body is read; it is then used up."""
        if not self._requests:
            return False
        faults = self._requests.get(self._number(identity) if identity else self._arrived + 1)
        if not faults or faults[0].kind != "drop-early":
            return False
        self._arrived += 0 if identity else 1
        return _take(faults) is not None

    def draw(self, identity: str | None, peek: Callable[[], tuple[object, list[dict[str, Any]]]]) -> Fault:
        """Return the fault of an attempt; `peek` gives its uuid and rows, and is called only if they matter."""
        scripted = self._scripted(identity, *peek()) if self._requests or self._rows else None
        if scripted is not None:
            return scripted
        # The second number is drawn even when it is not used: what one request meets says nothing about the next.
        chance, fault = self._random.random(), self._random.choice(CHAOS)
        return fault if chance < self._chaos else OK

    def _scripted(self, identity: str | None, uuid: object, rows: list[dict[str, Any]]) -> Fault | None:
        number = self._number(identity or (str(uuid) if uuid else None))
        of_request = _take(self._requests.get(number))
        if of_request is not None:
            return of_request
        for key, faults in self._rows.items():
            if faults and any(key.matches(row) for row in rows):
                return _take(faults)
        return None

    def _number(self, identity: str | None) -> int:
        if identity in self._numbers:
            return self._numbers[identity]
        self._arrived += 1
        # Behind the last scripted number nobody needs to be recognised: the memory is bounded.
        if identity and self._arrived <= self._last_scripted:
            self._numbers[identity] = self._arrived
        return self._arrived


def _take(faults: deque[Fault] | None) -> Fault | None:
    if not faults:
        return None
    return faults[0] if faults[0].always else faults.popleft()
