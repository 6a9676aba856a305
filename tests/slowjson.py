"""The rules of the row as slowly and obviously as can be: what JSON should read, value by value, for any Arrow type."""

from __future__ import annotations

import base64
import re
import uuid
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from anyarrow import KINDS, TENSOR, TICKS, TURNED, Hidden, build, values_of
from hypothesis import strategies as st
from pyarrow import types

TEXTS = (pa.string(), pa.large_string(), pa.string_view())


class Span(NamedTuple):
    """What an ISO 8601 duration must mean, however it is written."""

    months: int
    days: int
    seconds: Fraction


class RefusedError(Exception):
    """A value that the rules of the row cannot write."""


def meant(reject_nan, kind, value):
    """Return what json should read, one value at a time. Raises RefusedError for what cannot be sent."""
    if value is None or isinstance(value, Hidden):
        return None
    return next(mean for holds, mean in MEANINGS if holds(kind))(value, kind, partial(meant, reject_nan))


def a_float(value, kind, inner):
    if np.isfinite(value):
        return {16: np.float16, 32: np.float32, 64: np.float64}[kind.bit_width](value)
    if inner.args[0]:
        raise RefusedError
    return None


def an_interval(value, _kind, _inner):
    if min(value) < 0 < max(value):
        raise RefusedError
    return Span(value[0], value[1], Fraction(value[2], 10**9))


def a_date(value, kind, _inner):
    try:
        return (date(1970, 1, 1) + timedelta(value if types.is_date32(kind) else value // 86_400_000)).isoformat()
    except OverflowError:
        raise RefusedError from None


def an_instant(value, kind, _inner):
    ticks = TICKS[kind.unit]
    try:
        instant = datetime(1970, 1, 1) + timedelta(seconds=value // ticks)  # noqa: DTZ001 - a text of ISO 8601
    except OverflowError:
        raise RefusedError from None
    fraction = f"{Decimal(value % ticks) / ticks:.9f}".rstrip("0").lstrip("0").rstrip(".")
    if types.is_time(kind):
        return instant.time().isoformat() + fraction
    return instant.isoformat() + fraction + ("Z" if kind.tz else "")


def a_map(value, kind, inner):
    pairs = [[inner(kind.key_type, key), inner(kind.item_type, item)] for key, item in value]
    if kind.key_type not in TEXTS:
        return pairs
    if len(dict(pairs)) < len(pairs):
        raise RefusedError
    return dict(pairs)


def a_tensor(value, kind, inner):
    flat = inner(kind.storage_type, value)
    return [flat[:3], flat[3:]] if kind == TENSOR else [flat[::3], flat[1::3], flat[2::3]]


MEANINGS = [
    (lambda kind: kind == pa.uuid(), lambda value, _kind, _inner: str(uuid.UUID(bytes=value))),
    (lambda kind: kind == pa.bool8(), lambda value, _kind, _inner: value != 0),
    (lambda kind: kind in (TENSOR, TURNED), a_tensor),
    (types.is_floating, a_float),
    (types.is_interval, an_interval),
    (types.is_date, a_date),
    (types.is_duration, lambda value, kind, _inner: Span(0, 0, Fraction(value, TICKS[kind.unit]))),
    (types.is_temporal, an_instant),
    (types.is_map, a_map),
    (types.is_struct, lambda value, kind, inner: {field.name: inner(field.type, value[field.name]) for field in kind}),
    (types.is_nested, lambda value, kind, inner: [inner(kind.value_type, item) for item in value]),
    (types.is_dictionary, lambda value, kind, inner: inner(kind.value_type, value)),
    (types.is_run_end_encoded, lambda value, kind, inner: inner(kind.value_type, value)),
    (lambda _: True, lambda value, _, __: base64.b64encode(value).decode() if isinstance(value, bytes) else value),
]

SPAN = re.compile(
    r"(-?)P(?=.)(?:([1-9]\d*)Y)?(?:([1-9]|1[01])M)?(?:([1-9]\d*)D)?"
    r"(?:T(?=.)(?:([1-9]\d*)H)?(?:([1-9]|[1-5]\d)M)?(?:([1-5]?\d(?:\.\d*[1-9])?)S)?)?"
)


def span(text):
    """Read an ISO 8601 duration, which must be in its one canonical form."""
    sign, *parts = SPAN.fullmatch(text).groups()
    years, months, days, hours, minutes, seconds = (Fraction(part or 0) for part in parts)
    factor = -1 if sign else 1
    return Span(factor * (12 * years + months), factor * days, factor * (3600 * hours + 60 * minutes + seconds))


def same(read, value):
    """Whether what json read is what is meant: same types, floats as short as can be, names in order."""
    return next(agree for kind, agree in AGREEMENTS.items() if isinstance(value, kind))(read, value)


def same_float(read, value):
    back = type(value)(float(read))
    short = type(read) is Decimal and digits(read) == digits(value)
    return short and back == value and np.signbit(back) == np.signbit(value)


def same_span(read, value):
    found = span(read)
    if value.months or value.days:
        return found == value
    return found.months == 0 and found.days * 86_400 + found.seconds == value.seconds


def digits(number):
    return "".join(c for c in str(number).lower().split("e")[0] if c.isdigit()).strip("0")


AGREEMENTS = {
    np.floating: same_float,
    Decimal: lambda read, value: type(read) in (int, Decimal) and Decimal(read) == value,
    Span: same_span,
    dict: lambda read, value: list(read) == list(value) and all(same(read[name], value[name]) for name in value),
    list: lambda read, value: type(read) is list and len(read) == len(value) and all(map(same, read, value)),
    object: lambda read, value: type(read) is type(value) and read == value,
}


def as_said(schema, rows, *, reject_nan=False):
    """Return each row as JSON should read it, a dict; None where it cannot be sent."""
    return [_as_said(schema, row, reject_nan) for row in rows]


def _as_said(schema, row, reject_nan):
    try:
        return {
            name: meant(reject_nan, kind, value)
            for name, kind, value in zip(schema.names, schema.types, row, strict=True)
        }
    except RefusedError:
        return None


@st.composite
def tables(draw, kinds=KINDS, max_rows=5):
    """Columns of any types: their schema, and rows of values."""
    fields = draw(st.lists(st.tuples(st.text(), kinds), min_size=1, max_size=3, unique_by=lambda field: field[0]))
    rows = st.tuples(*(values_of(kind) for _, kind in fields))
    return pa.schema(fields), draw(st.lists(rows, max_size=max_rows))


def batch_of(schema, rows):
    """Build the rows as Arrow has them."""
    columns = [build([row[at] for row in rows], kind) for at, kind in enumerate(schema.types)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
