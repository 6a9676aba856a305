"""Rows as the tensors of the Open Inference Protocol: a column's datatype and shape, and each row's values, flat.

In JSON the protocol has no null, no NaN, no FP16, and no bytes but text: a value that is none of its datatypes is
refused, or its column is. Its binary extension lacks null alone: rows are packed as JSON that has a tensor's bytes as
base64, beside how many they are.
"""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pyarrow as pa
from pyarrow import types

from pipeline.encode import Encoded, column_form, encoded_lines, wire_names
from pipeline.errors import JobError
from pipeline.jsonform import is_bytes, is_text, rows_of
from pipeline.leaves import Converted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.leaves import Form

_DATATYPES: Final[Mapping[pa.DataType, str]] = {
    pa.bool_(): "BOOL",
    pa.int8(): "INT8",
    pa.int16(): "INT16",
    pa.int32(): "INT32",
    pa.int64(): "INT64",
    pa.uint8(): "UINT8",
    pa.uint16(): "UINT16",
    pa.uint32(): "UINT32",
    pa.uint64(): "UINT64",
    pa.float16(): "FP16",
    pa.float32(): "FP32",
    pa.float64(): "FP64",
}
_MIXED: Final = "FP64"
_BINARY: Final = "set service.options.binary: true"
_LARGE: Final = ("INT64", "UINT64")
_NUMBERS: Final = ("INT", "UINT", "FP")


class _Column(NamedTuple):
    """A column that is sent: its datatype, and the shape of one row's value."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    form: Form


class TensorEncoder:
    """Encodes rows, each as the tensors of a request of its own. Raises JobError for columns that cannot be sent so.

    All columns are one tensor of the name `tensor`, if that is given; `binary` allows what is no value in JSON.
    """

    def __init__(
        self,
        schema: pa.Schema,
        send: Sequence[str],
        rename: Mapping[str, str],
        tensor: str | None,
        *,
        binary: bool = False,
    ) -> None:
        if not send:
            raise JobError("input.send: every column is in input.keep, and a request has a tensor; name one at least")
        self._columns = [_column(schema.field(name), binary=binary) for name in send]
        if tensor is None:
            heads = zip(wire_names(send, rename), self._columns, strict=True)
            self._heads = [_head(name, one.datatype, one.shape) for name, one in heads]
        else:
            datatype, shape = _as_one(self._columns)
            self._heads = [_head(tensor, datatype, shape)]
            self._columns = [_within(datatype, column) for column in self._columns]
        self._one = tensor is not None

    def encode(self, batch: pa.RecordBatch, row_uuids: pa.Array[Any] | None = None) -> Encoded:  # noqa: ARG002
        """Encode all rows of the batch, in order."""
        return encoded_lines(self._listed(batch))

    def _listed(self, batch: pa.RecordBatch) -> Converted:
        values = [_whole(column, batch) for column in self._columns]
        paths = [column.name for column in self._columns]
        return rows_of(self._together if self._one else self._each, paths, values, batch.num_rows)

    def _each(self, *values: list[Any]) -> list[dict[str, Any]]:
        return [{**head, "data": value} for head, value in zip(self._heads, values, strict=True)]

    def _together(self, *values: list[Any]) -> list[dict[str, Any]]:
        return [{**self._heads[0], "data": [one for value in values for one in value]}]


def _head(name: str, datatype: str, shape: Sequence[int]) -> dict[str, Any]:
    return {"name": name, "shape": [1, *shape], "datatype": datatype}


def _column(field: pa.Field[Any], *, binary: bool) -> _Column:
    shape, kind = _shape(field.type)
    datatype = "BYTES" if is_text(kind) or (binary and is_bytes(kind)) else _DATATYPES.get(kind)
    if datatype is None or (datatype == "FP16" and not binary):
        raise JobError(f"input.send: column {field.name!r} has type {field.type}{_mend(kind)}")
    return _Column(field.name, datatype, shape, column_form(field, "input.send", reject_nan=False))


def _shape(kind: Any) -> tuple[tuple[int, ...], Any]:
    """Return the shape of a value, and the type of what is in it."""
    if isinstance(kind, pa.FixedShapeTensorType):
        order = kind.permutation or range(len(kind.shape))
        return tuple(kind.shape[axis] for axis in order), kind.value_type
    if types.is_fixed_size_list(kind):
        shape, inner = _shape(kind.value_type)
        return (kind.list_size, *shape), inner
    if types.is_dictionary(kind):
        return (), kind.value_type
    return (), kind


def _mend(kind: Any) -> str:
    if types.is_list(kind) or types.is_large_list(kind):
        return ", and a tensor's rows have one shape; give its length in input.columns: fixed_size_list<...>[N]"
    if types.is_float16(kind):
        return f", and the protocol has no FP16 in JSON; {_BINARY}, or cast it in input.columns to float"
    if is_bytes(kind):
        return f", and in JSON the protocol's BYTES are text; {_BINARY}, or cast it in input.columns to string"
    return "; allowed in a tensor: numbers, bool, text, and lists of them of a fixed size"


def _within(datatype: str, column: _Column) -> _Column:
    """Return a column whose whole numbers are refused where the tensor that they become a part of would round them."""
    if datatype != _MIXED or column.datatype not in _LARGE:
        return column

    def form(values: Any) -> Converted:
        numbers, faults = column.form(values)
        rounded = {at: value for at, value in enumerate(numbers) if value is not None and int(float(value)) != value}
        told = {at: f" is {value}, which a tensor of FP64 would round" for at, value in rounded.items()}
        return Converted(numbers, {**told, **faults})

    return column._replace(form=form)


def _as_one(columns: Sequence[_Column]) -> tuple[str, tuple[int, ...]]:
    """Return datatype and shape of the one tensor that all columns make."""
    kinds = {column.datatype for column in columns}
    shapes = {column.shape for column in columns}
    if len(columns) == 1:
        return columns[0].datatype, columns[0].shape
    if shapes != {()}:
        raise JobError(
            "service.options.tensor: several columns, and lists among them; allowed: plain values, or one list"
        )
    if len(kinds) > 1 and not all(kind.startswith(_NUMBERS) for kind in kinds):
        told = ", ".join(sorted(kinds))
        raise JobError(f"service.options.tensor: the columns are {told}; allowed: of one datatype, or all numbers")
    return (_MIXED if len(kinds) > 1 else kinds.pop()), (len(columns),)


def _whole(column: _Column, batch: pa.RecordBatch) -> Converted:
    """Return a column's values, each flat; one with something missing has a fault."""
    values, faults = column.form(batch.column(column.name))
    flat = [_flat(value, len(column.shape)) for value in values]
    missing = {
        at: " is null, NaN or infinite, or has such a value in it, and a tensor has none"
        for at, value in enumerate(flat)
        if not all(map(_is_there, value))
    }
    return Converted(flat, {**missing, **faults})


def _is_there(value: object) -> bool:
    return value is not None and not (isinstance(value, float) and not isfinite(value))


def _flat(value: Any, depth: int) -> list[Any]:
    if depth == 0 or value is None:
        return [value]
    return list(value) if depth == 1 else [one for inner in value for one in _flat(inner, depth - 1)]
