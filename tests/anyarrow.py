"""Arrow arrays of any type with any values, for Hypothesis: nested, sliced, with something under every null."""

from __future__ import annotations

import itertools
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st
from pyarrow import types

INT64 = st.integers(-(2**63), 2**63 - 1)
INT32 = st.integers(-(2**31), 2**31 - 1)
DAYS = st.integers(-800_000, 3_000_000)
TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
TENSOR = pa.fixed_shape_tensor(pa.float32(), [2, 3])
TURNED = pa.fixed_shape_tensor(pa.int16(), [2, 3], permutation=[1, 0])

LEAVES: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.null(): st.none(),
    pa.bool_(): st.booleans(),
    pa.int8(): st.integers(-(2**7), 2**7 - 1),
    pa.uint32(): st.integers(0, 2**32 - 1),
    pa.int64(): INT64,
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.float16(): st.floats(width=16),
    pa.float32(): st.floats(width=32),
    pa.float64(): st.floats(),
    pa.string(): st.text(),
    pa.large_string(): st.text(),
    pa.string_view(): st.text(),
    pa.binary(): st.binary(),
    pa.large_binary(): st.binary(),
    pa.binary_view(): st.binary(),
    pa.binary(3): st.binary(min_size=3, max_size=3),
    pa.decimal32(9, 2): st.decimals(-(10**6), 10**6, places=2),
    pa.decimal64(18, 4): st.decimals(-(10**12), 10**12, places=4),
    pa.decimal128(38, 9): st.decimals(-(10**28), 10**28, places=9),
    pa.decimal256(76, 0): st.integers(-(10**76) + 1, 10**76 - 1).map(Decimal),
    pa.date32(): DAYS | INT32,
    pa.date64(): (DAYS | INT32).map(lambda days: days * 86_400_000),
    **{pa.time32(unit): st.integers(0, 86_400 * TICKS[unit] - 1) for unit in ("s", "ms")},
    **{pa.time64(unit): st.integers(0, 86_400 * TICKS[unit] - 1) for unit in ("us", "ns")},
    **{pa.timestamp(unit): INT64 | st.integers(-(10**10), 10**10) for unit in TICKS},
    pa.timestamp("us", "Europe/Berlin"): st.integers(-(10**17), 3 * 10**17),
    pa.timestamp("s", "+05:30"): st.integers(-(10**11), 3 * 10**11),
    **{pa.duration(unit): INT64 | st.integers(-(10**6), 10**6) for unit in TICKS},
    pa.month_day_nano_interval(): st.tuples(INT32, INT32, INT64) | st.tuples(*[st.integers(0, 30)] * 3),
    pa.uuid(): st.binary(min_size=16, max_size=16),
    pa.bool8(): st.integers(-1, 2),
    pa.json_(): st.sampled_from(["{}", '{"a":\n 1.0}', "null"]),
    TENSOR: st.lists(st.floats(width=32) | st.none(), min_size=6, max_size=6),
    TURNED: st.lists(st.integers(-9, 9), min_size=6, max_size=6),
    pa.opaque(pa.int32(), "box", "maker"): INT32,
}
"""Types that hold no other, and how their values are drawn: instants and durations as ticks, tensors as stored."""

KEYS = [pa.string(), pa.large_string(), pa.string_view(), pa.int64(), pa.float32(), pa.date32(), pa.binary()]


class Hidden(NamedTuple):
    """A null under which a value lies, as Arrow allows; nobody may see that value."""

    under: Any


def nested(inner):
    """Types made of types."""
    leaf = st.sampled_from([kind for kind in LEAVES if kind != pa.null()])
    lists = [pa.list_, pa.large_list, pa.list_view, pa.large_list_view, lambda kind: pa.list_(kind, 2)]
    return st.one_of(
        st.builds(lambda make, kind: make(kind), st.sampled_from(lists), inner),
        st.lists(st.tuples(st.text(), inner), max_size=3, unique_by=lambda field: field[0]).map(pa.struct),
        st.builds(pa.map_, st.sampled_from(KEYS), inner),
        st.builds(pa.dictionary, st.sampled_from([pa.int16(), pa.uint64()]), leaf | leaf.map(pa.list_)),
        st.builds(pa.run_end_encoded, st.sampled_from([pa.int16(), pa.int64()]), leaf | leaf.map(pa.list_)),
    )


KINDS = st.recursive(st.sampled_from(list(LEAVES)), nested, max_leaves=4)


def values_of(kind):
    """Values of a type, null or not."""
    if kind in LEAVES:
        return st.none() | LEAVES[kind]
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return values_of(kind.value_type)
    if types.is_struct(kind):
        value = st.fixed_dictionaries({field.name: values_of(field.type) for field in kind})
    elif types.is_map(kind):
        value = st.lists(st.tuples(LEAVES[kind.key_type], values_of(kind.item_type)), max_size=3)
    else:
        size = (2, 2) if types.is_fixed_size_list(kind) else (0, 3)
        value = st.lists(values_of(kind.value_type), min_size=size[0], max_size=size[1])
    return st.none() | value | value.map(Hidden)


def build(values, kind):
    """Make an array out of the middle of a longer one, so that offsets are not zero by luck."""
    if not values:
        return _whole([], kind)
    return _whole([values[0], *values, values[-1]], kind).slice(1, len(values))


def _whole(values, kind):
    if types.is_run_end_encoded(kind):  # a run has no nulls of its own
        return _runs(values, kind)
    mask = pa.array([value is None or isinstance(value, Hidden) for value in values], pa.bool_())
    values = [value.under if isinstance(value, Hidden) else value for value in values]
    return next(make for holds, make in BUILDERS if holds(kind))(values, kind, mask)


def _dictionary(values, kind, mask):
    codes = [None if null else len(values) - 1 - at for at, null in enumerate(mask.to_pylist())]
    return pa.DictionaryArray.from_arrays(pa.array(codes, kind.index_type), build(values[::-1], kind.value_type))


def _runs(values, kind):
    runs = [list(run) for _, run in itertools.groupby(values, repr)]
    ends = pa.array(itertools.accumulate(map(len, runs)), kind.run_end_type)
    return pa.RunEndEncodedArray.from_arrays(ends, build([run[0] for run in runs], kind.value_type))


def _struct(values, kind, mask):
    if not kind.num_fields:
        return pa.array([None if null else {} for null in mask.to_pylist()], kind)
    fields = [build([(value or {}).get(field.name) for value in values], field.type) for field in kind]
    return pa.StructArray.from_arrays(fields, fields=list(kind), mask=mask)


def _fixed(values, kind, mask):
    items = [item for value in values for item in value or [None] * kind.list_size]
    return pa.FixedSizeListArray.from_arrays(build(items, kind.value_type), type=kind, mask=mask)


def _map(values, kind, mask):
    pairs = [pair for value in values for pair in value or ()]
    keys, items = [key for key, _ in pairs], [item for _, item in pairs]
    offsets = [0, *itertools.accumulate(len(value or ()) for value in values)]
    return pa.MapArray.from_arrays(
        offsets, build(keys, kind.key_type), build(items, kind.item_type), type=kind, mask=mask
    )


def _list(values, kind, mask):
    make, width = (pa.ListArray, pa.int32()) if types.is_list(kind) else (pa.LargeListArray, pa.int64())
    offsets = pa.array([0, *itertools.accumulate(len(value or ()) for value in values)], width)
    items = [item for value in values for item in value or ()]
    return make.from_arrays(offsets, build(items, kind.value_type), type=kind, mask=mask)


def _view(values, kind, mask):
    """Lay the items out backwards: views need not be in order."""
    make, width = (pa.ListViewArray, pa.int32()) if types.is_list_view(kind) else (pa.LargeListViewArray, pa.int64())
    sizes = [len(value or ()) for value in values]
    starts = [sum(sizes[at + 1 :]) for at in range(len(sizes))]
    items = [item for value in reversed(values) for item in value or ()]
    places = pa.array(starts, width), pa.array(sizes, width)
    return make.from_arrays(*places, build(items, kind.value_type), type=kind, mask=mask)


def _extension(values, kind, _mask):
    return pa.ExtensionArray.from_storage(kind, _whole(values, kind.storage_type))


def _ticks(values, kind, _mask):
    return pa.array(values, pa.int32() if kind.bit_width == 32 else pa.int64()).view(kind)


BUILDERS = [
    (lambda kind: isinstance(kind, pa.BaseExtensionType), _extension),
    (types.is_dictionary, _dictionary),
    (types.is_struct, _struct),
    (types.is_map, _map),
    (types.is_fixed_size_list, _fixed),
    (lambda kind: types.is_list_view(kind) or types.is_large_list_view(kind), _view),
    (lambda kind: types.is_list(kind) or types.is_large_list(kind), _list),
    (types.is_float16, lambda values, kind, _: pa.array([v if v is None else np.float16(v) for v in values], kind)),
    (types.is_interval, lambda values, kind, _: pa.array(values, kind)),
    (types.is_temporal, _ticks),
    (lambda _: True, lambda values, kind, _: pa.array(values, kind)),
]
