"""Tensors as bytes, as the Open Inference Protocol's binary extension has them: numbers little-endian, row by row.

BOOL is a byte a value; each value of BYTES has its length before it, in four bytes. Nothing here makes a Python object
of a number that is sent: what is in a column's buffers is cut into rows.
"""

from __future__ import annotations

from math import prod
from struct import Struct, error
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import types

from pipeline.encode import bytes_form
from pipeline.leaves import floats
from pipeline.tensors import cast_to, plain
from schemas.values import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pipeline.tensors import Bools, Numbers

NUMBERS: Final[Mapping[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
}
"""By datatype; BYTES is the one that is not here."""

_LENGTH: Final = Struct("<I")
_DOUBLE: Final = 8
_NULL: Final = " is null, or has a null in it, and a tensor has none"


class Content(NamedTuple):
    """The bytes of each row's value, and by row why some must not be sent; `faults` are of the form of a column's."""

    rows: list[memoryview]
    faults: Mapping[int, str]


def content_of(column: Any, datatype: str, shape: Sequence[int], *, reject_nan: bool) -> Content:
    """Take a column's values as a datatype; each row's have this `shape`. Numbers are not copied, but to be cast."""
    leaf, missing = _flattened(column)
    nulls = dict.fromkeys(np.flatnonzero(missing).tolist(), _NULL)
    if datatype == "BYTES":
        rows, faults = _bytes_of(leaf, prod(shape), len(column))
    else:
        rows, faults = _numbers_of(column, leaf, datatype, reject_nan=reject_nan)
    return Content(rows, {**faults, **nulls})


def _numbers_of(column: Any, leaf: Any, datatype: str, *, reject_nan: bool) -> Content:
    cast, odd = cast_to(leaf, NUMBERS[datatype], strict=reject_nan)
    flat = np.ascontiguousarray(_turned(cast, column.type)).reshape(-1)
    faults = {}
    if odd.any():
        faults = {row: _why(leaf, row, datatype) for row in np.flatnonzero(_any(odd, len(column))).tolist()}
    return Content(_cut(flat.view(np.uint8).data, len(column)), faults)


def _cut(content: memoryview, rows: int) -> list[memoryview]:
    size = len(content) // rows if rows else 0
    return [content[at * size : (at + 1) * size] for at in range(rows)]


def _why(leaf: Any, row: int, datatype: str) -> str:
    if types.is_floating(leaf.type):
        return " is NaN or infinite, or has such a value in it, and the job file says nan: reject"
    return f" is {leaf[row]}, which a tensor of {datatype} would round"  # of plain values: lists have their own


def _bytes_of(leaf: Any, each: int, rows: int) -> Content:
    values, faults = bytes_form(pa.field("", leaf.type), "input.send")(leaf)
    packed = [_LENGTH.pack(len(one)) + one for one in (value or b"" for value in values)]
    if each != 1:
        packed = [b"".join(packed[at * each : (at + 1) * each]) for at in range(rows)]
    return Content([memoryview(one) for one in packed], {at // each: fault for at, fault in faults.items()})


def _flattened(column: Any) -> tuple[Any, Bools]:
    """Take lists of a fixed size off a column: the values of all rows, and which rows have a null somewhere."""
    count = len(column)
    missing = np.zeros(count, np.bool_)
    while True:
        column = plain(column)
        if column.null_count:
            missing[_any(column.is_null().to_numpy(zero_copy_only=False), count)] = True
        if not types.is_fixed_size_list(column.type):
            return column, missing
        size = column.type.list_size
        column = column.values.slice(column.offset * size, len(column) * size)


def _any(odd: Bools, rows: int) -> Bools:
    found: Bools = np.logical_or.reduce(odd.reshape(rows, -1), axis=1)
    return found


def _turned(numbers: Numbers, kind: Any) -> Numbers:
    """Bring tensors into the order that they are meant in, where they are stored in another one."""
    if not isinstance(kind, pa.FixedShapeTensorType) or kind.permutation is None:
        return numbers
    turned: Numbers = numbers.reshape(-1, *kind.shape).transpose(0, *(axis + 1 for axis in kind.permutation))
    return turned


def values_of(datatype: str, content: memoryview) -> Numbers:
    """Return the values in a tensor's bytes, flat, as they are written in JSON: floats as short as their own width.

    BYTES that are UTF-8 are text. Raises ValueError for another datatype, and for bytes that are not of this one.
    """
    if datatype == "BYTES":
        return np.fromiter(_texts(bytes(content)), np.object_)
    if datatype not in NUMBERS:
        raise ValueError(f"{shown(datatype)} is no datatype; known: {', '.join(NUMBERS)}, BYTES")
    kind = NUMBERS[datatype]
    numbers: Numbers = np.frombuffer(content, kind)
    if kind.kind == "b":
        numbers = numbers.view(np.uint8) != 0  # another byte than 0 and 1 would be true, and not equal to true
    elif kind.kind == "f" and kind.itemsize < _DOUBLE:
        numbers = np.array(floats(pa.array(numbers.copy())).values, np.float64)  # Arrow wants them aligned
    return numbers


def _texts(content: bytes) -> Iterator[str | bytes]:
    at = 0
    while at < len(content):
        try:
            (size,) = _LENGTH.unpack_from(content, at)
        except error:
            raise ValueError("its last value is cut short") from None
        at += _LENGTH.size + size
        if at > len(content):
            raise ValueError("its last value is cut short")
        value = content[at - size : at]
        try:
            yield value.decode()
        except UnicodeDecodeError:
            yield value
