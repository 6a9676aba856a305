"""Record batches -> one JSON object a row, as bytes.

The rules of the row (numbers keep their digits, floats always show a point or an exponent, nulls are sent) hold for
every protocol that sends JSON. Columns become Python values, values become rows, rows become newline-separated JSON
in one call: a JSON text never contains a raw newline, so the newlines are the row borders.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.errors import JobError
from pipeline.jsonform import NoJsonForm, form_of, is_bytes, is_text, row_of, rows_of
from pipeline.leaves import Converted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pyarrow as pa

    from pipeline.leaves import Form
    from schemas.job import Input

Int64s = npt.NDArray[np.int64]

LONG: Final = 1000
"""Bytes of a row: from here on, looking at each byte of all rows at once takes longer than Python for each row."""

_encoder: Final = msgspec.json.Encoder(decimal_format="number")


class Encoded(NamedTuple):
    """Rows as JSON: `lines` has a newline after each row, `ends[i]` is the offset behind row i's newline.

    `refused` maps a row's position to the reason why it must not be sent. A protocol may send one row a request, and
    that in another form: then `lines` has any bytes, and `shown` the JSON that dead letters show of each row instead.
    """

    lines: bytes
    ends: Int64s
    refused: Mapping[int, str]
    shown: pa.Array[Any] | None = None


class Encoder(Protocol):
    """Encodes rows for one protocol."""

    def encode(self, batch: pa.RecordBatch, row_uuids: pa.Array[Any] | None = None) -> Encoded:
        """Encode all rows of a batch, in order; without their uuids all are as long as with them."""


def encoded_lines(rows: Converted) -> Encoded:
    """Encode what is put together of each row."""
    lines = _encoder.encode_lines(rows.values)  # a list: of an iterator, msgspec 0.22 never lets go
    count = len(rows.values)
    return Encoded(lines, _found(lines, count) if are_long(len(lines), count) else _seen(lines), rows.faults)


def are_long(size: int, rows: int) -> bool:
    """Whether rows of so many bytes together are cheaper handled one by one than all at once."""
    return size > LONG * rows


def _seen(lines: bytes) -> Int64s:
    """Return where lines end, of many short ones."""
    return np.flatnonzero(np.frombuffer(lines, np.uint8) == ord("\n")) + 1


def _found(lines: bytes, count: int) -> Int64s:
    """Return the same of a few long ones."""
    ends = np.zeros(count, np.int64)
    end = 0
    for row in range(count):
        ends[row] = end = lines.index(b"\n", end) + 1
    return ends


def json_of(value: object) -> bytes:
    """Return a single value's JSON, by the rules of the row."""
    return _encoder.encode(value)


def text_of(value: object) -> str | None:
    """Return a converted value as plain text: as it stands in JSON, text without its quotes; null is None."""
    if value is None or isinstance(value, str):
        return value
    text = json_of(value).decode()
    if text.startswith('"'):  # bytes as base64, or a UUID: nothing in it is escaped
        return text[1:-1]
    return None if text == "null" else text


def data_columns(given: Input, names: Sequence[str]) -> tuple[str, ...]:
    """Return what is sent where the protocol has no choice of its own: `send`, or all that is not kept."""
    return given.send or tuple(name for name in names if name not in given.keep)


class RowEncoder:
    """Encodes batches of one schema. `rename` maps a column to the name the service expects.

    Raises JobError when a column's type has no JSON form, or two columns get the same name; `key` is the part of the
    job file that names the columns, for its message. With `b64` bytes are `{"b64": text}`.
    """

    def __init__(
        self,
        schema: pa.Schema,
        send: Sequence[str],
        *,
        rename: Mapping[str, str],
        reject_nan: bool = False,
        b64: bool = False,
        key: str = "input.send",
    ) -> None:
        self._send = tuple(send)
        self._forms = [column_form(schema.field(name), key, reject_nan=reject_nan, b64=b64) for name in send]
        self._row = row_of(wire_names(send, rename))

    def encode(self, batch: pa.RecordBatch, row_uuids: pa.Array[Any] | None = None) -> Encoded:  # noqa: ARG002
        """Encode all rows of the batch, in order."""
        columns = [form(batch.column(name)) for name, form in zip(self._send, self._forms, strict=True)]
        return encoded_lines(rows_of(self._row, self._send, columns, batch.num_rows))


def column_form(field: pa.Field[Any], key: str, *, reject_nan: bool, b64: bool = False) -> Form:
    """Return what converts a column that the job file's `key` names. Raises JobError where it has no JSON form."""
    try:
        return form_of(field.type, reject_nan=reject_nan, b64=b64)
    except NoJsonForm as what:
        raise JobError(
            f"{key}: column {field.name!r} has type {field.type}, and {what} has no JSON form; leave it out"
        ) from None


def bytes_form(field: pa.Field[Any], key: str) -> Form:
    """Return what converts a column to bytes: its own, or its text's UTF-8. Raises JobError where it has neither."""
    kind = field.type
    if not (is_bytes(kind) or is_text(kind)):
        raise JobError(f"{key}: column {field.name!r} has type {kind}; allowed: binary, or text (sent as UTF-8)")
    form = form_of(kind)
    return _utf8(form) if is_text(kind) else form


def _utf8(form: Form) -> Form:
    def encoded(column: Any) -> Converted:
        values, faults = form(column)
        return Converted([None if one is None else one.encode() for one in values], faults)

    return encoded


def wire_names(send: Iterable[str], rename: Mapping[str, str]) -> list[str]:
    """Return the names that the service sees, which must differ."""
    senders: dict[str, str] = {}
    for column in send:
        name = rename.get(column, column)
        if name in senders:
            raise JobError(
                f"input.rename: columns {senders[name]!r} and {column!r} are both sent as {name!r}; "
                "give each a name of its own"
            )
        senders[name] = column
    return list(senders)
