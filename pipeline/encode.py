"""Record batches -> one JSON object a row, as bytes.

The rules of the row (numbers keep their digits, floats always show a point or an exponent, nulls are sent) hold for
every protocol that sends JSON. Columns become Python values, values become rows, rows become newline-separated JSON
in one call: a JSON text never contains a raw newline, so the newlines are the row borders.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.errors import JobError
from pipeline.jsonform import NoJsonForm, form_of, row_of, rows_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pyarrow as pa

    from pipeline.leaves import Form

Int64s = npt.NDArray[np.int64]

_encoder: Final = msgspec.json.Encoder(decimal_format="number")


class Encoded(NamedTuple):
    """Rows as JSON: `lines` has a newline after each row, `ends[i]` is the offset behind row i's newline.

    `refused` maps a row's position to the reason why it must not be sent.
    """

    lines: bytes
    ends: Int64s
    refused: Mapping[int, str]


class RowEncoder:
    """Encodes batches of one schema. `rename` maps a column to the name the service expects.

    Raises JobError when a column's type has no JSON form, or two columns get the same name; `key` is the part of the
    job file that names the columns, for its message.
    """

    def __init__(
        self,
        schema: pa.Schema,
        send: Sequence[str],
        *,
        rename: Mapping[str, str],
        reject_nan: bool = False,
        key: str = "input.send",
    ) -> None:
        self._send = tuple(send)
        self._forms = [_form_of(schema.field(name), key, reject_nan=reject_nan) for name in send]
        self._row = row_of(_wire_names(send, rename))

    def encode(self, batch: pa.RecordBatch) -> Encoded:
        """Encode all rows of the batch, in order."""
        columns = [form(batch.column(name)) for name, form in zip(self._send, self._forms, strict=True)]
        rows = rows_of(self._row, self._send, columns, batch.num_rows)
        lines = _encoder.encode_lines(rows.values)  # a list: of an iterator, msgspec 0.22 never lets go
        return Encoded(lines, np.flatnonzero(np.frombuffer(lines, np.uint8) == ord("\n")) + 1, rows.faults)


def _form_of(field: pa.Field[Any], key: str, *, reject_nan: bool) -> Form:
    try:
        return form_of(field.type, reject_nan=reject_nan)
    except NoJsonForm as what:
        raise JobError(
            f"{key}: column {field.name!r} has type {field.type}, and {what} has no JSON form; leave it out"
        ) from None


def _wire_names(send: Iterable[str], rename: Mapping[str, str]) -> list[str]:
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
