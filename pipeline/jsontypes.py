"""How JSON texts are read as Arrow types: what msgspec makes of a text, and what makes an array of many of those.

Numbers keep their value: an integer fits a double, `3.0` fits an integer type, and what is outside a type's range
does not fit. Times are ISO 8601 text, binary is base64 text, a struct is an object; a map with text keys is an object
or, like any other map, a list of [key, value] pairs.
"""

from __future__ import annotations

import re
from decimal import Context, Decimal, Inexact, InvalidOperation
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Array = Any
"""An Arrow array of a type that is known when the program runs."""

MISFITS: Final = (msgspec.MsgspecError, ValueError, ArithmeticError, RecursionError)
"""What a text that does not fit raises, decoded or made an array of; Arrow's own and UTF-8's are ValueErrors."""

NULL: Final = b"null"

_EXACT: Final = 2**53
"""From here on a double may stand for several integers."""
_SPAN: Final = re.compile(
    r"(-?)P(?=\d|T)(?:(\d{1,19})D)?(?:T(?=\d)(?:(\d{1,19})H)?(?:(\d{1,19})M)?(?:(\d{1,19})(?:\.(\d{1,9}))?S)?)?",
    re.ASCII,
)
_TICKS_A_SECOND: Final = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


class NotFromJson(TypeError):
    """A type that JSON texts are not read as, in words."""


class Reading(NamedTuple):
    """How a type is read: as what msgspec takes its texts, and what makes an array of such values and of None."""

    python: Any
    array: Callable[[list[Any]], Array]


def reading_of(kind: pa.DataType) -> Reading:
    """Return how JSON texts are read as a type. Raises NotFromJson."""
    for holds, make in _READINGS:
        if holds(kind):
            return make(kind)
    raise NotFromJson(f"JSON is not read as {kind}")


def decoder_of(python: Any) -> Callable[[Sequence[bytes]], list[Any]]:
    """Return what decodes many texts at once as values of such a type and nulls; it raises one of MISFITS."""
    decode = msgspec.json.Decoder(list_of(python)).decode
    return lambda texts: decode(b"[" + b",".join(texts) + b"]")


def list_of(python: Any) -> Any:
    """Return the type of lists of such values and nulls."""
    return list[python | None]


def is_text(kind: Any) -> bool:
    """Whether a type's values are text."""
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _plain(python: Any) -> Callable[[Any], Reading]:
    return lambda kind: Reading(python, lambda values: pa.array(values, kind))


def _integers(kind: Any) -> Reading:
    def array(values: list[Any]) -> Array:
        if float in set(map(type, values)):  # Arrow would cut 3.5 down to 3
            values = [_whole(value) if type(value) is float else value for value in values]
        return pa.array(values, kind)

    return Reading(int | float, array)


def _whole(value: float) -> int:
    if not value.is_integer() or abs(value) >= _EXACT:
        raise ValueError(value)
    return int(value)


def _narrow_floats(kind: Any) -> Reading:
    def array(values: list[Any]) -> Array:
        column: Any = pa.array(values, pa.float64()).cast(kind)
        if np.isinf(column.to_numpy(zero_copy_only=False)).any():
            raise OverflowError(kind)
        return column

    return Reading(float, array)


def _decimals(kind: Any) -> Reading:
    """Numbers or text, exact: Arrow's own scaling does not survive exponents like 1e-999999999."""
    exact = Context(prec=kind.precision, traps=[Inexact, InvalidOperation])
    step = Decimal((0, (1,), -kind.scale))

    def array(values: list[Any]) -> Array:
        return pa.array([value if value is None else value.quantize(step, context=exact) for value in values], kind)

    return Reading(Decimal, array)


def _instants(kind: Any) -> Reading:
    return Reading(str, lambda values: pa.array(values, pa.string()).cast(kind))


def _times(kind: Any) -> Reading:
    """Times of day, as Arrow reads those of a timestamp: times alone it does not read."""

    def array(values: list[Any]) -> Array:
        texts: Any = pa.array(values, pa.string())
        return pc.binary_join_element_wise("1970-01-01T", texts, "").cast(pa.timestamp(kind.unit)).cast(kind)

    return Reading(str, array)


def _durations(kind: Any) -> Reading:
    second = _TICKS_A_SECOND[kind.unit]

    def array(values: list[Any]) -> Array:
        ticks = [value if value is None else _ticks(value, second) for value in values]
        return pa.array(ticks, pa.int64()).cast(kind)

    return Reading(str, array)


def _ticks(text: str, second: int) -> int:
    """Return how many ticks, `second` of which make a second, an ISO 8601 duration has: `-P1DT2H3M4.5S`."""
    if not (parts := _SPAN.fullmatch(text)):
        raise ValueError(text)
    sign, days, hours, minutes, seconds, fraction = parts.groups(default="0")
    nanos = int(fraction.ljust(9, "0")) * second
    if nanos % 10**9:
        raise ValueError(text)
    whole = ((int(days) * 24 + int(hours)) * 60 + int(minutes)) * 60 + int(seconds)
    return (-1 if sign == "-" else 1) * (whole * second + nanos // 10**9)


def _lists(kind: Any) -> Reading:
    python, items = reading_of(kind.value_type)

    def array(values: list[Any]) -> Array:
        flat = items([item for value in values for item in value or ()])
        return pa.ListArray.from_arrays(_offsets(values), flat, mask=_nulls(values)).cast(kind)

    return Reading(list_of(python), array)


def _fixed_lists(kind: Any) -> Reading:
    python, items = reading_of(kind.value_type)
    size = kind.list_size

    def array(values: list[Any]) -> Array:
        flat = items([item for value in values for item in value or [None] * size])
        return pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=_nulls(values))

    return Reading(Annotated[list_of(python), msgspec.Meta(min_length=size, max_length=size)], array)


def _structs(kind: Any) -> Reading:
    """Objects, taken apart first: msgspec's typed dicts miss keys with escapes, its structs cannot have all names."""
    readings = {field.name: reading_of(field.type) for field in kind}
    fields = {name: (one, decoder_of(one.python)) for name, one in readings.items()}
    if len(fields) < kind.num_fields:
        raise NotFromJson(f"JSON is not read as {kind}, which has two fields of one name")

    def array(values: list[Any]) -> Array:
        if not fields:
            return pa.array(values, kind)
        texts = {name: [(value or {}).get(name, NULL) for value in values] for name in fields}
        columns = [one.array(decode(texts[name])) for name, (one, decode) in fields.items()]
        return pa.StructArray.from_arrays(columns, fields=list(kind), mask=_nulls(values))

    return Reading(dict[str, msgspec.Raw], array)


def _maps(kind: Any) -> Reading:
    keys, items = reading_of(kind.key_type), reading_of(kind.item_type)

    def array(values: list[Any]) -> Array:
        rows = [list(value.items()) if isinstance(value, dict) else value for value in values]
        pairs = [pair for row in rows for pair in row or ()]
        columns = keys.array([key for key, _ in pairs]), items.array([item for _, item in pairs])
        return pa.MapArray.from_arrays(_offsets(rows), *columns, type=kind, mask=_nulls(rows))

    python: Any = list[tuple[keys.python, items.python | None]]  # type: ignore[name-defined]
    if is_text(kind.key_type):
        python |= dict[str, items.python | None]  # type: ignore[name-defined]
    return Reading(python, array)


def _offsets(values: list[Any]) -> Array:
    return pa.array(accumulate((len(value or ()) for value in values), initial=0), pa.int32())


def _nulls(values: list[Any]) -> Array:
    return pa.array([value is None for value in values], pa.bool_())


_READINGS: Final[Sequence[tuple[Callable[[Any], bool], Callable[[Any], Reading]]]] = (
    (types.is_null, _plain(type(None))),
    (types.is_boolean, _plain(bool)),
    (types.is_integer, _integers),
    (types.is_float64, _plain(float)),
    (types.is_floating, _narrow_floats),
    (is_text, _plain(str)),
    *((holds, _plain(bytes)) for holds in (types.is_binary, types.is_large_binary, types.is_binary_view)),
    (types.is_fixed_size_binary, _plain(bytes)),
    (types.is_decimal, _decimals),
    (types.is_timestamp, _instants),
    (types.is_date, _instants),
    (types.is_time, _times),
    (types.is_duration, _durations),
    (types.is_list, _lists),
    (types.is_large_list, _lists),
    (types.is_fixed_size_list, _fixed_lists),
    (types.is_struct, _structs),
    (types.is_map, _maps),
)
