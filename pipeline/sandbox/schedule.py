"""Which fault an attempt meets: the script's, else chance's. Randomness comes from a seed, so a run can be repeated."""

from __future__ import annotations

from collections import deque
from random import Random
from typing import TYPE_CHECKING, Any, Final

from pipeline.sandbox.faults import OK, Fault, RowKey, parse

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.sandbox.faults import Rules

# What chance draws from: what a client must survive without a word from anybody. Refusals of content are not passing
# trouble, and a lower limit than the advertised one is no chance: `row:` keys and `--body-limit` are for those.
CHAOS: Final = tuple(
    parse("chaos", entry)
    for entry in (
        *(408, 429, "429 after 1s", 500, 502, 503, "503 after 1s", 504, "ModelArts.4206", "ModelArts.4505"),
        *("html", "crash", "expire", "drop", "drop-early", "truncate", "garbage", "short", "long", "foreign"),
        *("slow 1s", "trickle", "trickle-headers"),
    )
)

TOKEN_SERVES: Final = 100  # attempts at the least, whatever chance says: one refused at once is wrong, and not expired


class Schedule:
    """Hands out the faults of a script, attempt by attempt; `chaos` is the probability of one where it is silent."""

    def __init__(self, rules: Rules, *, chaos: float = 0.0, seed: int = 1) -> None:
        self._requests = {key: deque(faults) for key, faults in rules.items() if isinstance(key, int)}
        self._rows = {key: deque(faults) for key, faults in rules.items() if isinstance(key, RowKey)}
        self._last_scripted = max(self._requests, default=0)
        self._numbers: dict[str, int] = {}
        self._arrived = 0
        self._chaos = chaos
        self._served = TOKEN_SERVES
        self._random = Random(seed)  # noqa: S311 -- reproducible, not secret

    def chance(self) -> Fault:
        """Return what befalls an attempt of which the script says nothing."""
        # The second number is drawn even when it is not used: what one request meets says nothing about the next.
        drawn, fault = self._random.random(), self._random.choice(CHAOS)
        self._served += 1
        if drawn >= self._chaos or (fault.kind == "expire" and self._served < TOKEN_SERVES):
            return OK
        self._served = 0 if fault.kind == "expire" else self._served
        return fault

    def drops_early(self, identity: str | None, chance: Fault = OK) -> bool:
        """Return whether this attempt is to be reset before its body is read; it is then used up.

        Chance does so too, where the script has nothing for the request; what it has for its rows is not known yet.
        """
        coming = (self._number(identity) if identity else self._arrived + 1) if self._requests else None
        faults = self._requests.get(coming) if coming else None
        if not faults:
            return chance.kind == "drop-early"
        if faults[0].kind != "drop-early":
            return False
        self._arrived += 0 if identity else 1
        return _take(faults) is not None

    def draw(
        self, identity: str | None, peek: Callable[[], tuple[object, list[dict[str, Any]]]], chance: Fault = OK
    ) -> Fault:
        """Return the fault of an attempt; `peek` gives its uuid and rows, and is called only if they matter."""
        scripted = self._scripted(identity, *peek()) if self._requests or self._rows else None
        return scripted or chance

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
