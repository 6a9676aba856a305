"""The JSON form of every Arrow type: which conversion a column's type has, and how nested types are put together.

A list's items are converted as one column and cut into rows afterwards. A struct is an object; a map is an object if
its keys are text, else a list of [key, value] pairs; a dictionary or run-end encoding is as the values in it. A tensor
of fixed shape is as deep a list as its shape; bool8 is true or false, a uuid its text; any other extension type is
as its storage. Only unions, and structs with two fields of one name, have no form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import types

from pipeline import leaves
from pipeline.leaves import Converted, Form

if TYPE_CHECKING:
    from collections.abc import Sequence

Int64s = npt.NDArray[np.int64]
Inner = Callable[[pa.DataType], Form]
"""Chooses the form of a type within a type."""


class NoJsonForm(TypeError):
    """What is in a type that has no JSON form, in words: "a union"."""


def form_of(kind: pa.DataType, *, reject_nan: bool = False, b64: bool = False) -> Form:
    """Return what converts columns of a type. Raises NoJsonForm.

    With `reject_nan` NaN and infinities are faults; with `b64` bytes are `{"b64": text}`, at any depth.
    """
    if reject_nan and types.is_floating(kind):
        return leaves.finite_floats
    if b64 and any(holds(kind) for holds in _BYTES):
        return _b64
    for holds, form in _LEAVES:
        if holds(kind):
            return form
    for holds, choose in _NESTED:
        if holds(kind):
            return choose(kind, partial(form_of, reject_nan=reject_nan, b64=b64))
    raise NoJsonForm("a union" if types.is_union(kind) else str(kind))


def _b64(column: Any) -> Converted:
    values, faults = leaves.objects(column)
    return Converted([None if one is None else {"b64": one} for one in values], faults)


def row_of(names: Sequence[str]) -> Callable[..., object]:
    """Return what makes an object of a row's values: a struct, which encodes fastest, or a dict.

    A struct cannot have a name that JSON has to escape (a quote, a backslash, a control character).
    """
    fields = [f"c{index}" for index in range(len(names))]
    try:
        return msgspec.defstruct("Row", fields, rename=dict(zip(fields, names, strict=True)), gc=False)
    except ValueError:
        return lambda *values: dict(zip(names, values, strict=True))


def rows_of(row: Callable[..., object], paths: Sequence[str], columns: Sequence[Converted], count: int) -> Converted:
    """Put columns together into `count` rows; a row has the fault of its first column that has one, with its path."""
    faults: dict[int, str] = {}
    for path, column in zip(paths, columns, strict=True):
        for position, fault in column.faults.items():
            faults.setdefault(position, path + fault)
    values = [column.values for column in columns]
    return Converted(list(map(row, *values) if values else repeat({}, count)), faults)


def _struct(kind: Any, within: Inner) -> Form:
    fields = [kind.field(index) for index in range(kind.num_fields)]
    names = [field.name for field in fields]
    twice = [name for index, name in enumerate(names) if name in names[:index]]
    if twice:
        raise NoJsonForm(f"a struct with two fields {twice[0]!r}")
    forms = [within(field.type) for field in fields]
    row, paths = row_of(names), [f".{name}" for name in names]

    def form(column: Any) -> Converted:
        columns = [convert(column.field(index)) for index, convert in enumerate(forms)]
        values, faults = rows_of(row, paths, columns, len(column))
        if column.null_count == 0:
            return Converted(values, faults)
        valid = _valid(column).tolist()  # the fields of a null may hold anything
        values = [value if there else None for value, there in zip(values, valid, strict=True)]
        return Converted(values, {position: fault for position, fault in faults.items() if valid[position]})

    return form


def _list(kind: Any, within: Inner) -> Form:
    items = within(kind.value_type)
    return lambda column: _cut(column, items)


def _map(kind: Any, within: Inner) -> Form:
    keys, items = (within(one) for one in (kind.key_type, kind.item_type))

    def pairs(entries: Any) -> Converted:
        columns = [keys(entries.field(0)), items(entries.field(1))]
        return rows_of(lambda *pair: pair, ["", ""], columns, len(entries))

    named = is_text(kind.key_type)
    return lambda column: _named(_cut(column, pairs)) if named else _cut(column, pairs)


def _named(column: Converted) -> Converted:
    """Make objects of lists of pairs. A name cannot be null, and of two equal ones a reader would see one."""
    values = [None if pairs is None else dict(pairs) for pairs in column.values]
    faults = dict(column.faults)
    for position, (pairs, value) in enumerate(zip(column.values, values, strict=True)):
        if value is not None and len(value) < len(pairs):
            faults.setdefault(position, " has the same key twice")
        if value and None in value:
            value[""] = value.pop(None)
            faults.setdefault(position, " has a null among its keys")
    return Converted(values, faults)


def _cut(column: Any, items: Form) -> Converted:
    """Convert the items that a column of lists holds, all at once, and cut them into its lists."""
    valid = _valid(column)
    if not valid.any():
        return Converted([None] * len(column), {})
    starts, stops = borders(column)
    low, high = int(starts[valid].min()), int(stops[valid].max())
    starts, stops = np.where(valid, starts - low, 0), np.where(valid, stops - low, 0)  # a null may span anything
    values, faults = items(column.values.slice(low, high - low))
    places = zip(starts.tolist(), stops.tolist(), valid.tolist(), strict=True)
    rows = [values[start:stop] if there else None for start, stop, there in places]
    return Converted(rows, _lifted(faults, starts, stops))


def borders(column: Any) -> tuple[Int64s, Int64s]:
    """Return where each list starts and stops in the column's values."""
    if types.is_fixed_size_list(column.type):
        size = column.type.list_size
        starts = (np.arange(len(column), dtype=np.int64) + column.offset) * size
        return starts, starts + size
    offsets = column.offsets.to_numpy().astype(np.int64)
    if types.is_list_view(column.type) or types.is_large_list_view(column.type):
        return offsets, offsets + column.sizes.to_numpy()
    return offsets[:-1], offsets[1:]


def _lifted(faults: Mapping[int, str], starts: Int64s, stops: Int64s) -> dict[int, str]:
    """Return the faults of items as those of the lists that hold them: for each list its first one."""
    if not faults:
        return {}
    odd = np.array(sorted(faults))
    first = np.append(odd, np.iinfo(np.int64).max)[np.searchsorted(odd, starts)]
    return {
        row: f"[{first[row] - starts[row]}]{faults[int(first[row])]}" for row in np.flatnonzero(first < stops).tolist()
    }


def _dictionary(kind: Any, within: Inner) -> Form:
    values = within(kind.value_type)

    def form(column: Any) -> Converted:
        try:
            return values(column.dictionary_decode())
        except pa.ArrowNotImplementedError:  # Arrow cannot take single values out of views
            codes = column.indices.to_numpy(zero_copy_only=False)
        valid = _valid(column.indices)
        if not valid.any():
            return Converted([None] * len(column), {})
        low, high = int(codes[valid].min()), int(codes[valid].max()) + 1
        which = np.where(valid, codes - low, high - low).astype(np.int64)
        return _spread(values(column.dictionary.slice(low, high - low)), which)

    return form


def _runs(kind: Any, within: Inner) -> Form:
    values = within(kind.value_type)

    def form(column: Any) -> Converted:
        first, count = column.find_physical_offset(), column.find_physical_length()
        ends = column.run_ends.to_numpy()[first : first + count]
        which = np.searchsorted(ends, np.arange(len(column)) + column.offset, side="right")
        return _spread(values(column.values.slice(first, count)), which)

    return form


def _spread(column: Converted, which: npt.NDArray[np.integer[Any]]) -> Converted:
    """Return the values at some positions; the one behind the last is null."""
    values, places = [*column.values, None], which.tolist()
    faults = {at: column.faults[place] for at, place in enumerate(places) if place in column.faults}
    return Converted([values[place] for place in places], faults)


def _extension(kind: Any, within: Inner) -> Form:
    form = within(kind.storage_type)
    return lambda column: form(column.storage)


def _tensor(kind: Any, within: Inner) -> Form:
    flat, shape = within(kind.storage_type), kind.shape
    axes = kind.permutation or range(len(shape))  # `shape` is how it is stored, the axes say how it is meant

    def form(column: Any) -> Converted:
        values, faults = flat(column.storage)
        deep = [
            None if value is None else np.array(value, object).reshape(shape).transpose(axes).tolist()
            for value in values
        ]
        return Converted(deep, faults)

    return form


def _valid(column: Any) -> npt.NDArray[np.bool_]:
    return np.asarray(column.is_valid())


def is_text(kind: Any) -> bool:
    """Whether values of a type are text, however they are stored."""
    return _is_some(_TEXTS, kind)


def is_bytes(kind: Any) -> bool:
    """Whether values of a type are bytes, however they are stored."""
    return _is_some(_BYTES, kind)


def _is_some(allowed: Sequence[Callable[[Any], bool]], kind: Any) -> bool:
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return _is_some(allowed, kind.value_type)
    return any(holds(kind) for holds in allowed)


def _is(name: str) -> Callable[[Any], bool]:
    """Return whether a type is an extension type of Arrow's own."""
    return lambda kind: isinstance(kind, pa.BaseExtensionType) and kind.extension_name == name


_TEXTS: Final = (types.is_string, types.is_large_string, types.is_string_view)

_BYTES: Final = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view)

_LEAVES: Final[Sequence[tuple[Callable[[Any], bool], Form]]] = (
    (types.is_floating, leaves.floats),
    (types.is_integer, leaves.exact),
    (types.is_boolean, leaves.exact),
    *((holds, leaves.text) for holds in _TEXTS),
    *((holds, leaves.objects) for holds in _BYTES),
    (types.is_decimal, leaves.objects),
    (types.is_null, leaves.objects),
    (types.is_timestamp, leaves.instants),
    (types.is_date, leaves.instants),
    (types.is_time, leaves.instants),
    (types.is_duration, leaves.durations),
    (types.is_interval, leaves.intervals),
    (_is("arrow.uuid"), leaves.objects),
    (_is("arrow.bool8"), leaves.bool8),
)
_NESTED: Final[Sequence[tuple[Callable[[Any], bool], Callable[[Any, Inner], Form]]]] = (
    (types.is_list, _list),
    (types.is_large_list, _list),
    (types.is_fixed_size_list, _list),
    (types.is_list_view, _list),
    (types.is_large_list_view, _list),
    (types.is_struct, _struct),
    (types.is_map, _map),
    (types.is_dictionary, _dictionary),
    (types.is_run_end_encoded, _runs),
    (_is("arrow.fixed_shape_tensor"), _tensor),
    (lambda kind: isinstance(kind, pa.BaseExtensionType), _extension),
)
