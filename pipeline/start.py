"""What the first rows say of the contract with the service: who judges them while conversations go on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pipeline.converse import Dead, of_content, told
from pipeline.errors import Refused
from pipeline.gate import Case, Gate, Place, Unfit
from pipeline.status import Action
from schemas.values import readable

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable

    import pyarrow as pa

    from pipeline.converse import Outcome
    from pipeline.errors import BulkscoreError
    from pipeline.pack import Chunk
    from pipeline.status import Fault

_REFUSED: Final = "the service refuses each of {}"
_MISFIT: Final = "the answers to {} do not fit"


class Start:
    """Brings what becomes of rows before the gate; nothing of it counts when that is open. Thread-safe by `lock`.

    `url` and `mend` are told where the contract is wrong, and `unfit` says whether answers are what the job declares.
    """

    def __init__(
        self,
        gate: Gate,
        lock: threading.Condition,
        *,
        url: str,
        mend: str,
        unfit: Callable[[pa.Array[Any]], Unfit | None],
        stop: Callable[[BulkscoreError], None],
    ) -> None:
        self._gate = gate
        self._lock = lock
        self._url = url
        self._mend = mend
        self._unfit = unfit
        self._stop = stop

    def answered(
        self, answers: pa.Array[Any], sent: Chunk, source: str, hide: Callable[[bytes], bytes] = bytes
    ) -> bool:
        """Return whether the gate may be opened: whether one of the answers is what the job declares.

        `hide` takes our secrets out of what is told of them. Raises Refused where the first rows show that the
        contract is wrong, as the other methods do.
        """
        if self._gate.is_open:
            return False
        unfit = self._unfit(answers)
        if unfit:
            unfit = unfit._replace(why=readable(hide(unfit.why.encode()).decode()))
            self._end(sent, self._case(unfit, sent, source))
        return unfit is None

    def failed(self, fault: Fault, sent: Chunk, source: str) -> None:
        """Judge a request that may be asked again: a row that fails again and again for its content."""
        if self._gate.is_open or len(sent) > 1 or not of_content(fault):
            return
        case = self._case(self._of(fault), sent, source)
        row: Any = sent.row_uuids[0].as_py()
        self._judge(lambda: self._gate.failed(row, fault.action, case))

    def dead(self, outcomes: Iterable[Outcome], source: str) -> None:
        """Judge the rows that died of a conversation that has come to its end."""
        for outcome in outcomes:
            if isinstance(outcome, Dead) and not self._gate.is_open:
                self._end(outcome.chunk, self._case(self._of(outcome.fault), outcome.chunk, source))

    def _of(self, fault: Fault) -> Unfit:
        return Unfit(_MISFIT if fault.action is Action.MISFIT else _REFUSED, told(fault), self._mend)

    def _case(self, unfit: Unfit, sent: Chunk, source: str) -> Case:
        place = Place(sent.uris[0].as_py()) if sent.uris is not None else Place(source, int(sent.source_rows[0]))
        return Case(unfit, place, self._url)

    def _end(self, chunk: Chunk, case: Case) -> None:
        rows: Any = chunk.row_uuids.to_pylist()
        self._judge(lambda: self._gate.ended(rows, case))

    def _judge(self, note: Callable[[], None]) -> None:
        with self._lock:
            try:
                note()
            except Refused as error:
                self._stop(error)  # before anybody else is let in
                raise
