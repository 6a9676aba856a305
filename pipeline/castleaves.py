"""Plain columns converted to another plain type, or from JSON text to any: as a whole, or not at all.

A conversion raises where a single value does not fit, and ArrowNotImplementedError or NotFromJson where none can.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec.json import Decoder
from pyarrow import types

from pipeline import leaves
from pipeline.jsonform import form_of
from pipeline.jsontypes import is_text, reading_of

if TYPE_CHECKING:
    from collections.abc import Sequence

Array = Any
"""An Arrow array of a type that is known when the program runs."""

Convert = Callable[[Array, Any], Array]
Holds = Callable[[Any], bool]


def conversion(stored: Any, kind: Any) -> Convert:
    """Return what converts columns of the type `stored` to `kind`."""
    return next(convert for is_stored, is_kind, convert in _CONVERSIONS if is_stored(stored) and is_kind(kind))


def text_of(value: Any) -> str | None:
    """Write a value, as a form gives it, as text: as JSON, text without quotes."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    text = _TO_JSON.encode(value).decode()
    return msgspec.json.decode(text, type=str) if text.startswith('"') else text


def either(*holds: Holds) -> Holds:
    """Return whether a type is one of several."""
    return lambda kind: any(hold(kind) for hold in holds)


def neither(*holds: Holds) -> Holds:
    """Return whether a type is none of several."""
    return lambda kind: not any(hold(kind) for hold in holds)


def anything(_: Any) -> bool:
    """Hold for every type."""
    return True


is_binary: Final = either(types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
_is_number: Final = either(types.is_integer, types.is_floating, types.is_decimal)
_is_instant: Final = either(types.is_timestamp, types.is_date, types.is_time, types.is_duration)

_INFINITE: Final = re.compile(r"[+-]?inf(inity)?", re.IGNORECASE)
_DECIMAL: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,9})?", re.ASCII)
_TIME: Final = r"^\d\d:\d\d(:\d\d(\.\d+)?)?$"
_TO_JSON: Final = msgspec.json.Encoder(decimal_format="number")


def _by_arrow(column: Array, kind: Any) -> Array:
    return column.cast(kind)


def _finite(column: Array, kind: Any) -> Array:
    """Cast to floats: what becomes infinite must have been so."""
    values = column.cast(kind)
    infinite = np.isinf(values.to_numpy(zero_copy_only=False))
    if infinite.any() and not all(_INFINITE.fullmatch(str(column[at])) for at in np.flatnonzero(infinite).tolist()):
        raise OverflowError(kind)
    return values


def _same(column: Array, kind: Any) -> Array:
    """Cast what Arrow casts at a loss: values must be the same when they are cast back."""
    instants = types.is_timestamp(column.type)  # with a zone they are those of UTC
    plain = column.cast(pa.timestamp(column.type.unit)) if instants else column
    values = plain.cast(kind)
    if not values.cast(plain.type).equals(plain):
        raise ValueError(kind)
    return values


def _decimals(column: Array, kind: Any) -> Array:
    """Read exactly what the text says: Arrow's own scaling wraps, or worse, where there are many digits.

    A float with a fraction has the digits of its shortest form, one without is the integer that it is.
    """
    values = column.to_pylist()
    if types.is_floating(column.type):
        pairs = zip(values, leaves.floats(column).values, strict=True)
        values = [short if value is None or not value.is_integer() else int(value) for value, short in pairs]
    return reading_of(kind).array([None if value is None else _decimal(str(value)) for value in values])


def _decimal(text: str) -> Decimal:
    if not _DECIMAL.fullmatch(text):
        raise ValueError(text)
    return Decimal(text)


def _whole(column: Array, kind: Any) -> Array:
    """Cast decimals to integers: out of narrow decimals Arrow casts to narrow integers only."""
    wide = pa.decimal128(38, column.type.scale)
    return (column.cast(wide) if column.type.bit_width < wide.bit_width else column).cast(kind)


def _ticks(column: Array, kind: Any) -> Array:
    """Cast numbers to times, or times to numbers: a time is a number of ticks."""
    bits = (kind if types.is_temporal(kind) else column.type).bit_width
    values = column.cast(pa.int32() if bits == 32 else pa.int64()).cast(kind)  # noqa: PLR2004 - bits
    values.validate(full=True)  # a time of day is within a day, and a date64 is whole days
    return values


def _base64(column: Array, kind: Any) -> Array:
    return pa.array(msgspec.convert(column.to_pylist(), list[bytes | None]), kind)


def _times(column: Array, kind: Any) -> Array:
    """Read times of day as those of a timestamp: times alone Arrow does not read."""
    if not pc.all(pc.match_substring_regex(column, _TIME), min_count=0).as_py():
        raise ValueError(kind)
    day, nothing = (pa.scalar(text, column.type) for text in ("1970-01-01 ", ""))
    return pc.binary_join_element_wise(day, column, nothing).cast(pa.timestamp(kind.unit)).cast(kind)


def _durations(column: Array, kind: Any) -> Array:
    """Read ticks, as Arrow does, or ISO 8601."""
    try:
        return column.cast(pa.int64()).cast(kind)
    except pa.ArrowInvalid:
        return reading_of(kind).array(column.to_pylist())


def _json(column: Array, kind: Any) -> Array:
    python, array = reading_of(kind)
    one = Decoder(python | None)
    return array([None if text is None else one.decode(text) for text in column.to_pylist()])


def _written(column: Array, kind: Any) -> Array:
    """Write text as the row's JSON writes it."""
    values, faults = form_of(column.type)(column)
    if faults:
        raise ValueError(kind)
    return pa.array([text_of(value) for value in values], kind)


_CONVERSIONS: Final[Sequence[tuple[Any, Any, Convert]]] = (
    (is_text, types.is_nested, _json),
    (is_text, is_binary, _base64),
    (is_text, types.is_time, _times),
    (is_text, types.is_duration, _durations),
    (either(is_text, types.is_floating), types.is_floating, _finite),
    (types.is_decimal, types.is_floating, lambda column, kind: _finite(column.cast(pa.string()), kind)),  # the nearest
    (types.is_boolean, types.is_float16, lambda column, kind: column.cast(pa.float64()).cast(kind)),
    (types.is_integer, types.is_float16, lambda column, kind: _same(column.cast(pa.float64()), kind)),
    (either(is_text, _is_number), types.is_decimal, _decimals),
    (types.is_decimal, types.is_integer, _whole),
    (_is_number, types.is_boolean, _same),
    (types.is_timestamp, either(types.is_date, types.is_time), _same),
    (_is_number, _is_instant, _ticks),
    (_is_instant, _is_number, _ticks),
    (neither(is_text, is_binary, types.is_integer), is_text, _written),
    (anything, anything, _by_arrow),
)
