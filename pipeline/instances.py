"""MindSpore Serving's instances: Arrow columns -> the values that its parser takes as they are meant, or a reason why.

The server refuses a whole request for one value that its parser does not take, hangs on base64 that it does not know,
and wraps numbers that are too large; so every rule is applied here, to each row by itself. JSON numbers are int32 and
float32 there, and an array has one type and one shape. What is declared by a type, and any array of more than
`MOST_LISTED` values, travels as base64 of little-endian bytes beside its type and shape.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
from msgspec import Struct
from pyarrow import types

from pipeline.encode import bytes_form, column_form
from pipeline.errors import JobError
from pipeline.jsonform import is_bytes, is_text
from pipeline.leaves import Converted
from pipeline.tensors import EMPTY, NULL, Rows, cast_to, depth_of, first_of, items_of, peeled, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pipeline.leaves import Form

MOST_LISTED: Final = 1000
"""How many values of an array travel as JSON: of more, base64 is a fourth in bytes, and a twentieth in time."""

_WIRE: Final = {"float16": "fp16", "float32": "fp32", "float64": "fp64"}
"""The names that all versions know."""

_KEY: Final = "service.options.types"


class _Tensor(Struct, gc=False):
    """Little-endian bytes, of which msgspec makes base64 where it writes them: nothing is copied before."""

    b64: bytes | memoryview
    type: str
    shape: tuple[int, ...]


def instance_form(field: pa.Field[Any], declared: str | None, *, reject_nan: bool) -> Form:
    """Return what converts a column, declared as a type or not. Raises JobError for what has no form there."""
    depth, leaf = depth_of(field.type)
    numeric = _is_number(leaf) or types.is_boolean(leaf)
    if declared in {"str", "bytes"} or (declared and not numeric):
        return _declared_bytes(field, str(declared))
    if numeric:
        return _tensors(field, declared, reject_nan=reject_nan)
    if is_bytes(leaf):
        return _alone(lambda one: bytes_form(one, "input.send"), field, depth, leaf, {"b64": True})
    if types.is_nested(leaf):
        raise JobError(f"input.send: column {field.name!r} has type {field.type}; {_ALLOWED}; leave it out")
    return _alone(lambda one: column_form(one, "input.send", reject_nan=reject_nan), field, depth, leaf, {})


_ALLOWED: Final = "MindSpore Serving takes numbers, booleans, text, bytes, and arrays of numbers or booleans"


def _is_number(kind: Any) -> bool:
    return types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)


def _alone(
    form_of: Callable[[Any], Form], field: pa.Field[Any], depth: int, leaf: Any, wrapped: Mapping[str, bool]
) -> Form:
    """Convert text and bytes, which the server takes alone, or as the only item of a list."""
    if depth > 1:
        raise JobError(f"input.send: column {field.name!r} has type {field.type}; {_ALLOWED}; leave it out")
    if not depth:
        form = form_of(field)
        return lambda column: _wrapped(form(column), wrapped)
    items = form_of(pa.field(field.name, leaf))

    def single(column: Any) -> Converted:
        column = plain(column)
        counts, inside = items_of(column)
        values, faults = _wrapped(items(plain(inside)), wrapped)
        found: list[Any] = []
        wrong: dict[int, str] = {}
        for row, (count, end) in enumerate(zip(counts.tolist(), np.cumsum(counts).tolist(), strict=True)):
            found.append(values[end - count : end])
            if not column[row].is_valid:
                wrong[row] = NULL
            elif count != 1:
                wrong[row] = f" has {count} items, and MindSpore Serving takes a list of text or bytes with one"
            elif end - 1 in faults:
                wrong[row] = f"[0]{faults[end - 1]}"
        return Converted(found, wrong)

    return single


def _wrapped(column: Converted, wrapped: Mapping[str, bool]) -> Converted:
    """Refuse nulls, and put bytes into their objects."""
    faults = {row: NULL for row, value in enumerate(column.values) if value is None} | dict(column.faults)
    values = [{"b64": value} for value in column.values] if wrapped else column.values
    return Converted(values, faults)


def _declared_bytes(field: pa.Field[Any], declared: str) -> Form:
    """Convert text or bytes that are declared so; the server takes them as scalars."""
    if declared not in {"str", "bytes"} or not (is_text(field.type) or is_bytes(field.type)):
        raise JobError(
            f"{_KEY}.{field.name}: {declared!r} is not for a column of type {field.type}; "
            "allowed: numbers and booleans, alone or in lists, as their types; text or binary as str or bytes"
        )
    form = bytes_form(field, f"{_KEY}.{field.name}")

    def encoded(column: Any) -> Converted:
        values, faults = form(column)
        wrong = {row: NULL for row, value in enumerate(values) if value is None} | dict(faults)
        if declared == "str":
            wrong |= {row: " is not UTF-8" for row, value in enumerate(values) if not _is_utf8(value)}
        return Converted([_Tensor(value or b"", declared, ()) for value in values], wrong)

    return encoded


def _is_utf8(value: bytes | None) -> bool:
    try:
        (value or b"").decode()
    except UnicodeDecodeError:
        return False
    return True


def _tensors(field: pa.Field[Any], declared: str | None, *, reject_nan: bool) -> Form:
    """Convert numbers and booleans, and arrays of them."""
    kind = _kind_of(field.type, declared)
    wire = _WIRE.get(kind.name, kind.name)
    kind_there = depth_of(field.type)[1]
    single = pa.float32() if types.is_float16(kind_there) else kind_there
    shown = column_form(pa.field(field.name, single), "input.send", reject_nan=False)

    def form(column: Any) -> Converted:
        rows, leaf = peeled(column)
        flat, odd = cast_to(leaf, kind, strict=declared is None or reject_nan)
        faults = dict(rows.faults)
        for row, at in first_of(odd, rows):
            where = "".join(f"[{step}]" for step in np.unravel_index(at - rows.starts[row], rows.shapes[row]))
            faults.setdefault(row, where + _outside(leaf[at].as_py(), kind, declared=declared))
        if declared is None:
            empty = dict.fromkeys(np.flatnonzero(rows.starts == rows.stops).tolist(), f" is empty: {EMPTY}")
            faults = empty | faults
        listed = None if declared else _listed(rows, leaf, shown)
        places = zip(rows.starts.tolist(), rows.stops.tolist(), rows.shapes, strict=True)
        content, size = flat.view(np.uint8).data, flat.itemsize
        values = [
            None
            if row in faults
            else _nested(listed, start, stop, shape)
            if listed is not None and stop - start <= MOST_LISTED
            else _Tensor(content[start * size : stop * size], wire, shape)
            for row, (start, stop, shape) in enumerate(places)
        ]
        return Converted(values, faults)

    return form


def _kind_of(kind: Any, declared: str | None) -> np.dtype[Any]:
    """Return the type as which a column arrives there."""
    if declared:
        names = {wire: name for name, wire in _WIRE.items()}
        return np.dtype(names.get(declared, declared))
    leaf = depth_of(kind)[1]
    if types.is_boolean(leaf):
        return np.dtype(np.bool_)
    return np.dtype(np.int32 if types.is_integer(leaf) else np.float32)


def _outside(value: Any, kind: np.dtype[Any], *, declared: str | None) -> str:
    """Say which rule a number breaks."""
    vanishes = kind.kind == "f" and abs(value) < 1
    if declared:
        return f" is {value}, which is no {declared}" + (": it would arrive as 0" if vanishes else "")
    name = "int32" if kind.kind == "i" else "float32"
    other = "float64" if kind.kind == "f" else "int64"
    if value in (float("inf"), float("-inf")) or value != value:  # noqa: PLR0124 - NaN
        return f" is {value}, and JSON has no such number; with {_KEY} it may travel as float32"
    breaks = f"and 0 as {name}" if vanishes else f"outside {name}"
    return f" is {value}, {breaks}, as which MindSpore Serving reads it; with {_KEY} it may travel as {other}"


def _listed(rows: Rows, leaf: Any, shown: Form) -> list[Any]:
    """Return the numbers as JSON has them: where there are rows that travel so."""
    if not ((rows.stops - rows.starts) <= MOST_LISTED).any():
        return []
    if types.is_decimal(leaf.type):
        return [None if one is None else float(one) for one in leaf.to_pylist()]
    if types.is_float16(leaf.type):  # its own shortest text would be another float32
        leaf = leaf.cast(pa.float32())
    return shown(leaf).values


def _nested(flat: list[Any], start: int, stop: int, shape: tuple[int, ...]) -> Any:
    if not shape:
        return flat[start]
    nested = flat[start:stop]
    for size in reversed(shape[1:]):
        nested = [nested[at : at + size] for at in range(0, len(nested), size)]
    return nested
