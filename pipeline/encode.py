"""Record batches -> one JSON object a row, as bytes.

The rules of the row (numbers keep their digits, floats always show a point or an exponent, nulls are sent) hold for
every protocol that sends JSON. Columns become Python values, values become rows, rows become newline-separated JSON
in one call: a JSON text never contains a raw newline, so the newlines are the row borders.
"""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

Int64s = npt.NDArray[np.int64]

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

    Raises JobError when a column's type has no JSON form, or two columns get the same name.
    """

    def __init__(
        self, schema: pa.Schema, send: Sequence[str], *, rename: Mapping[str, str], reject_nan: bool = False
    ) -> None:
        self._send = tuple(send)
        self._reject_nan = reject_nan
        self._values = [_values_of(schema.field(name)) for name in send]
        self._row = _row_of(_wire_names(send, rename))

    def encode(self, batch: pa.RecordBatch) -> Encoded:
        """Encode all rows of the batch, in order."""
        refused: dict[int, str] = {}
        columns = [_undictionaried(batch.column(name)) for name in self._send]
        if self._reject_nan:
            refused |= _odd_floats(self._send, columns)
        values = []
        for name, convert, column in zip(self._send, self._values, columns, strict=True):
            try:
                values.append(convert(column))
            except UnicodeDecodeError:
                values.append(_mended(name, column, refused))
        rows = map(self._row, *values) if values else repeat({}, batch.num_rows)
        lines = _encoder.encode_lines(list(rows))  # a list: of an iterator, msgspec 0.22 never lets go
        return Encoded(lines, np.flatnonzero(np.frombuffer(lines, np.uint8) == ord("\n")) + 1, refused)


def _wire_names(send: Iterable[str], rename: Mapping[str, str]) -> list[str]:
    """Return the names that the service sees, which must differ."""
    senders: dict[str, str] = {}
    for column in send:
        name = rename.get(column, column)
        if name in senders:
            raise JobError(
                f"input.rename: columns {senders[name]!r} and {column!r} are both sent as {name!r}; "
                "give each a name of its own"
            )
        senders[name] = column
    return list(senders)


def _row_of(names: Sequence[str]) -> Callable[..., object]:
    """Return what makes an object of a row's values: a struct, which encodes fastest, or a dict.

    A struct cannot have a name that JSON has to escape (a quote, a backslash, a control character).
    """
    fields = [f"c{index}" for index in range(len(names))]
    try:
        return msgspec.defstruct("Row", fields, rename=dict(zip(fields, names, strict=True)), gc=False)
    except ValueError:
        return lambda *values: dict(zip(names, values, strict=True))


def _undictionaried(column: pa.Array[Any]) -> pa.Array[Any]:
    return column.dictionary_decode() if isinstance(column, pa.DictionaryArray) else column


def _odd_floats(names: Iterable[str], columns: Iterable[pa.Array[Any]]) -> dict[int, str]:
    """Return the rows with a NaN or an infinity, which JSON does not have."""
    refused: dict[int, str] = {}
    for name, column in zip(names, columns, strict=True):
        if pa.types.is_floating(column.type):
            odd = pc.invert(pc.is_finite(column)).fill_null(False)  # noqa: FBT003 - pyarrow's signature
            for position in np.flatnonzero(odd.to_numpy(zero_copy_only=False)).tolist():
                refused.setdefault(position, f"{name} is {column[position]}, and the job file says nan: reject")
    return refused


def _mended(name: str, column: pa.Array[Any], refused: dict[int, str]) -> Sequence[object]:
    """Return a text column in which not everything is UTF-8, with U+FFFD for what is not; refuse those rows."""
    values: list[str | None] = []
    for position, raw in enumerate(column.cast(pa.large_binary()).to_pylist()):
        value = None if raw is None else raw.decode("utf-8", "replace")
        if value is not None and value.encode() != raw:
            refused.setdefault(position, f"{name} is not UTF-8")
        values.append(value)
    return values


def _values_of(field: pa.Field[Any]) -> Callable[[Any], Sequence[object]]:
    """Choose how a column becomes Python values that encode to the right JSON."""
    kind = field.type.value_type if isinstance(field.type, pa.DictionaryType) else field.type
    for convert, types in _CONVERSIONS.items():
        if any(holds(kind) for holds in types):
            return convert
    raise JobError(f"input.send: column {field.name!r} has type {field.type}, which has no JSON form yet; leave it out")


def _numbers(column: pa.Array[Any]) -> Sequence[object]:
    """Without nulls numpy's list is three times as fast as Arrow's."""
    if column.null_count == 0:
        values: list[object] = column.to_numpy(zero_copy_only=False).tolist()
        return values
    return column.to_pylist()


def _single_floats(column: pa.Array[Any]) -> Sequence[object]:
    """Return doubles whose shortest form is the shortest form of the singles (a float32 0.1 is 0.1)."""
    return _numbers(column.cast(pa.string()).cast(pa.float64()))


def _half_floats(column: pa.Array[Any]) -> Sequence[object]:
    """Return doubles whose shortest form is numpy's of the halves; Arrow writes halves as if they were doubles."""
    return [None if value is None else float(str(np.float16(value))) for value in column.to_pylist()]


def _objects(column: pa.Array[Any]) -> Sequence[object]:
    return column.to_pylist()


_CONVERSIONS: Final[dict[Callable[[Any], Sequence[object]], tuple[Callable[[pa.DataType], bool], ...]]] = {
    _numbers: (pa.types.is_float64, pa.types.is_integer, pa.types.is_boolean),
    _single_floats: (pa.types.is_float32,),
    _half_floats: (pa.types.is_float16,),
    _objects: (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_fixed_size_binary,
        pa.types.is_binary_view,
        pa.types.is_decimal,
        pa.types.is_null,
    ),
}
