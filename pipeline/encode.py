"""Record batches -> one JSON object a row, as bytes.

The rules of the row (numbers keep their digits, floats always show a point or an exponent, nulls are sent) hold for
every protocol that sends JSON. Columns become Python values, values become rows, rows become newline-separated JSON
in one call: a JSON text never contains a raw newline, so the newlines are the row borders.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Raw

from pipeline.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_encoder: Final = msgspec.json.Encoder(decimal_format="number")


class Encoded(NamedTuple):
    """Rows as JSON: `lines` has a newline after each row, `ends[i]` is the offset behind row i's newline.

    `refused` maps a row's position to the reason why it must not be sent.
    """

    lines: bytes
    ends: Int64s
    refused: Mapping[int, str]


class RowEncoder:
    """Encodes batches of one schema. `rename` maps a column to the name the service expects.

    Raises JobError when a column's type has no JSON form.
    """

    def __init__(
        self, schema: pa.Schema, send: Sequence[str], *, rename: Mapping[str, str], reject_nan: bool = False
    ) -> None:
        self._send = tuple(send)
        self._reject_nan = reject_nan
        self._values = [_values_of(schema.field(name)) for name in send]
        fields = [f"c{index}" for index in range(len(send))]
        wire = {field: rename.get(name, name) for field, name in zip(fields, send, strict=True)}
        try:
            self._row = msgspec.defstruct("Row", fields, rename=wire, gc=False)
        except ValueError as error:
            raise JobError(f"input.rename: a name cannot be sent as it is: {error}; give it another one") from None

    def encode(self, batch: pa.RecordBatch) -> Encoded:
        """Encode all rows of the batch, in order."""
        columns = [batch.column(name) for name in self._send]
        values = [convert(column) for convert, column in zip(self._values, columns, strict=True)]
        lines = _encoder.encode_lines(map(self._row, *values))
        ends = np.flatnonzero(np.frombuffer(lines, np.uint8) == ord("\n")) + 1
        return Encoded(lines, ends, self._refusals(columns) if self._reject_nan else {})

    def _refusals(self, columns: Iterable[pa.Array[Any]]) -> dict[int, str]:
        refused = {}
        for name, column in zip(self._send, columns, strict=True):
            if pa.types.is_floating(column.type):
                odd = pc.invert(pc.is_finite(column)).fill_null(False)  # noqa: FBT003 - pyarrow's signature
                for position in np.flatnonzero(odd.to_numpy(zero_copy_only=False)):
                    refused[int(position)] = f"{name} is {column[int(position)]}, and the job file says nan: reject"
        return refused


def _values_of(field: pa.Field[Any]) -> Callable[[Any], Sequence[object]]:
    """Choose how a column becomes Python values that encode to the right JSON."""
    for holds, convert in _CONVERSIONS:
        if holds(field.type):
            return convert
    raise JobError(f"input.send: column {field.name!r} has type {field.type}, which has no JSON form yet; leave it out")


def _plain(column: pa.Array[Any]) -> Sequence[object]:
    """Without nulls numpy's list is three times as fast as Arrow's."""
    if column.null_count == 0:
        values: list[object] = column.to_numpy(zero_copy_only=False).tolist()
        return values
    return column.to_pylist()


def _narrow_float(column: pa.Array[Any]) -> Sequence[object]:
    """Return doubles whose shortest form is the shortest form at the column's own width (a float32 0.1 is 0.1)."""
    return _plain(column.cast(pa.string()).cast(pa.float64()))


_CONVERSIONS: Final[tuple[tuple[Callable[[pa.DataType], bool], Callable[[Any], Sequence[object]]], ...]] = (
    (pa.types.is_float64, _plain),
    (pa.types.is_floating, _narrow_float),
    (pa.types.is_integer, _plain),
    (pa.types.is_boolean, _plain),
    (pa.types.is_string, lambda column: column.to_pylist()),
    (pa.types.is_large_string, lambda column: column.to_pylist()),
    (pa.types.is_dictionary, lambda column: column.to_pylist()),
    (pa.types.is_decimal, lambda column: column.to_pylist()),
    (pa.types.is_binary, lambda column: column.to_pylist()),
    (pa.types.is_null, lambda column: column.to_pylist()),
)
