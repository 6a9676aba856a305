"""The json protocol: bodies made from a template, answers found by a JMESPath.

A template with `$rows` takes many rows a request: they stand where `$rows` stands, and the answers are a list as long.
Without it a row is a whole body. What a template says of a row becomes one Python value of the columns' values, as
objects and lists around them, and all rows become JSON in one call.

An answer that no path is given for is kept as it stands in the reply. One that is found by a path is written anew.
"""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, Any, Final

import jmespath
import msgspec
from msgspec import Raw
from msgspec.json import Decoder

from pipeline.adapter import Adapter
from pipeline.encode import Encoded, bytes_form, column_form, encoded_lines, json_of
from pipeline.jsonform import row_of, rows_of
from pipeline.leaves import Converted
from pipeline.pack import MAX_ROWS
from pipeline.replies import UNREADABLE, failure, misfit, texts, whole
from schemas.template import BASE64, ROWS, columns, mark_of, one_row

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pyarrow as pa

    from pipeline.status import Fault
    from schemas.job import Input
    from schemas.options import JsonOptions

    Values = Callable[[pa.RecordBatch], Converted]

_KEY: Final = "service.options.body"
_LIST: Final = Decoder(list[Raw])
_SHOWN: Final = 200


class Template(Adapter):
    """Frames rows by a template, and finds their answers in replies."""

    def __init__(self, options: JsonOptions) -> None:
        self.method = options.method
        self._body = options.body
        self._alone = one_row(options.body)
        self.most_rows = 1 if self._alone else MAX_ROWS
        self.envelope = (b"", b"") if self._alone else _frame(options.body)
        self._told = f"service.options.answer {options.answer!r}"
        self._path = options.answer and jmespath.compile(options.answer)

    def named(self, given: Input) -> Mapping[str, Sequence[str]]:  # noqa: ARG002 - the template says
        """Return the columns that the template names."""
        return {_KEY: columns(self._body)}

    def columns(self, given: Input, names: Sequence[str]) -> tuple[str, ...]:  # noqa: ARG002
        """Return the columns that the template names, and no others."""
        return columns(self._body)

    def encoder(self, given: Input, schema: pa.Schema, send: Sequence[str]) -> TemplateEncoder:  # noqa: ARG002
        """Return what fills in the template, or what it has for each row."""
        body = self._body if self._alone else _rows(self._body)
        return TemplateEncoder(body, schema, reject_nan=given.nan == "reject")

    def read(
        self,
        status: int,
        headers: Mapping[str, str],
        body: bytes,
        *,
        uuid: str,  # noqa: ARG002
        rows: int,
    ) -> pa.Array[Any] | Fault:
        """Return the rows' answers as JSON texts, in order, or why this reply is none."""
        if not self._path and self._alone:
            return whole(status, headers, body)
        fault = failure(status, headers, body)
        if fault:
            return fault
        try:
            found = self._found(body)
        except UNREADABLE as error:
            return misfit(status, f"the reply cannot be read: {error}")
        except (ValueError, TypeError) as error:  # what JMESPath raises, or an expression that it found
            return misfit(status, f"{self._told}: {str(error).partition(chr(10))[0]}")
        if found is None:
            return misfit(status, f"{self._told} finds nothing in {_beginning(body)}")
        return texts(status, [found]) if self._alone else self._each(found, body, status=status, rows=rows)

    def _found(self, body: bytes) -> Any:
        """Return what the path finds as JSON, or a whole reply's items; of a list for many rows, the JSON of each."""
        if not self._path:
            return _LIST.decode(body)
        found = self._path.search(msgspec.json.decode(body))
        if isinstance(found, list) and not self._alone:
            return [Raw(json_of(one)) for one in found]
        return None if found is None else Raw(json_of(found))

    def _each(self, found: Any, body: bytes, *, status: int, rows: int) -> pa.Array[Any] | Fault:
        """Return the items of the list that was found, one a row."""
        if not isinstance(found, list):
            return misfit(status, f"{self._told} finds no list in {_beginning(body)}")
        if len(found) != rows:
            return misfit(status, f"{rows} rows were sent, {len(found)} answers came back")
        return texts(status, found)


class TemplateEncoder:
    """Encodes rows as a template says. Raises JobError for columns that cannot be sent so."""

    def __init__(self, template: object, schema: pa.Schema, *, reject_nan: bool) -> None:
        self._values = _compiled(template, schema, reject_nan=reject_nan)

    def encode(self, batch: pa.RecordBatch, row_uuids: pa.Array[Any] | None = None) -> Encoded:  # noqa: ARG002
        """Encode all rows of the batch, in order."""
        return encoded_lines(self._values(batch))


def _compiled(template: object, schema: pa.Schema, *, reject_nan: bool) -> Values:
    """Return what makes of a batch what a template says of each of its rows."""
    marked = mark_of(template)
    if marked:
        return _column(*marked, schema, reject_nan=reject_nan)
    if not columns(template):
        constant = Raw(json_of(template))
        return lambda batch: Converted(list(repeat(constant, batch.num_rows)), {})
    if isinstance(template, dict):
        row, parts = row_of(list(template)), list(template.values())
    else:
        assert isinstance(template, list)
        row, parts = (lambda *values: values), template
    values = [_compiled(part, schema, reject_nan=reject_nan) for part in parts]
    paths = [""] * len(values)  # a fault names its column
    return lambda batch: rows_of(row, paths, [make(batch) for make in values], batch.num_rows)


def _column(mark: str, name: str, schema: pa.Schema, *, reject_nan: bool) -> Values:
    field = schema.field(name)
    form = bytes_form(field, _KEY) if mark == BASE64 else column_form(field, _KEY, reject_nan=reject_nan)

    def values(batch: pa.RecordBatch) -> Converted:
        found, faults = form(batch.column(name))
        return Converted(found, {position: name + fault for position, fault in faults.items()})

    return values


def _rows(template: object) -> object:
    """Return what is inside of `$rows`."""
    marked = mark_of(template)
    if marked:
        return marked[1] if marked[0] == ROWS else None
    inside = template.values() if isinstance(template, dict) else template if isinstance(template, list) else ()
    return next((found for one in inside if (found := _rows(one)) is not None), None)


def _frame(template: object) -> tuple[bytes, bytes]:
    """Return what stands before and behind the rows: JSON has no raw newline, so one can stand for them."""
    before, behind = json_of(_framed(template)).split(b"\n")
    return before, behind


def _framed(template: object) -> object:
    if mark_of(template):  # there is no other outside
        return Raw(b"[\n]")
    if isinstance(template, dict):
        return {key: _framed(value) for key, value in template.items()}
    return [_framed(value) for value in template] if isinstance(template, list) else template


def _beginning(body: bytes) -> str:
    text = " ".join(body[: _SHOWN + 1].decode("utf-8", "replace").split())
    return text if len(body) <= _SHOWN else f"{text[:_SHOWN]}..."
