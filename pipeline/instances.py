"""MindSpore Serving's instances: Arrow columns -> the values that its parser takes as they are meant, or a reason why.

The server refuses a whole request for one value that its parser does not take, hangs on base64 that it does not know,
and wraps numbers that are too large; so every rule is applied here, to each row by itself. JSON numbers are int32 and
float32 there, and an array has one type and one shape. What is declared by a type, and any array of more than
`MOST_LISTED` values, travels as base64 of little-endian bytes beside its type and shape.
"""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Raw
from pyarrow import types

from pipeline.encode import bytes_form, column_form
from pipeline.errors import JobError
from pipeline.jsonform import borders, is_bytes, is_text
from pipeline.leaves import Converted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pipeline.encode import Int64s
    from pipeline.leaves import Form

    Bools = npt.NDArray[np.bool_]
    Numbers = npt.NDArray[Any]

MOST_LISTED: Final = 1000
"""How many values of an array travel as JSON: of more, base64 is a fourth in bytes, and a twentieth in time."""

NULL: Final = " is null, and MindSpore Serving takes none"
EMPTY: Final = "MindSpore Serving takes no empty list"
_WIRE: Final = {"float16": "fp16", "float32": "fp32", "float64": "fp64"}
"""The names that all versions know."""

_NUMPY: Final = {name: np.dtype(name) for name in ("float16", "float32", "float64")}
_KEY: Final = "service.options.types"


class _Rows(NamedTuple):
    """Where the numbers of each row are among those of a column, and their shape; `faults` are of its form."""

    starts: Int64s
    stops: Int64s
    shapes: list[tuple[int, ...]]
    faults: dict[int, str]


def instance_form(field: pa.Field[Any], declared: str | None, *, reject_nan: bool) -> Form:
    """Return what converts a column, declared as a type or not. Raises JobError for what has no form there."""
    depth, leaf = _depth(field.type)
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


def _depth(kind: Any) -> tuple[int, Any]:
    """Return how many lists are around a type's values, and the type of those."""
    if _is_coded(kind):
        return _depth(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        if kind.extension_name == "arrow.bool8":
            return 0, pa.bool_()
        if kind.extension_name == "arrow.fixed_shape_tensor":
            return len(kind.shape), kind.value_type  # type: ignore[attr-defined]
        return (0, kind) if kind.extension_name == "arrow.uuid" else _depth(kind.storage_type)
    if _is_list(kind):
        depth, leaf = _depth(kind.value_type)
        return depth + 1, leaf
    return 0, kind


def _is_coded(kind: Any) -> bool:
    return types.is_dictionary(kind) or types.is_run_end_encoded(kind)


def _is_list(kind: Any) -> bool:
    kinds = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    return any(holds(kind) for holds in kinds)


def _is_number(kind: Any) -> bool:
    return types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)


def _plain(column: Any) -> Any:
    """Take away what only says how values are stored."""
    column = _decoded(column)
    while _is_wrapped(column.type):
        bools = column.type.extension_name == "arrow.bool8"
        column = _decoded(column.storage.cast(pa.bool_()) if bools else column.storage)
    return column


def _is_wrapped(kind: Any) -> bool:
    return isinstance(kind, pa.BaseExtensionType) and kind.extension_name != "arrow.uuid"


def _decoded(column: Any) -> Any:
    while _is_coded(column.type):
        if types.is_dictionary(column.type):
            column = _taken(column.dictionary, column.indices)
        else:
            column = _taken(column.values, pa.array(_runs(column)))
    return column


def _items(column: Any) -> tuple[Int64s, Any]:
    """Return how long each list of a column is, and the items of all of them."""
    starts, stops = borders(column)
    lengths = np.where(np.asarray(column.is_valid()), stops - starts, 0)  # a null may span anything
    some, total = lengths > 0, int(lengths.sum())
    starts, stops, values = starts[some], stops[some], _decoded(column.values)
    if not total or np.array_equal(starts[1:], stops[:-1]):
        return lengths, values.slice(int(starts[0]) if total else 0, total)
    before = np.cumsum(stops - starts) - (stops - starts)
    return lengths, _taken(values, pa.array(np.repeat(starts - before, stops - starts) + np.arange(total)))


def _runs(column: Any) -> Int64s:
    """Return for each row the run that it is in."""
    ends = column.run_ends.to_numpy()
    found: Int64s = np.searchsorted(ends, np.arange(len(column)) + column.offset, side="right")
    return found


def _taken(values: Any, which: Any) -> Any:
    try:
        return values.take(which)
    except pa.ArrowNotImplementedError:  # Arrow cannot take single values out of views
        nothing = pa.nulls(1, values.type)
        return pa.concat_arrays([nothing if at is None else values.slice(at, 1) for at in which.to_pylist()])


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
        column = _plain(column)
        counts, inside = _items(column)
        values, faults = _wrapped(items(_plain(inside)), wrapped)
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
    tail = f'","type":"{declared}","shape":[]}}'.encode()

    def encoded(column: Any) -> Converted:
        values, faults = form(column)
        wrong = {row: NULL for row, value in enumerate(values) if value is None} | dict(faults)
        if declared == "str":
            wrong |= {row: " is not UTF-8" for row, value in enumerate(values) if not _is_utf8(value)}
        return Converted([_b64(value or b"", tail) for value in values], wrong)

    return encoded


def _is_utf8(value: bytes | None) -> bool:
    try:
        (value or b"").decode()
    except UnicodeDecodeError:
        return False
    return True


def _b64(content: Any, tail: bytes) -> Raw:
    return Raw(b"".join((b'{"b64":"', b64encode(content), tail)))


def _tensors(field: pa.Field[Any], declared: str | None, *, reject_nan: bool) -> Form:
    """Convert numbers and booleans, and arrays of them."""
    kind = _kind_of(field.type, declared)
    wire = _WIRE.get(kind.name, kind.name)
    kind_there = _depth(field.type)[1]
    single = pa.float32() if types.is_float16(kind_there) else kind_there
    shown = column_form(pa.field(field.name, single), "input.send", reject_nan=False)

    def form(column: Any) -> Converted:
        rows, leaf = _peeled(column)
        flat, odd = _cast(leaf, kind, strict=declared is None or reject_nan)
        faults = dict(rows.faults)
        for row, at in _first(odd, rows):
            where = "".join(f"[{step}]" for step in np.unravel_index(at - rows.starts[row], rows.shapes[row]))
            faults.setdefault(row, where + _outside(leaf[at].as_py(), kind, declared=declared))
        if declared is None:
            empty = dict.fromkeys(np.flatnonzero(rows.starts == rows.stops).tolist(), f" is empty: {EMPTY}")
            faults = empty | faults
        listed = None if declared else _listed(rows, leaf, shown)
        places = zip(rows.starts.tolist(), rows.stops.tolist(), rows.shapes, strict=True)
        values = [
            None
            if row in faults
            else _nested(listed, start, stop, shape)
            if listed is not None and stop - start <= MOST_LISTED
            else _b64(flat[start:stop], _tail(wire, shape))
            for row, (start, stop, shape) in enumerate(places)
        ]
        return Converted(values, faults)

    return form


def _tail(wire: str, shape: tuple[int, ...]) -> bytes:
    return f'","type":"{wire}","shape":{list(shape)}}}'.replace(" ", "").encode()


def _kind_of(kind: Any, declared: str | None) -> np.dtype[Any]:
    """Return the type as which a column arrives there."""
    if declared:
        names = {wire: name for name, wire in _WIRE.items()}
        return np.dtype(names.get(declared, declared))
    leaf = _depth(kind)[1]
    if types.is_boolean(leaf):
        return np.dtype(np.bool_)
    return np.dtype(np.int32 if types.is_integer(leaf) else np.float32)


def _peeled(column: Any) -> tuple[_Rows, Any]:
    """Take the lists off a column: the numbers that were in it, and where those of each row are, with what shape."""
    count = len(column)
    starts, stops = np.arange(count), np.arange(1, count + 1)
    sizes: list[Int64s] = []
    faults: dict[int, str] = {}
    while True:
        tensor = getattr(column.type, "extension_name", "") == "arrow.fixed_shape_tensor"
        shape = column.type.shape if tensor else None
        order = column.type.permutation if tensor else None
        column = _plain(column)
        _note_nulls(column, starts, stops, depth=len(sizes), faults=faults)
        if not _is_list(column.type):
            break
        lengths, column = _items(column)
        ends = np.concatenate([[0], np.cumsum(lengths)])
        size, ragged = _alike(lengths, starts, stops)
        for row in np.flatnonzero(ragged).tolist():
            faults.setdefault(row, " is ragged, and MindSpore Serving takes arrays of one shape")
        starts, stops = ends[starts], ends[stops]
        if shape is None:
            sizes.append(size)
        else:
            column = _permuted(column, shape, order)
            axes = shape if order is None else [shape[axis] for axis in order]
            sizes += [np.full(count, axis) for axis in axes]
    shapes: list[tuple[int, ...]] = [()] * count
    if sizes:
        shapes = list(zip(*(size.tolist() for size in sizes), strict=True))
    for row, one in enumerate(shapes):
        if 0 in one[:-1]:
            faults.setdefault(row, f" has the shape {list(one)}: {EMPTY}, but for the innermost")
    return _Rows(starts, stops, shapes, faults), column


def _note_nulls(column: Any, starts: Int64s, stops: Int64s, *, depth: int, faults: dict[int, str]) -> None:
    if not column.null_count:
        return
    odd = column.is_null().to_numpy(zero_copy_only=False)
    for row, _ in _first(odd, _Rows(starts, stops, [], {})):
        faults.setdefault(row, NULL if not depth else " has a null in it, and MindSpore Serving takes none")


def _permuted(column: Any, shape: Sequence[int], order: Sequence[int] | None) -> Any:
    """Bring stored tensors into the order that they are meant in."""
    if order is None or list(order) == sorted(order):
        return column
    places = np.arange(len(column)).reshape(-1, *shape).transpose(0, *(axis + 1 for axis in order))
    return column.take(pa.array(places.ravel()))


def _alike(lengths: Int64s, starts: Int64s, stops: Int64s) -> tuple[Int64s, Bools]:
    """Return how long each row's lists are, and for which rows they differ."""
    some = stops > starts
    size = np.zeros(len(starts), np.int64)
    size[some] = lengths[starts[some]]
    owner = np.repeat(np.arange(len(starts)), stops - starts)
    ragged = np.zeros(len(starts), np.bool_)
    ragged[owner[lengths != size[owner]]] = True
    return size, ragged


def _first(odd: Bools, rows: _Rows) -> list[tuple[int, int]]:
    """Return (row, position) of the first odd value of each row that has one."""
    at = np.flatnonzero(odd)
    if not len(at):
        return []
    first = np.append(at, np.iinfo(np.int64).max)[np.searchsorted(at, rows.starts)]
    return [(row, int(first[row])) for row in np.flatnonzero(first < rows.stops).tolist()]


def _cast(leaf: Any, kind: np.dtype[Any], *, strict: bool) -> tuple[Numbers, Bools]:
    """Cast numbers, and tell which do not fit: outside, not as exact as they were, or with `strict` not finite.

    Only floats may be rounded, to floats.
    """
    if types.is_decimal(leaf.type):
        leaf = leaf.cast(pa.float64())
    if leaf.null_count:
        leaf = pc.fill_null(leaf, pa.scalar(0, pa.int8()).cast(leaf.type))
    given = leaf.to_numpy(zero_copy_only=False)
    with np.errstate(all="ignore"):
        cast = np.ascontiguousarray(given, kind.newbyteorder("<"))
        if kind.kind != "f":
            return cast, ~_within(given, kind)
        if given.dtype.kind != "f":
            return cast, ~_exact(cast, given)
        odd = ~np.isfinite(cast)
        return cast, odd if strict else odd & np.isfinite(given)


def _within(given: Numbers, kind: np.dtype[Any]) -> Bools:
    """Tell which numbers an integer type has."""
    low, high = (0, 1) if kind.kind == "b" else (np.iinfo(kind).min, np.iinfo(kind).max)
    if given.dtype.kind == "b":
        return np.ones(len(given), np.bool_)
    if given.dtype.kind != "f":
        found: Bools = (given >= low) & (given <= high)
    else:  # 2**63 - 1 is no double, and 2**63 is
        found = (given >= float(low)) & (given < float(high + 1)) & (given == np.trunc(given))
    return found


def _exact(cast: Numbers, given: Numbers) -> Bools:
    """Tell which integers are the same as floats."""
    if given.dtype.kind == "b":
        return np.ones(len(given), np.bool_)
    wide = cast.astype(np.float64)
    inside = np.isfinite(wide) & (wide < 2.0 ** (np.iinfo(given.dtype).bits - (given.dtype.kind == "i")))
    found: Bools = inside & (cast.astype(given.dtype) == given)
    return found


def _outside(value: object, kind: np.dtype[Any], *, declared: str | None) -> str:
    """Say which rule a number breaks."""
    if declared:
        return f" is {value}, which is no {declared}"
    name = "int32" if kind.kind == "i" else "float32"
    other = "float64" if kind.kind == "f" else "int64"
    if value in (float("inf"), float("-inf")) or value != value:  # noqa: PLR0124 - NaN
        return f" is {value}, and JSON has no such number; with {_KEY} it may travel as float32"
    return f" is {value}, outside {name}, as which MindSpore Serving reads it; with {_KEY} it may travel as {other}"


def _listed(rows: _Rows, leaf: Any, shown: Form) -> list[Any]:
    """Return the numbers as JSON has them: where there are rows that travel so."""
    if not ((rows.stops - rows.starts) <= MOST_LISTED).any():
        return []
    if types.is_decimal(leaf.type):
        return leaf.cast(pa.float64()).to_pylist()  # type: ignore[no-any-return]
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
