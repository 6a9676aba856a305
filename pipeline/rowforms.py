"""The forms of a row among others: an object, a list of values, a value, or the columns of a request of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from pyarrow import types

from pipeline.encode import RowEncoder, column_form
from pipeline.errors import JobError
from pipeline.leaves import Converted
from pipeline.tensors import depth_of, first_of, peeled

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from pipeline.leaves import Form
    from schemas.job import Input

RowForm = Literal["objects", "lists", "values", "columns"]
"""The first three are those of the option `rows`; of the last, rows are joined when a request is sent."""


class RowFormEncoder(RowEncoder):
    """Encodes rows in a form, bytes as `{"b64": text}` with `b64`. Raises JobError for columns that cannot be sent so.

    `tensors` is the server that reads values as tensors: what none can be is refused, in its name.
    """

    def __init__(
        self,
        schema: pa.Schema,
        send: Sequence[str],
        given: Input,
        *,
        form: RowForm,
        b64: bool = False,
        tensors: str | None = None,
    ) -> None:
        reject_nan = given.nan == "reject"
        super().__init__(schema, send, rename=given.rename, reject_nan=reject_nan, b64=b64)
        if form == "values" and len(send) != 1:
            raise JobError(
                f"service.options.rows: 'values' sends one column, and input.send has {len(send)}; allowed: lists"
            )
        if tensors:
            self._forms = [tensor_form(schema.field(name), tensors, reject_nan=reject_nan, b64=b64) for name in send]
        if form == "columns":
            self._forms = [_columns_of(one) for one in self._forms]
        elif form != "objects":
            self._row = _value if form == "values" else _list


def _columns_of(form: Form) -> Form:
    def converted(column: Any) -> Converted:
        values, faults = form(column)
        return Converted(list(zip(values, strict=True)), faults)  # of one each: tuples are cheap, and JSON lists

    return converted


def _value(value: object) -> object:
    return value


def _list(*values: object) -> object:
    return values


_ALLOWED: Final = "numbers, booleans, text, bytes, and lists of them"


def tensor_form(field: pa.Field[Any], server: str, *, reject_nan: bool, b64: bool) -> Form:
    """Return what converts a column to values that can stand in tensors: with nothing missing, each of one shape."""
    if types.is_nested(depth_of(field.type)[1]):
        raise JobError(
            f"input.send: column {field.name!r} has type {field.type}; {server} takes {_ALLOWED}; leave it out"
        )
    form = column_form(field, "input.send", reject_nan=reject_nan, b64=b64)

    def converted(column: Any) -> Converted:
        rows, leaf = peeled(column, server)
        faults = dict(rows.faults)
        if types.is_floating(leaf.type):
            odd = ~np.isfinite(leaf.fill_null(0).to_numpy(zero_copy_only=False))
            for row, at in first_of(odd, rows):
                faults.setdefault(
                    row, f" {'has' if rows.shapes[row] else 'is'} {leaf[at]}, and JSON has no such number"
                )
        values, told = form(column)
        return Converted(values, {**faults, **told})

    return converted
