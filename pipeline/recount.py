"""One receipt against its objects: unchanged, and with each row of its range once, under the id of its place.

Objects are read twice, once for their hash and once for their rows, both times in pieces. What is kept meanwhile is two
bytes for each row of the range, and where rows are files the names of those in the range.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.forms import Unreadable, places
from pipeline.identity import true
from pipeline.storage import storing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.encode import Int64s
    from pipeline.identity import Rows
    from pipeline.storage import Store
    from schemas.receipt import Receipt, StoredObject

_PIECE: Final = 1 << 20
_FEW: Final = 5


def recount(store: Store, receipt: Receipt, rows: Rows) -> Iterator[str]:
    """Name each breach of a receipt over `rows`: objects that are gone or changed; rows foreign, missing, doubled."""
    objects = [one for one in (receipt.results, receipt.errors) if one]
    broken = [breach for one in objects for breach in _changed(store, one)]
    if receipt.scored + receipt.dead != receipt.stop - receipt.start:
        broken.append(f"wrong count: {_says(receipt)}, its range has {receipt.stop - receipt.start}")
    yield from broken
    if broken:
        return
    count = _Count(receipt, rows)
    for one in objects:
        try:
            with storing("read", f"{store.uri}/{one.name}"), store.open(one.name) as file:
                for place in places(one.name, file):
                    count.add(place)
        except Unreadable as reason:
            yield f"unreadable: {one.name}: {reason}"
            return
    yield from count.breaches()


def _says(receipt: Receipt) -> str:
    return f"{receipt.name} says {receipt.scored} + {receipt.dead} rows"


def _changed(store: Store, stored: StoredObject) -> Iterator[str]:
    if not store.exists(stored.name):
        yield f"receipt without object: {stored.name}"
        return
    digest, size = hashlib.sha256(), 0
    with storing("read", f"{store.uri}/{stored.name}"), store.open(stored.name) as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            size += len(piece)
    if (size, digest.hexdigest()) != (stored.size, stored.sha256):
        yield f"wrong hash: {stored.name} is not what was written"


class _Count:
    """The rows of a receipt's range, as its objects have them."""

    def __init__(self, receipt: Receipt, rows: Rows) -> None:
        self._receipt = receipt
        self._rows = rows
        self._found = 0
        self._seen = np.zeros(receipt.stop - receipt.start, np.bool_)
        self._doubled = np.zeros(receipt.stop - receipt.start, np.bool_)
        self._elsewhere = _Some()
        self._outside = _Some()
        self._misnamed = _Some()

    def add(self, place: pa.RecordBatch) -> None:
        """Count some rows of an object."""
        self._found += place.num_rows
        numbers, own = self._rows.numbers(place)
        self._elsewhere.add(_spelled(place.filter(pa.array(~own)).slice(0, _FEW)), int((~own).sum()))
        inside = own & (numbers >= self._receipt.start) & (numbers < self._receipt.stop)
        outside = numbers[own & ~inside]
        self._outside.add([str(number) for number in outside[:_FEW].tolist()], len(outside))
        numbers = numbers[inside]
        once, counts = np.unique(numbers - self._receipt.start, return_counts=True)
        self._doubled[once] |= self._seen[once] | (counts > 1)
        self._seen[once] = True
        uuids = place.column("row_uuid").filter(pa.array(inside))
        self._misname(numbers[~true(pc.equal(self._rows.uuids(numbers), uuids))])

    def breaches(self) -> Iterator[str]:
        """Name what is wrong, when all objects were counted."""
        receipt = self._receipt
        if self._elsewhere:
            yield f"foreign: {self._elsewhere.rows} rows from elsewhere, such as {self._elsewhere}, in {receipt.name}"
        if self._outside:
            yield f"foreign: {self._outside.rows} rows, such as {self._outside}, in {receipt.name}"
        if self._misnamed:
            yield (f"foreign: {self._misnamed.rows} row_uuids, such as that of row {self._misnamed}, in {receipt.name}")
        for what, wrong in (("missing", ~self._seen), ("doubled", self._doubled)):
            if wrong.any():
                rows = ", ".join(self._rows.shown(np.flatnonzero(wrong)[:_FEW] + receipt.start))
                yield f"{what}: {int(wrong.sum())} rows, such as {rows}, of {receipt.name}"
        if receipt.scored + receipt.dead != self._found:
            yield f"wrong count: {_says(receipt)}, its objects have {self._found}"

    def _misname(self, numbers: Int64s) -> None:
        self._misnamed.add(self._rows.shown(numbers[:_FEW]), len(numbers))


class _Some:
    """So many rows with the same thing wrong, and the first few of them."""

    def __init__(self) -> None:
        self.rows = 0
        self._first: list[str] = []

    def add(self, first: list[str], rows: int) -> None:
        self.rows += rows
        self._first += first[: _FEW - len(self._first)]

    def __bool__(self) -> bool:
        return self.rows > 0

    def __str__(self) -> str:
        return ", ".join(self._first)


def _spelled(place: pa.RecordBatch) -> list[str]:
    return [f"row {row['source_row']} of {row['source']}" for row in place.to_pylist()]
