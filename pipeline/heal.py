"""A range with dead letters, written once more: what is good is copied, and what died is put in its place anew.

The new objects and their receipt come to be whole or not at all. Until then the old receipt counts; from then on the
new one does, since its generation is newer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from pipeline.errors import StorageFailed
from pipeline.forms import PLACE, pieces, whole_lines
from pipeline.identity import rows_of
from pipeline.plan import Range
from pipeline.recount import recount
from pipeline.storage import storing
from pipeline.stored import Inserter, stored
from pipeline.write import RangeWriter
from schemas.plan import NO_END

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence

    from pipeline.converse import Outcome
    from pipeline.encode import Int64s
    from pipeline.forms import Writer
    from pipeline.identity import Bools, Rows
    from pipeline.pack import Chunk
    from pipeline.read import Batch
    from pipeline.storage import Draft, Store
    from pipeline.stored import Stored
    from schemas.plan import Heal, Source
    from schemas.receipt import Receipt


class _Letter(msgspec.Struct, gc=False):
    """What is read of a dead letter: why, and whose it is."""

    kind: str
    source: str | None
    source_row: int | None
    row_uuid: str | None


_letter: Final = msgspec.json.Decoder(_Letter)


class Letters(NamedTuple):
    """Some dead letters: their PLACE, whether they are to be asked again, and their lines."""

    place: pa.RecordBatch
    wanted: Bools
    lines: Sequence[bytes]


def letters(store: Store, heal: Heal) -> Iterator[Letters]:
    """Yield the dead letters of a receipt, as many as are in about 4 MB at a time. Raises StorageFailed."""
    if heal.receipt.errors is None:
        return
    name = heal.receipt.errors.name
    with storing("read", f"{store.uri}/{name}"), store.open(name) as file:
        try:
            for text in pieces(file, whole_lines):
                read = _letter.decode_lines(text)
                place: dict[str, Any] = {key: [getattr(one, key) for one in read] for key in PLACE.names}
                wanted = np.array([not heal.kinds or one.kind in heal.kinds for one in read], np.bool_)
                yield Letters(pa.RecordBatch.from_pydict(place, PLACE), wanted, text.splitlines(keepends=True))
        except ValueError as error:  # no JSON, no UTF-8, cut
            raise _unsound(store, heal.receipt, f"{name} is not as it was written: {error}") from None


class Old(NamedTuple):
    """A range to be healed: its rows, and which of them are asked again, by position in the range."""

    store: Store
    heal: Heal
    rows: Rows
    wanted: Bools

    @property
    def span(self) -> Range:
        """From the first to the last row that is asked again."""
        rows = np.flatnonzero(self.wanted) + self.receipt.start
        return Range(int(rows[0]), int(rows[-1]) + 1) if len(rows) else Range(self.receipt.start, self.receipt.start)

    @property
    def receipt(self) -> Receipt:
        """The receipt that counts now."""
        return self.heal.receipt

    def numbers(self, place: pa.RecordBatch) -> Int64s:
        """Return the numbers of rows in their source."""
        return self.rows.numbers(place)[0]

    def asks(self, row: int) -> bool:
        """Whether a row of the source is asked again."""
        position = row - self.receipt.start
        return 0 <= position < len(self.wanted) and bool(self.wanted[position])

    def pick(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield those rows of batches that are asked again."""
        for batch in batches:
            first = batch.first - self.receipt.start
            positions = np.flatnonzero(self.wanted[first : first + batch.data.num_rows])
            if len(positions):
                yield batch.pick(positions)

    def kept(self) -> Generator[tuple[int, bytes], None, None]:
        """Yield the letters that stay as they are, with their rows' numbers."""
        for some in letters(self.store, self.heal):
            numbers = self.numbers(some.place).tolist()
            yield from ((numbers[at], some.lines[at]) for at in np.flatnonzero(~some.wanted).tolist())


def opened(store: Store, job: str, source: Source, heal: Heal) -> Old:
    """Look at a range that is to be healed; `job` is the name that row_uuids are made of."""
    receipt = heal.receipt
    with rows_of(store, job, source) as between:
        rows = between(receipt.start, receipt.stop)
    wanted = np.zeros(receipt.stop - receipt.start, np.bool_)
    for some in letters(store, heal):
        numbers, own = rows.numbers(some.place)
        inside = (receipt.start <= numbers) & (numbers < receipt.stop)
        wanted[numbers[some.wanted & own & inside] - receipt.start] = True
    return Old(store, heal, rows, wanted)


def sound(old: Old) -> None:
    """See that what is to be copied is what was once written. Raises StorageFailed where it is not."""
    for breach in recount(old.store, old.receipt, old.rows):
        raise _unsound(old.store, old.receipt, breach)


def _unsound(store: Store, receipt: Receipt, breach: str) -> StorageFailed:
    return StorageFailed(
        f"cannot heal {store.uri}: {breach}; delete receipts/{receipt.name}.json, and run scores it anew"
    )


class Healer(RangeWriter):
    """Writes a range anew, as one object. There is no receipt before every row that is asked again came out."""

    def __init__(self, old: Old, *place: Any, **options: Any) -> None:
        super().__init__(*place, **options)
        self._old = old
        self._asked = int(old.wanted.sum())
        self._kept = old.kept()
        self._letter = next(self._kept, None)
        self._stored: Generator[Stored, None, None] | None = None
        self._lost = False

    def add(self, chunk: Chunk, outcomes: Sequence[Outcome]) -> Receipt | None:
        """Append a chunk's outcomes, behind what is copied from before it."""
        if self._lost:
            return None
        self._object = self._object or self._open()
        self._copy_letters(chunk.stop)
        return super().add(chunk, outcomes)

    def skip(self, row: int) -> Receipt | None:  # noqa: ARG002 - where it goes on does not matter
        """Give it all up: with rows that have no outcome the old receipt stays the one that counts."""
        self._lost = True
        self.abandon()
        return None

    def close(self, *, end: bool = False) -> Receipt | None:  # noqa: ARG002 - the old receipt knows
        """Copy what is left, and write the receipt; None as long as a row has no outcome."""
        if self._object is None or self.scored + self.dead < self._asked:
            return None
        self._copy_letters(NO_END)
        receipt = self._old.receipt
        if receipt.results:
            self._object.begin()
        self._next = receipt.stop
        return super().close(end=receipt.end)

    def abandon(self) -> None:
        """Give up what is not closed."""
        super().abandon()
        self._kept.close()
        if self._stored:
            self._stored.close()

    def _is_full(self, one: object) -> bool:  # noqa: ARG002
        return False

    def _open(self) -> Any:
        opened = super()._open()
        opened.scored += self._old.receipt.scored
        return opened

    def _writer(self, draft: Draft) -> Writer:
        results = self._old.receipt.results
        if results is None:
            return super()._writer(draft)
        self._stored = stored(self._store, results.name, self._schema)
        return Inserter(draft, self._schema, self._form, self._stored, self._old.numbers)

    def _copy_letters(self, row: int) -> None:
        """Copy the letters that come before a row; a chunk's own have no order that matters."""
        assert self._object
        while self._letter and self._letter[0] < row:
            self._object.copy(self._letter[1])
            self._letter = next(self._kept, None)
