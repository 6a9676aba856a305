"""The start of a job: the first rows are asked one at a time, and all others when one of them has its answer."""

from __future__ import annotations

from typing import Final

from pipeline.errors import Refused


class Gate:
    """Lets a few rows try whether the contract with the service holds. Guarded by its owner.

    One wrong key must not be tried by every thread, and the same refusal of the first rows is no matter of these rows.
    """

    ROWS: Final = 3
    ABSENT_SECONDS: Final = 60.0
    """For how long a server may say that it does not have the model: it may have started before it."""

    def __init__(self, *, is_open: bool) -> None:
        self.is_open = is_open
        self._died = 0
        self._absent: float | None = None

    def admits(self, under_way: int, resting: int) -> bool:
        """Whether one more request may begin: beside those that wait for their next attempt, while the gate is shut.

        When the job is refused anybody may: the end of the run is what they find.
        """
        decided = self.is_open or self._died >= self.ROWS
        return decided or (under_way == resting and self._died + under_way < self.ROWS)

    def died(self, rows: int, why: str, url: str, *, mend: str, answered: bool) -> None:
        """Note rows that the service refused, or `answered` with what does not fit; `mend` names the keys of both.

        Raises Refused when these are the first ones, and enough.
        """
        self._died += rows
        if not self.is_open and self._died >= self.ROWS:
            first = f"the first {self._died} rows"
            what = f"the answers to {first} do not fit" if answered else f"the service refuses each of {first}"
            raise Refused(f"{what}: {why} ({url}); mend {mend}, or score anyway with --no-probe")

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
