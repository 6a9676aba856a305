"""Columns of plain values -> Python values that msgspec writes as the rules of the row say.

Numbers go through numpy, dates and times through Arrow's own text, so that no Python object is made of a value that
is not needed. A value that cannot be written costs its row, never the batch: it is a fault, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


class Converted(NamedTuple):
    """A column's values as msgspec writes them; `faults` says of positions why their value must not be sent.

    A fault is what follows the value's name: " is not UTF-8".
    """

    values: list[Any]
    faults: Mapping[int, str]


Form = Callable[[Any], Converted]
"""Converts a column, an Arrow array of one type."""

_TICKS_A_SECOND: Final = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_SECONDS_A_DAY: Final = 86_400
_INT64: Final = np.iinfo(np.int64)
_DAYS: Final = (-719_162, 2_932_897)
"""0001-01-01 and 10000-01-01, in days since 1970: the years that ISO 8601 writes with four digits."""


def exact(column: Any) -> Converted:
    """Convert integers and booleans."""
    return Converted(_numbers(column), {})


def objects(column: Any) -> Converted:
    """Convert what msgspec writes by itself: bytes as base64, decimals as numbers, UUIDs as text, nulls."""
    return Converted(column.to_pylist(), {})


def bool8(column: Any) -> Converted:
    """Convert booleans that are stored as bytes."""
    return exact(column.storage.cast(pa.bool_()))


def floats(column: Any) -> Converted:
    """Convert floats: as short as their own width allows; NaN and infinities become null."""
    return Converted(_FLOATS[column.type](column), {})


def finite_floats(column: Any) -> Converted:
    """Convert floats; NaN and infinities are faults."""
    odd = _true(pc.invert(pc.is_finite(column.cast(pa.float64()))))  # older Arrow does not ask halves
    faults = {at: f" is {column[at]}, and the job file says nan: reject" for at in odd}
    return Converted(_FLOATS[column.type](column), faults)


def text(column: Any) -> Converted:
    """Convert text; what is not UTF-8 is a fault, shown with U+FFFD."""
    try:
        return Converted(column.to_pylist(), {})
    except UnicodeDecodeError:
        raw = column.cast(pa.large_binary()).to_pylist()
    values = [None if one is None else one.decode("utf-8", "replace") for one in raw]
    odd = [at for at, value in enumerate(values) if value is not None and value.encode() != raw[at]]
    return Converted(values, dict.fromkeys(odd, " is not UTF-8"))


def instants(column: Any) -> Converted:
    """Convert timestamps, dates and times of day: ISO 8601 with the digits they need; what it cannot write is a fault.

    A timestamp with a zone is the instant in UTC, with a `Z`; one without has none.
    """
    kind = column.type
    unit = "days" if pa.types.is_date32(kind) else "ms" if pa.types.is_date64(kind) else kind.unit
    day = 1 if unit == "days" else _SECONDS_A_DAY * _TICKS_A_SECOND[unit]
    if pa.types.is_time(kind):
        low, high, outside = 0, day, "since midnight, not within a day"
    else:
        low, high, outside = _DAYS[0] * day, _DAYS[1] * day, "since 1970, not within the years 1 to 9999"
    ticks: Any = column.view(pa.int32() if kind.bit_width == 32 else pa.int64())  # noqa: PLR2004 - bits
    first, last = pa.scalar(max(low, _INT64.min)), pa.scalar(min(high - 1, _INT64.max))
    strange = pc.or_(pc.less(ticks, first), pc.greater(ticks, last))
    odd = _true(strange)
    if odd:
        column = pc.if_else(strange, pa.scalar(None, kind), column)
    write = next(write for holds, write in _WRITERS if holds(kind))
    return Converted(write(column).to_pylist(), {at: f" is {ticks[at]} {unit} {outside}" for at in odd})


def durations(column: Any) -> Converted:
    """Convert durations: ISO 8601 with days of 24 hours, `P1DT2H3M4.5S`, `-PT0.001S`; zero is `PT0S`."""
    second = _TICKS_A_SECOND[column.type.unit]
    values: list[str | None] = []
    for ticks in column.view(pa.int64()).to_pylist():
        if ticks is None:
            values.append(None)
        else:
            days, rest = divmod(abs(ticks), _SECONDS_A_DAY * second)
            values.append(("-" if ticks < 0 else "") + _iso_duration(0, days, rest, second))
    return Converted(values, {})


def intervals(column: Any) -> Converted:
    """Convert calendar intervals: ISO 8601, `P1Y2M3DT4H`; a mixture of signs, which it lacks, is a fault."""
    values: list[str | None] = []
    faults = {}
    for at, parts in enumerate(column.to_pylist()):
        if parts is None:
            values.append(None)
        elif min(parts) < 0 < max(parts):
            faults[at] = f" is {parts[0]} months, {parts[1]} days, {parts[2]} ns, and ISO 8601 has one sign for all"
            values.append(None)
        else:
            months, days, ticks = map(abs, parts)
            values.append(("-" if min(parts) < 0 else "") + _iso_duration(months, days, ticks, 10**9))
    return Converted(values, faults)


def _true(mask: Any) -> list[int]:
    """Return the positions of what is true."""
    return np.flatnonzero(mask.fill_null(False).to_numpy(zero_copy_only=False)).tolist()  # noqa: FBT003


def _numbers(column: Any) -> list[Any]:
    """Without nulls numpy's list is three times as fast as Arrow's."""
    if column.null_count == 0:
        values: list[Any] = column.to_numpy(zero_copy_only=False).tolist()
        return values
    return column.to_pylist()  # type: ignore[no-any-return]


def _single_floats(column: Any) -> list[Any]:
    """Return doubles whose shortest form is the shortest form of the singles (a float32 0.1 is 0.1)."""
    return _numbers(column.cast(pa.string()).cast(pa.float64()))


def _half_floats(column: Any) -> list[Any]:
    """Return doubles whose shortest form is numpy's of the halves; Arrow writes halves as if they were doubles."""
    halves = column.to_numpy(zero_copy_only=False)  # a null becomes NaN, which is written as null
    bits, which = np.unique(halves.view(np.uint16), return_inverse=True)
    shortest = np.array([float(str(half)) for half in bits.view(np.float16)], np.float64)
    return shortest[which].tolist()  # type: ignore[no-any-return]


def _timestamps(column: Any) -> Any:
    """With a zone the ticks are those of UTC: without it Arrow writes them so, and needs no zone data."""
    plain = column.view(pa.timestamp(column.type.unit))
    written = pc.binary_replace_slice(_trimmed(plain), 10, 11, "T")
    return pc.binary_join_element_wise(written, "Z", "") if column.type.tz else written


def _trimmed(column: Any) -> Any:
    """Return Arrow's text, which has all digits of the unit, without zeros at the fraction's end."""
    written = column.cast(pa.string())
    return written if column.type.unit == "s" else pc.ascii_rtrim(pc.ascii_rtrim(written, "0"), ".")


def _iso_duration(months: int, days: int, ticks: int, second: int) -> str:
    """Write a span that is not negative, the largest units first, without those that are zero."""
    years, months = divmod(months, 12)
    minutes, ticks = divmod(ticks, 60 * second)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{ticks // second}"
    if ticks % second:
        seconds += f".{ticks % second + second}".replace(".1", ".").rstrip("0")  # the 1 keeps the zeros in front
    date = (f"{years}Y" if years else "") + (f"{months}M" if months else "") + (f"{days}D" if days else "")
    time = (f"{hours}H" if hours else "") + (f"{minutes}M" if minutes else "") + (f"{seconds}S" if ticks else "")
    return f"P{date}T{time}" if time else f"P{date or 'T0S'}"


_FLOATS: Final[Mapping[Any, Callable[[Any], list[Any]]]] = {
    pa.float16(): _half_floats,
    pa.float32(): _single_floats,
    pa.float64(): _numbers,
}
_WRITERS: Final[tuple[tuple[Callable[[Any], bool], Callable[[Any], Any]], ...]] = (
    (pa.types.is_timestamp, _timestamps),
    (pa.types.is_date, lambda column: column.cast(pa.string())),
    (pa.types.is_time, _trimmed),
)
