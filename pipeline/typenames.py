"""The names of types, as people write them and as Arrow prints them: read without Arrow, so that `check` knows them.

`pipeline.arrowtypes` makes Arrow's types of what is read here. There is no other grammar: what is a name here is a type
there. Unions are not read; nor what Arrow does not print (that a map's values are never null); nor names of fields in
which a colon and a type's name follow each other.
"""

from __future__ import annotations

import difflib
import math
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from schemas.values import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ALLOWED: Final = (
    "string, int64, double, float, bool, date32, timestamp[us], timestamp[us, tz=UTC], decimal128(10, 2), binary, "
    "list<string>, struct<a: int64, b: double>, map<string, double> and the other Arrow names"
)

UNITS: Final = ("s", "ms", "us", "ns")
ALIASES: Final = (
    *("null", "bool", "boolean", "halffloat", "float", "double", "string", "str", "utf8", "binary"),
    *(f"{sign}{size}" for sign in ("i", "u") for size in (1, 2, 4, 8)),
    *(f"{sign}{bits}" for sign in ("int", "uint") for bits in (8, 16, 32, 64)),
    *("f2", "f4", "f8", "float16", "float32", "float64"),
    *("large_string", "large_str", "large_utf8", "large_binary", "string_view", "binary_view"),
    *("date32", "date64", "date32[day]", "date64[ms]", "month_day_nano_interval"),
    *("time32[s]", "time32[ms]", "time64[us]", "time64[ns]", *(f"duration[{unit}]" for unit in UNITS)),
)
"""Names that Arrow has for types without parts."""
OURS: Final = ("int", "extension<arrow.uuid>", "extension<arrow.bool8>", "extension<arrow.json>")
"""Names that Arrow does not have for such types, or only prints."""

_INDICES: Final = re.compile(r"[iu][1248]|u?int(8|16|32|64)|int")
_RUN_ENDS: Final = re.compile(r"i[248]|int(16|32|64)|int")
_DIGITS: Final = {"32": 9, "64": 18, "128": 38, "256": 76}
_MOST: Final = 2**31 - 1
_DEEPEST: Final = 50
_MEANT: Final[Mapping[str, str]] = {
    **dict.fromkeys(("text", "varchar", "char", "object"), "string"),
    **dict.fromkeys(("long", "bigint", "integer"), "int64"),
    **dict.fromkeys(("number", "numeric", "real"), "double"),
    **dict.fromkeys(("datetime", "timestamp"), "timestamp[us]"),
    "date": "date32",
    "decimal": "decimal128(10, 2)",
    "bytes": "binary",
    "list": "list<string>",
}
"""What other systems call types, or what is no type without its parts."""


class NoSuchTypeError(ValueError):
    """A text names no type: what stands there, what is allowed, and what was probably meant."""


class Named(NamedTuple):
    """A type: its name without what it is made of, and that in the order of its reader below."""

    name: str
    parts: tuple[Any, ...] = ()


class Field(NamedTuple):
    """A type within another one."""

    name: str
    kind: Named
    nullable: bool = True


def named(text: str) -> Named:
    """Read the name of a type: `double`, `list<float>`, `timestamp[us, tz=UTC]`. Raises NoSuchTypeError."""
    found = _read(text)
    if found is None:
        raise NoSuchTypeError(f"{shown(text)} is not a type; allowed: {ALLOWED}{_meant(text)}")
    return found


def _meant(text: str) -> str:
    """Say which type was probably meant, if exchanging one word makes it one."""
    for word in re.finditer(r"[A-Za-z]\w*", text) if len(text) < _LONGEST else ():
        lower = word[0].lower()
        close = [_MEANT[lower]] if lower in _MEANT else difflib.get_close_matches(lower, ALIASES, n=1)
        meant = "".join([text[: word.start()], *close, text[word.end() :]]).strip()
        if close and _read(meant):
            return f"; did you mean {meant!r}?"
    return ""


def _read(text: str, depth: int = 0) -> Named | None:
    try:
        text.encode()  # Arrow's texts are UTF-8
        reading = _Reading(text.strip(), depth)
        kind = _type(reading)
    except ValueError:
        return None
    return kind if reading.at_end else None


class _Reading:
    """A text, how far it has been read, and how many types are around that place."""

    def __init__(self, text: str, depth: int) -> None:
        self._text = text
        self._at = 0
        self.depth = depth

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


def _see(holds: bool) -> None:  # noqa: FBT001 - like an assertion
    if not holds:
        raise NoSuchTypeError


def _type(reading: _Reading) -> Named:
    _see(reading.depth < _DEEPEST)
    for pattern, make in _LEAVES.items():
        if found := reading.maybe(pattern):
            return make(reading.depth, *found.groups())
    name = reading.take(rf"({'|'.join(_NESTED)})<")[1]
    reading.depth += 1
    parts = _NESTED[name](reading)
    reading.depth -= 1
    return Named(name, parts)


def _field(reading: _Reading, name: str) -> Field:
    kind = _type(reading)
    nullable = reading.maybe(" not null") is None
    _see(nullable or kind != _NULL)
    return Field(name, kind, nullable)


def _item(reading: _Reading) -> Field:
    """Read the item of a list, whose name may be left out."""
    name = reading.maybe(r"([^<>()\[\],:]*):\s*")
    return _field(reading, name[1] if name else "item")


def _list(reading: _Reading) -> tuple[Field]:
    item = _item(reading)
    reading.take(">")
    return (item,)


def _fixed_size_list(reading: _Reading) -> tuple[Field, int]:
    item = _item(reading)
    return item, _number(reading.take(r">\[([1-9]\d*)\]")[1])  # Arrow has [0] too, and divides by it


def _struct(reading: _Reading) -> tuple[Field, ...]:
    """Read fields; a name ends at the first colon behind which a type begins."""
    fields: list[Field] = []
    while not reading.maybe(">"):
        name = reading.take(_NAME if not fields else f", ?{_NAME}")[1]
        fields.append(_field(reading, name))
    return tuple(fields)


def _map(reading: _Reading) -> tuple[Named, Named, bool]:
    key = _type(reading)
    _see(key != _NULL)
    reading.take(rf"{_PART},\s*")
    item = _type(reading)
    return key, item, reading.take(rf"{_PART}(, keys_sorted)?{_PART}>")[1] is not None


def _dictionary(reading: _Reading) -> tuple[Named, Named, bool]:
    """Read indices and values, which are printed the other way round."""
    reading.take("values=")
    values = _type(reading)
    reading.take(r",\s*indices=")
    indices = _type(reading)
    _see(_INDICES.fullmatch(indices.name) is not None)
    return indices, values, reading.take(r",\s*ordered=([01])>")[1] == "1"


def _run_ends(reading: _Reading) -> tuple[Named, Named]:
    reading.take("run_ends: ")
    ends = _type(reading)
    _see(_RUN_ENDS.fullmatch(ends.name) is not None)
    reading.take(", values: ")
    values = _type(reading)
    reading.take(">")
    return ends, values


def _decimal(_: int, bits: str | None, precision: str, scale: str) -> Named:
    digits = _number(precision)
    width = bits or ("128" if digits <= _DIGITS["128"] else "256")
    _see(1 <= digits <= _DIGITS[width])
    below = scale.startswith("-")
    return Named(f"decimal{width}", (digits, _number(scale.removeprefix("-")) * (-1 if below else 1)))


def _tensor(depth: int, values: str, shape: str, names: str | None, order: str | None) -> Named:
    sizes, turned = _numbers(shape), _numbers(order or "")
    labels = names.split(",") if names is not None else None
    _see(math.prod(max(1, size) for size in sizes) <= _MOST)
    _see(labels is None or len(labels) == len(sizes))
    _see(not turned or sorted(turned) == list(range(len(sizes))))
    return Named("tensor", (_within(values, depth), sizes, labels, turned or None))


def _within(text: str, depth: int) -> Named:
    kind = _read(text, depth + 1)
    if kind is None:
        raise NoSuchTypeError
    return kind


def _numbers(text: str) -> list[int]:
    return [_number(number) for number in text.split(",") if number]


def _number(text: str) -> int:
    _see(len(text) <= len(str(_MOST)) and int(text) <= _MOST)
    return int(text)


_NULL: Final = Named("null")
_LONGEST: Final = 80
_LEAVES: Final[Mapping[str, Callable[..., Named]]] = {
    rf"({'|'.join(map(re.escape, sorted((*ALIASES, *OURS), reverse=True)))})(?![\w\[])": lambda _, name: Named(name),
    r"timestamp\[(s|ms|us|ns)(?:,\s*tz=([^\]]+))?\]": lambda _, *parts: Named("timestamp", parts),
    r"decimal(32|64|128|256)?\((\d+),\s*(-?\d+)\)": _decimal,
    r"fixed_size_binary\[(\d+)\]": lambda _, width: Named("fixed_size_binary", (_number(width),)),
    r"extension<arrow\.fixed_shape_tensor\[value_type=(.+?), shape=\[([\d,]*)\](?:, dim_names=\[(.*?)\])?"
    r"(?:, permutation=\[([\d,]*)\])?\]>": _tensor,
    r"extension<arrow\.opaque\[storage_type=(.+?), type_name=(.*?), vendor_name=(.*?)\]>": (
        lambda depth, storage, *names: Named("opaque", (_within(storage, depth), *names))
    ),
}
_NESTED: Final[Mapping[str, Callable[[_Reading], tuple[Any, ...]]]] = {
    "list": _list,
    "large_list": _list,
    "list_view": _list,
    "large_list_view": _list,
    "fixed_size_list": _fixed_size_list,
    "struct": _struct,
    "map": _map,
    "dictionary": _dictionary,
    "run_end_encoded": _run_ends,
}
_NAME: Final = rf"(.*?):\s*(?={'|'.join([*_LEAVES, *(f'{name}<' for name in _NESTED)])})"
_PART: Final = r"(?: \('.*?'\))?"
"""The name of a part of a map, where it is not the usual one."""
