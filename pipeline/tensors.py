"""Arrow columns of numbers, alone or in lists of any depth -> numpy arrays, with each row's place and shape in them.

Nothing here makes a Python object of a number: lists are taken off a column by their offsets, and what a row has that
no tensor can have (nulls, ragged lists) is a fault of that row.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from pipeline.jsonform import borders

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.encode import Int64s

    Bools = npt.NDArray[np.bool_]
    Numbers = npt.NDArray[Any]

_SERVER: Final = "MindSpore Serving"
NULL: Final = f" is null, and {_SERVER} takes none"
EMPTY: Final = f"{_SERVER} takes no empty list"


NONE: Final = np.empty(0, np.bool_)
"""No value is odd."""


class Rows(NamedTuple):
    """Where the numbers of each row are among those of a column, and their shape; `faults` are of its form."""

    starts: Int64s
    stops: Int64s
    shapes: list[tuple[int, ...]]
    faults: dict[int, str]


def depth_of(kind: Any) -> tuple[int, Any]:
    """Return how many lists are around a type's values, and the type of those."""
    if _is_coded(kind):
        return depth_of(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        if kind.extension_name == "arrow.bool8":
            return 0, pa.bool_()
        if kind.extension_name == "arrow.fixed_shape_tensor":
            return len(kind.shape), kind.value_type  # type: ignore[attr-defined]
        return (0, kind) if kind.extension_name == "arrow.uuid" else depth_of(kind.storage_type)
    if _is_list(kind):
        depth, leaf = depth_of(kind.value_type)
        return depth + 1, leaf
    return 0, kind


def _is_coded(kind: Any) -> bool:
    return types.is_dictionary(kind) or types.is_run_end_encoded(kind)


def _is_list(kind: Any) -> bool:
    kinds = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    return any(holds(kind) for holds in kinds)


def plain(column: Any) -> Any:
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


def items_of(column: Any) -> tuple[Int64s, Any]:
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
        taken = [nothing if at is None else values.slice(at, 1) for at in which.to_pylist()]
        return pa.concat_arrays([nothing.slice(1), *taken])


def peeled(column: Any, server: str = _SERVER) -> tuple[Rows, Any]:
    """Take the lists off a column: the numbers that were in it, and where those of each row are, with what shape.

    `server` is whose rules the faults name.
    """
    count = len(column)
    starts, stops = np.arange(count), np.arange(1, count + 1)
    sizes: list[Int64s] = []
    faults: dict[int, str] = {}
    while True:
        tensor = getattr(column.type, "extension_name", "") == "arrow.fixed_shape_tensor"
        shape = column.type.shape if tensor else None
        order = column.type.permutation if tensor else None
        column = plain(column)
        _note_nulls(column, Rows(starts, stops, [], faults), server, depth=len(sizes))
        if not _is_list(column.type):
            break
        lengths, column = items_of(column)
        ends = np.concatenate([[0], np.cumsum(lengths)])
        size, ragged = _alike(lengths, starts, stops)
        for row in np.flatnonzero(ragged).tolist():
            faults.setdefault(row, f" is ragged, and {server} takes arrays of one shape")
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
            faults.setdefault(row, f" has the shape {list(one)}: {server} takes no empty list, but for the innermost")
    return Rows(starts, stops, shapes, faults), column


def _note_nulls(column: Any, rows: Rows, server: str, *, depth: int) -> None:
    if not column.null_count:
        return
    odd = column.is_null().to_numpy(zero_copy_only=False)
    for row, _ in first_of(odd, rows):
        rows.faults.setdefault(row, f" {'has a null in it' if depth else 'is null'}, and {server} takes none")


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


def first_of(odd: Bools, rows: Rows) -> list[tuple[int, int]]:
    """Return (row, position) of the first odd value of each row that has one."""
    at = np.flatnonzero(odd)
    if not len(at):
        return []
    first = np.append(at, np.iinfo(np.int64).max)[np.searchsorted(at, rows.starts)]
    return [(row, int(first[row])) for row in np.flatnonzero(first < rows.stops).tolist()]


def cast_to(leaf: Any, kind: np.dtype[Any], *, strict: bool) -> tuple[Numbers, Bools]:
    """Cast numbers, and tell which do not fit: outside, not as exact as they were, or with `strict` not finite.

    Only floats and decimals may be rounded, to floats, and none of them to zero. Where all fit, whatever they are,
    nobody looks at them.
    """
    if types.is_decimal(leaf.type):
        return _of_decimals([value or Decimal(0) for value in leaf.to_pylist()], kind)
    if leaf.null_count:
        leaf = pc.fill_null(leaf, pa.scalar(0, pa.int8()).cast(leaf.type))
    given = leaf.to_numpy(zero_copy_only=False)
    with np.errstate(all="ignore"):
        cast = np.ascontiguousarray(given, kind.newbyteorder("<"))
        if kind.kind != "f":
            return cast, ~_within(given, kind)
        if given.dtype.kind != "f":
            return cast, ~_exact(cast, given)
        widened = np.can_cast(given.dtype, kind)
        if widened and not strict:
            return cast, NONE
        odd = ~np.isfinite(cast)
        odd = odd if strict else odd & np.isfinite(given)
        return cast, odd if widened else odd | ((cast == 0) & (given != 0))


def _of_decimals(given: Sequence[Decimal], kind: np.dtype[Any]) -> tuple[Numbers, Bools]:
    """Cast decimals, each by its own digits: Arrow would make doubles of them first, and not always the nearest."""
    if kind.kind == "f":
        with np.errstate(all="ignore"):
            cast = np.array([float(one) for one in given], np.float64).astype(kind.newbyteorder("<"))
        there = np.array([bool(one) for one in given], np.bool_)
        return cast, ~np.isfinite(cast) | ((cast == 0) & there)
    low, high = _range(kind)
    odd = [not (low <= one <= high and one == int(one)) for one in given]
    whole = [0 if strange else int(one) for one, strange in zip(given, odd, strict=True)]
    return np.array(whole, kind.newbyteorder("<")), np.array(odd, np.bool_)


def _range(kind: np.dtype[Any]) -> tuple[int, int]:
    return (0, 1) if kind.kind == "b" else (int(np.iinfo(kind).min), int(np.iinfo(kind).max))


def _within(given: Numbers, kind: np.dtype[Any]) -> Bools:
    """Tell which numbers an integer type has."""
    low, high = _range(kind)
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
