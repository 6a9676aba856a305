"""Columns cast to declared types: what fits keeps its value, what does not becomes null, with the reason.

Nothing is cut, wrapped or rounded in silence: 3.0 fits int64 and 3.5 does not, nor does 2**53 + 1 fit double. Only what
a decimal number is rounded to anyway is: a double to float, text or a decimal to a float of any width, unless it
becomes infinite. Text is read as Arrow reads it; binary in it is base64, a list, struct or map is JSON. Everything but
binary is written as text as the row's JSON writes it; binary must be UTF-8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from pipeline.castleaves import Array, anything, conversion, either, is_binary, neither, text_of
from pipeline.jsonform import NoJsonForm, form_of
from pipeline.jsontypes import MISFITS, NotFromJson, is_text
from schemas.values import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Bools = npt.NDArray[np.bool_]
Int64s = npt.NDArray[np.int64]

_SHOWN: Final = 80


class Cast(NamedTuple):
    """A column in its new type, null at the positions that are `odd`: sorted, they do not fit."""

    values: Array
    odd: Int64s


def cast(name: str, column: pa.Array[Any], kind: pa.DataType) -> tuple[pa.Array[Any], dict[int, str]]:
    """Return the column `name` in the type `kind`, and by position why a value does not fit: such a value is null.

    "x is 'abc', which is no double". A column that fits is cast as a whole; one that does not is halved until what
    does not fit is alone, so its cost grows a little faster than its rows. Where Arrow lacks a cast, nothing fits.
    """
    values, odd = _cast(column, kind)
    return values, {at: f"{name} is {_shown(column.slice(at, 1))}, which is no {kind}" for at in odd.tolist()}


def _cast(column: Array, kind: Any) -> Cast:
    if column.type == kind:
        return _all(column)
    for stored, wanted, way in _WAYS:
        if stored(column.type) and wanted(kind):
            try:
                return way(column, kind)
            except pa.ArrowNotImplementedError:  # such as lists of extension types
                return _none(column, kind)
    return _halved(column, kind, conversion(column.type, kind))


def _all(values: Array) -> Cast:
    return Cast(values, np.empty(0, np.int64))


def _none(column: Array, kind: Any) -> Cast:
    """Nothing fits, but for nulls."""
    return Cast(pa.nulls(len(column), kind), np.flatnonzero(_valid(column)))


def _valid(column: Array) -> Bools:
    return np.asarray(column.is_valid())


def _halved(column: Array, kind: Any, convert: Callable[[Array, Any], Array]) -> Cast:
    """Convert as much at once as goes at once."""
    left, done, odd, at = [column], [], [], 0
    while left:
        part = left.pop()
        half = len(part) // 2
        try:
            fit = convert(part, kind)
        except (pa.ArrowNotImplementedError, NotFromJson, NoJsonForm):  # no value of this type fits
            return _none(column, kind)
        except (*MISFITS, pa.ArrowException):
            if half:
                left += [part.slice(half), part.slice(0, half)]
                continue
            fit = pa.nulls(len(part), kind)
            odd += [at] if part.null_count < len(part) else []
        done.append(fit)
        at += len(part)
    return Cast(done[0] if len(done) == 1 else pa.concat_arrays(done), np.array(odd, np.int64))


def _then(first: Cast, kind: Any) -> Cast:
    """Cast on what has been cast to a type in between."""
    values, odd = _cast(first.values, kind)
    return Cast(values, np.union1d(first.odd, odd))


def _shown(one: Array) -> str:
    """Show a single value."""
    try:
        [value] = form_of(one.type)(one).values
    except NoJsonForm:
        value = None
    text = shown(value) if isinstance(value, str | bytes) else text_of(value) or "a value that JSON cannot write"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _plain(column: Array) -> Array:
    """Return text or binary that Arrow can take values of: it cannot take them out of views."""
    return column.cast(_VIEWS[column.type]) if column.type in _VIEWS else column


def _from_dictionary(column: Array, kind: Any) -> Cast:
    return _cast(_plain(column.dictionary).take(column.indices), kind)


def _from_runs(column: Array, kind: Any) -> Cast:
    first, count = column.find_physical_offset(), column.find_physical_length()
    ends = column.run_ends.to_numpy()[first : first + count]
    which = np.searchsorted(ends, np.arange(len(column)) + column.offset, side="right")
    return _cast(_plain(column.values.slice(first, count)).take(pa.array(which)), kind)


def _to_dictionary(column: Array, kind: Any) -> Cast:
    values, odd = _cast(column, kind.value_type)
    encoded = _plain(values).dictionary_encode()
    codes, over = _cast(encoded.indices, kind.index_type)
    words = encoded.dictionary.cast(kind.value_type)
    return Cast(pa.DictionaryArray.from_arrays(codes, words, ordered=kind.ordered), np.union1d(odd, over))


def _to_runs(column: Array, kind: Any) -> Cast:
    """Make each value a run: they are read one by one anyway."""
    values, odd = _cast(column, kind.value_type)
    ends = pa.array(range(1, len(column) + 1), kind.run_end_type)
    return Cast(pa.RunEndEncodedArray.from_arrays(ends, values), odd)


def _to_extension(column: Array, kind: Any) -> Cast:
    values, odd = _cast(column, kind.storage_type)
    return Cast(pa.ExtensionArray.from_storage(kind, values), odd)


def _structs(column: Array, kind: Any) -> Cast:
    """Cast fields by name; one that is not there is null, one that is not wanted is dropped."""
    valid = _valid(column)
    there = dict(zip((field.name for field in column.type), column.flatten(), strict=True))
    odd = np.zeros(len(column), bool)
    fields = []
    for field in kind:
        values, wrong = (
            _cast(there[field.name], field.type) if field.name in there else _all(pa.nulls(len(column), field.type))
        )
        fields.append(values)
        odd[wrong] = True
    return Cast(_struct(fields, kind, valid & ~odd), np.flatnonzero(odd))


def _struct(fields: Sequence[Array], kind: Any, valid: Bools) -> Array:
    if not fields:
        return pa.array([{} if there else None for there in valid.tolist()], kind)
    return pa.StructArray.from_arrays(fields, fields=list(kind), mask=pa.array(~valid))


def _lists(column: Array, kind: Any) -> Cast:
    """Cast all items as one column; a list with an item that does not fit does not fit."""
    valid = _valid(column)
    stored, sizes = _items(column, valid)
    wanted = pa.struct([("key", kind.key_type), ("value", kind.item_type)]) if types.is_map(kind) else kind.value_type
    items, wrong = _cast(stored, wanted)
    odd = np.zeros(len(column), bool)
    odd[np.searchsorted(np.cumsum(sizes), wrong, side="right")] = True
    if types.is_fixed_size_list(kind):
        odd |= valid & (sizes != kind.list_size)
    return Cast(_listed(items, sizes, valid & ~odd, kind), np.flatnonzero(odd))


def _items(column: Array, valid: Bools) -> tuple[Array, Int64s]:
    """Return the items of all lists, and how many each has; those of a map are structs of key and value."""
    if types.is_map(column.type):
        borders = column.offsets.to_numpy().astype(np.int64)
        entries = column.values.slice(borders[0], borders[-1] - borders[0])
        pairs = pa.StructArray.from_arrays(entries.flatten(), ["key", "value"])
        return _only(pairs, np.diff(borders), valid, pairs.slice(0, 0))
    sizes = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    return column.flatten(), sizes.astype(np.int64)


def _only(items: Array, sizes: Int64s, valid: Bools, nothing: Array) -> tuple[Array, Int64s]:
    """Return the items of the lists that are valid, and `nothing` in the place of the others'."""
    if (sizes[~valid] == len(nothing)).all():
        return items, sizes
    rows = zip((np.cumsum(sizes) - sizes).tolist(), sizes.tolist(), valid.tolist(), strict=True)
    kept = [items.slice(start, size) if there else nothing for start, size, there in rows]
    return pa.concat_arrays(kept), np.where(valid, sizes, len(nothing))


def _listed(items: Array, sizes: Int64s, valid: Bools, kind: Any) -> Array:
    """Cut items into lists; those that are not valid are null, and hold nothing, or nulls where all are of one size."""
    nothing = pa.nulls(kind.list_size if types.is_fixed_size_list(kind) else 0, items.type)
    items, sizes = _only(items, sizes, valid, nothing)
    make, width = _LISTS[type(kind)]
    starts, options = pa.array(np.cumsum(sizes) - sizes, width), {"type": kind, "mask": pa.array(~valid)}
    if types.is_fixed_size_list(kind):
        return make(items, **options)
    if types.is_list_view(kind) or types.is_large_list_view(kind):
        return make(starts, pa.array(sizes, width), items, **options)
    offsets = pa.concat_arrays([starts, pa.array([len(items)], width)])
    return make(offsets, *(items.flatten() if types.is_map(kind) else [items]), **options)


def _is_extension(kind: Any) -> bool:
    return isinstance(kind, pa.BaseExtensionType)


_is_list: Final = either(
    types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view
)
_VIEWS: Final = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
_LISTS: Final[dict[Any, tuple[Callable[..., Array], Any]]] = {
    pa.ListType: (pa.ListArray.from_arrays, pa.int32()),
    pa.LargeListType: (pa.LargeListArray.from_arrays, pa.int64()),
    pa.ListViewType: (pa.ListViewArray.from_arrays, pa.int32()),
    pa.LargeListViewType: (pa.LargeListViewArray.from_arrays, pa.int64()),
    pa.FixedSizeListType: (pa.FixedSizeListArray.from_arrays, pa.int32()),
    pa.MapType: (pa.MapArray.from_arrays, pa.int32()),
}
_WAYS: Final[Sequence[tuple[Any, Any, Callable[[Array, Any], Cast]]]] = (
    (types.is_dictionary, anything, _from_dictionary),
    (types.is_run_end_encoded, anything, _from_runs),
    (anything, types.is_run_end_encoded, _to_runs),
    (types.is_null, anything, _none),
    (anything, types.is_null, _none),
    (anything, types.is_dictionary, _to_dictionary),
    (anything, _is_extension, _to_extension),
    (_is_extension, neither(is_text), lambda column, kind: _cast(column.storage, kind)),
    (types.is_float16, neither(is_text, types.is_decimal), lambda column, kind: _cast(column.cast(pa.float64()), kind)),
    (types.is_string_view, neither(is_text), lambda column, kind: _cast(column.cast(pa.string()), kind)),
    (types.is_fixed_size_binary, neither(is_binary), lambda column, kind: _cast(column.cast(pa.binary()), kind)),
    (is_binary, neither(is_binary, is_text), lambda column, kind: _then(_cast(column, pa.string()), kind)),
    (types.is_struct, types.is_struct, _structs),
    (types.is_map, types.is_map, _lists),
    (either(_is_list, types.is_map), _is_list, _lists),
)
