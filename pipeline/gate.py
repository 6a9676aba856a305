"""The start of a job: the first rows are asked one at a time, and all others when one of them has its answer."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from pipeline.errors import Refused
from pipeline.status import Action

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_SEVERAL: Final = "not one of {} has an answer that fits"


class Unfit(NamedTuple):
    """What is wrong with rows or their answers: what is said of all first rows, `{}`, why of one, and what mends it."""

    said: str
    why: str
    mend: str


class Place(NamedTuple):
    """Where a row is: its source, and its number there, but for one that is a file."""

    source: str
    row: int | None = None

    def __str__(self) -> str:
        """Write it for the user."""
        return self.source if self.row is None else f"row {self.row} of {self.source}"


class Case(NamedTuple):
    """What speaks against the contract, by the row at a place, and whom that row was sent to."""

    unfit: Unfit
    place: Place
    url: str


class Gate:
    """Lets a few rows try whether the contract with the service holds. Guarded by its owner.

    One wrong key must not be tried by every thread, and the same refusal of the first rows is no matter of these rows.
    """

    ROWS: Final = 3
    SURE: Final[Mapping[Action, int]] = {Action.MISFIT: 2, Action.RETRY: 5}
    """How often a row fails for its content until it counts, though it is asked again: the first may be chance, and a
    model that has just started may fail for some seconds."""
    ABSENT_SECONDS: Final = 60.0
    """For how long a server may say that it does not have the model: it may have started before it."""

    def __init__(self, *, is_open: bool) -> None:
        self.is_open = is_open
        self._cases: dict[str, Case] = {}
        """By row: a row may be judged while it is under way, and again when it has ended."""
        self._ended: set[str] = set()
        self._failures: Counter[str] = Counter()
        self._absent: float | None = None

    def admits(self, under_way: int, resting: int) -> bool:
        """Whether one more request may begin: beside those that wait for their next attempt, while the gate is shut.

        When the job is refused anybody may: the end of the run is what they find.
        """
        decided = self.is_open or len(self._cases) >= self.ROWS
        return decided or (under_way == resting and len(self._ended) + under_way < self.ROWS)

    def failed(self, row: str, action: Action, case: Case) -> None:
        """Note that a row failed for its content and is asked again. Raises Refused as `ended` does."""
        self._failures[row] += 1
        if self._failures[row] >= self.SURE[action]:
            self._judge([row], case)

    def ended(self, rows: Collection[str], case: Case) -> None:
        """Note rows that have come to an end without an answer that fits.

        Raises Refused when these are the first ones, and enough.
        """
        self._ended.update(rows)
        self._judge(rows, case)

    def _judge(self, rows: Collection[str], case: Case) -> None:
        if self.is_open:
            return
        self._cases.update((row, case) for row in rows if row not in self._cases)
        if len(self._cases) < self.ROWS:
            return
        (said, why, mend), place, url = min(
            self._cases.values(), key=lambda one: (one.place.source, one.place.row or 0)
        )
        alike = {one.unfit.said for one in self._cases.values()} == {said}
        of_all = (said if alike else _SEVERAL).replace("{}", f"the first {len(self._cases)} rows", 1)
        raise Refused(f"{of_all}: {why} ({place}, {url}); mend {mend}, or score anyway with --no-probe")

    def absent(self, now: float) -> float:
        """Note that the service says that it does not have the model; return for how many seconds it has, in a row.

        0 where it was there before: then it is waited for, as for any service that is out.
        """
        if self.is_open:
            return 0.0
        self._absent = now if self._absent is None else self._absent
        return now - self._absent

    def present(self) -> None:
        """Note that it says something else."""
        self._absent = None
