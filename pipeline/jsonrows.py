"""JSON texts -> Arrow columns of given types, with a reason for every row that does not fit them.

A batch is decoded as a whole; only when that fails it is decoded line by line, and only a column that fails is
searched for what does not fit. What becomes of a row never depends on the rows beside it.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pyarrow as pa
from msgspec.json import Decoder

from pipeline.jsontypes import MISFITS, NULL, decoder_of, is_text, reading_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from pipeline.jsontypes import Array

_SHOWN: Final = 80


class JsonRows:
    """Reads JSON objects, one a row, as columns of `types`. Keys without a column are dropped, absent ones are null.

    With `loose` anything in a text column that is not text becomes its JSON text, exactly as it stands in the line.
    An object that has none of the keys in `promised` does not fit.
    Raises NotFromJson for a type that cannot be read.
    """

    def __init__(self, types: Mapping[str, pa.DataType], *, loose: bool, promised: Collection[str] = ()) -> None:
        self._promised = frozenset(promised)
        self._schema = pa.schema(list(types.items()))
        self._columns = [_Column(name, kind, loose=loose) for name, kind in types.items()]
        self._decode = _row_decoder(self._columns)
        self._values = [attrgetter(f"c{index}") for index in range(len(self._columns))]

    def decode(self, lines: Sequence[bytes | msgspec.Raw]) -> tuple[pa.RecordBatch, dict[int, str]]:
        """Return a row for each text, and by position why one does not fit: such a row has nulls."""
        faults: dict[int, str] = {}
        arrays = self._at_once(lines)
        if arrays is None:
            arrays, faults = self._one_by_one(lines)
        if self._promised:
            faults = self._strangers(lines) | faults
        if not arrays:  # a batch made of no columns would have no rows
            none: Any = pa.array([{}] * len(lines), pa.struct([]))
            return pa.RecordBatch.from_struct_array(none), faults
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema), faults

    def _at_once(self, lines: Sequence[bytes | msgspec.Raw]) -> list[Array] | None:
        """Return the columns if all lines fit."""
        if self._decode is None:
            return None
        try:
            _check_text(b"\n".join(lines))
            rows = [self._decode(line) for line in lines]
            return [
                column.array(list(map(value, rows))) for column, value in zip(self._columns, self._values, strict=True)
            ]
        except MISFITS:
            return None

    def _strangers(self, lines: Sequence[bytes | msgspec.Raw]) -> dict[int, str]:
        """Say of which objects nothing that was promised is there: all their columns are null."""
        fault = f"it has none of {names(self._promised)}"
        return {at: fault for at, line in enumerate(lines) if not has_some(self._promised, line)}

    def _one_by_one(self, lines: Sequence[bytes | msgspec.Raw]) -> tuple[list[Array], dict[int, str]]:
        rows, faults = objects(lines)
        misfits: dict[int, str] = {}
        arrays = [column.fit(rows, misfits) for column in self._columns]
        if misfits:
            for at in misfits:
                rows[at] = {}
            arrays = [column.fit(rows, {}) for column in self._columns]
        return arrays, faults | misfits


class _Column:
    """One column, of the texts of its values."""

    def __init__(self, name: str, kind: pa.DataType, *, loose: bool) -> None:
        self.name = name
        self.python, self.array = reading_of(kind)
        self._kind = kind
        self._loose = loose and is_text(kind)
        self._decode = decoder_of(self.python)

    def fit(self, rows: Sequence[Mapping[str, msgspec.Raw]], misfits: dict[int, str]) -> Array:
        """Return the column of some objects; what does not fit is null, and the first reason of a row is kept."""
        texts = [bytes(row.get(self.name, NULL)) for row in rows]
        if self._loose:
            texts = [text if text.startswith(b'"') or text == NULL else _quoted(text) for text in texts]
        return self.array(self._fitting(0, texts, misfits))

    def _fitting(self, first: int, texts: list[bytes], misfits: dict[int, str]) -> list[Any]:
        """Return the values that fit, and None for others: texts that do not fit together are tried as two halves."""
        try:
            values = self._decode(texts)
            self.array(values)
        except MISFITS:
            half = len(texts) // 2
            if half:
                return self._fitting(first, texts[:half], misfits) + self._fitting(first + half, texts[half:], misfits)
            misfits.setdefault(first, f"{self.name} is {_shown(texts[0])}, which is no {self._kind}")
            return [None]
        return values


def _row_decoder(columns: Sequence[_Column]) -> Callable[[bytes], Any] | None:
    """Return what decodes a line into a struct: fastest, but it has no names that JSON has to escape."""
    fields = [(f"c{index}", column.python | None, None) for index, column in enumerate(columns)]
    names = {f"c{index}": column.name for index, column in enumerate(columns)}
    try:
        return Decoder(msgspec.defstruct("Row", fields, rename=names, gc=False)).decode
    except ValueError:
        return None


def has_some(promised: AbstractSet[str], text: bytes | msgspec.Raw) -> bool:
    """Whether an object has one of the keys at least; False for what is no object."""
    try:
        return not promised.isdisjoint(_object.decode(text))
    except MISFITS:
        return False


def names(promised: Collection[str]) -> str:
    """Write names in one line, always in the same order."""
    return ", ".join(sorted(promised))


_object: Final = Decoder(dict[str, msgspec.Raw])


def objects(lines: Sequence[bytes | msgspec.Raw]) -> tuple[list[dict[str, msgspec.Raw]], dict[int, str]]:
    """Return each line's keys with the texts of their values, and by position why a line is no object: it has none."""
    rows: list[dict[str, msgspec.Raw]] = [{} for _ in lines]
    faults = {}
    for at, line in enumerate(lines):
        try:
            _check_text(line)
            rows[at] = _object.decode(line)
        except msgspec.ValidationError:
            faults[at] = f"{_shown(line)} is not an object"
        except RecursionError:
            faults[at] = "the line is nested too deeply"
        except MISFITS as error:
            faults[at] = f"the line is not JSON: {str(error).removeprefix('JSON is malformed: ')}"
    return rows, faults


def _check_text(text: bytes) -> None:
    """Raise ValueError unless it is UTF-8: msgspec does not look into the text that it skips."""
    str(text, "utf-8")


def _quoted(text: bytes) -> bytes:
    return msgspec.json.encode(str(text, "utf-8"))


def _shown(text: bytes) -> str:
    shown = str(text, "utf-8", "replace")
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
