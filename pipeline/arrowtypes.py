"""Arrow types by their names: as people write them, and as Arrow prints them, types within types included.

What `str` says of a type gives that type again, but for unions, which are not read; for what Arrow does not print
(that a map's values are never null); and for names of fields in which a colon and a type's name follow each other.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from pipeline.errors import JobError
from schemas.values import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ALLOWED: Final = (
    "string, int64, double, float, bool, date32, timestamp[us], timestamp[us, tz=UTC], decimal128(10, 2), binary, "
    "list<string>, struct<a: int64, b: double>, map<string, double> and the other Arrow names"
)


class NoSuchTypeError(ValueError):
    """A text names no Arrow type."""


def type_of(text: str) -> pa.DataType:
    """Return the type that a text names: `double`, `list<float>`, `timestamp[us, tz=UTC]`. Raises NoSuchTypeError."""
    reading = _Reading(text.strip())
    try:
        kind = _type(reading)
    except (ValueError, TypeError, OverflowError, pa.ArrowException, RecursionError):
        raise NoSuchTypeError(f"{shown(text)} is not a type; allowed: {ALLOWED}") from None
    if not reading.at_end:
        raise NoSuchTypeError(f"{shown(text)} is not a type; allowed: {ALLOWED}")
    return kind


def types_of(columns: Mapping[str, str], key: str = "input.columns") -> dict[str, pa.DataType]:
    """Return the types declared under a key of the job file. Raises JobError for a name that Arrow does not have."""
    types: dict[str, pa.DataType] = {}
    for name, text in columns.items():
        try:
            types[name] = type_of(text)
        except NoSuchTypeError as error:
            raise JobError(f"{key}.{name}: {error}") from None
    return types


class _Reading:
    """A text, and how far it has been read."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    @property
    def at_end(self) -> bool:
        return self._at == len(self._text)

    def maybe(self, pattern: str) -> re.Match[str] | None:
        """Read on where the text goes on like that."""
        found = re.compile(pattern, re.DOTALL | re.ASCII).match(self._text, self._at)
        self._at = found.end() if found else self._at
        return found

    def take(self, pattern: str) -> re.Match[str]:
        """Read on; raise NoSuchTypeError where the text goes on otherwise."""
        found = self.maybe(pattern)
        if found is None:
            raise NoSuchTypeError(pattern)
        return found


def _type(reading: _Reading) -> pa.DataType:
    for pattern, make in _LEAVES.items():
        if found := reading.maybe(pattern):
            return make(*found.groups())
    return _NESTED[reading.take(rf"({'|'.join(_NESTED)})<")[1]](reading)


def _field(reading: _Reading, name: str) -> pa.Field[Any]:
    kind = _type(reading)
    return pa.field(name, kind, nullable=reading.maybe(" not null") is None)


def _item(reading: _Reading) -> pa.Field[Any]:
    """Read the item of a list, whose name may be left out."""
    named = reading.maybe(r"([^<>()\[\],:]*):\s*")
    return _field(reading, named[1] if named else "item")


def _list(make: Callable[..., pa.DataType]) -> Callable[[_Reading], pa.DataType]:
    def read(reading: _Reading) -> pa.DataType:
        item = _item(reading)
        reading.take(">")
        return make(item)

    return read


def _fixed_size_list(reading: _Reading) -> pa.DataType:
    item = _item(reading)
    return pa.list_(item, int(reading.take(r">\[([1-9]\d*)\]")[1]))  # Arrow has [0] too, and divides by it


def _struct(reading: _Reading) -> pa.DataType:
    """Read fields; a name ends at the first colon behind which a type begins."""
    fields: list[pa.Field[Any]] = []
    while not reading.maybe(">"):
        name = reading.take(_NAME if not fields else f", ?{_NAME}")[1]
        fields.append(_field(reading, name))
    return pa.struct(fields)


def _map(reading: _Reading) -> pa.DataType:
    key = _type(reading)
    reading.take(rf"{_PART},\s*")
    item = _type(reading)
    ordered = reading.take(rf"{_PART}(, keys_sorted)?{_PART}>")[1] is not None
    return pa.map_(key, item, keys_sorted=ordered)  # type: ignore[call-overload, no-any-return]


def _dictionary(reading: _Reading) -> pa.DataType:
    reading.take("values=")
    values = _type(reading)
    reading.take(r",\s*indices=")
    indices = _type(reading)
    ordered = reading.take(r",\s*ordered=([01])>")[1] == "1"
    return pa.dictionary(indices, values, ordered)  # type: ignore[call-overload, no-any-return]


def _run_ends(reading: _Reading) -> pa.DataType:
    reading.take("run_ends: ")
    ends = _type(reading)
    reading.take(", values: ")
    values = _type(reading)
    reading.take(">")
    return pa.run_end_encoded(ends, values)  # type: ignore[type-var]


def _decimal(bits: str | None, precision: str, scale: str) -> pa.DataType:
    digits = int(precision)
    width = bits or ("128" if digits <= _DIGITS_IN_128_BITS else "256")
    make: Callable[[int, int], pa.DataType] = getattr(pa, f"decimal{width}")
    return make(digits, int(scale))


def _tensor(values: str, shape: str, names: str | None, order: str | None) -> pa.DataType:
    return pa.fixed_shape_tensor(
        type_of(values),
        _numbers(shape),
        dim_names=names.split(",") if names is not None else None,
        permutation=_numbers(order) if order is not None else None,
    )


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


_UNITS: Final = ("s", "ms", "us", "ns")
_DIGITS_IN_128_BITS: Final = 38
_NAMED: Final[Mapping[str, Any]] = {
    **{
        alias: pa.type_for_alias(alias)  # type: ignore[call-overload]
        for alias in (
            *("null", "bool", "boolean", "halffloat", "float", "double", "string", "str", "utf8", "binary"),
            *(f"{sign}{size}" for sign in ("i", "u") for size in (1, 2, 4, 8)),
            *(f"{sign}{bits}" for sign in ("int", "uint") for bits in (8, 16, 32, 64)),
            *("f2", "f4", "f8", "float16", "float32", "float64"),
            *("large_string", "large_str", "large_utf8", "large_binary", "string_view", "binary_view"),
            *("date32", "date64", "date32[day]", "date64[ms]", "month_day_nano_interval"),
            *("time32[s]", "time32[ms]", "time64[us]", "time64[ns]", *(f"duration[{unit}]" for unit in _UNITS)),
        )
    },
    "int": pa.int64(),  # Arrow has no `int`; this one holds what the others hold, and is sent alike
    "extension<arrow.uuid>": pa.uuid(),
    "extension<arrow.bool8>": pa.bool8(),
    "extension<arrow.json>": pa.json_(),
}
_LEAVES: Final[Mapping[str, Callable[..., pa.DataType]]] = {
    rf"({'|'.join(map(re.escape, sorted(_NAMED, reverse=True)))})(?![\w\[])": _NAMED.__getitem__,
    r"timestamp\[(s|ms|us|ns)(?:,\s*tz=([^\]]+))?\]": pa.timestamp,
    r"decimal(32|64|128|256)?\((\d+),\s*(-?\d+)\)": _decimal,
    r"fixed_size_binary\[(\d+)\]": lambda width: pa.binary(int(width)),
    r"extension<arrow\.fixed_shape_tensor\[value_type=(.+?), shape=\[([\d,]*)\](?:, dim_names=\[(.*?)\])?"
    r"(?:, permutation=\[([\d,]*)\])?\]>": _tensor,
    r"extension<arrow\.opaque\[storage_type=(.+?), type_name=(.*?), vendor_name=(.*?)\]>": (
        lambda storage, name, vendor: pa.opaque(type_of(storage), name, vendor)
    ),
}
_NESTED: Final[Mapping[str, Callable[[_Reading], pa.DataType]]] = {
    "list": _list(pa.list_),
    "large_list": _list(pa.large_list),
    "list_view": _list(pa.list_view),
    "large_list_view": _list(pa.large_list_view),
    "fixed_size_list": _fixed_size_list,
    "struct": _struct,
    "map": _map,
    "dictionary": _dictionary,
    "run_end_encoded": _run_ends,
}
_NAME: Final = rf"(.*?):\s*(?={'|'.join([*_LEAVES, *(f'{name}<' for name in _NESTED)])})"
_PART: Final = r"(?: \('.*?'\))?"
"""The name of a part of a map, where it is not the usual one."""
