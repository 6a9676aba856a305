"""The file protocol: one file a request, as a browser sends a form that has been filled in (multipart/form-data).

The file is called by the input's column `name`, where that is text, else by its row_uuid. Names go as UTF-8, with CR,
LF and quotes percent-encoded, as the WHATWG has it. A field whose column is null is left out. An empty file is sent:
what to make of it is for the model to say. A file that is null is refused.
"""

from __future__ import annotations

from functools import lru_cache
from mimetypes import MimeTypes
from posixpath import splitext
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
from urllib3.fields import RequestField
from urllib3.filepost import encode_multipart_formdata

from pipeline.adapter import Adapter
from pipeline.encode import Encoded, bytes_form, column_form, json_of, text_of
from pipeline.jsonform import is_text
from pipeline.replies import whole

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.leaves import Form
    from pipeline.status import Fault
    from schemas.job import Input
    from schemas.options import FileOptions

NAME: Final = "name"
"""The column that names files, if the input has it: inputs whose rows are files do."""

ANY: Final = "application/octet-stream"
_NOBODY: Final = "0" * 36
_types: Final = MimeTypes()  # Python's own table: that of the machine is another on each


class Multipart(Adapter):
    """Makes a form of each row; `boundary` stands between its parts, and must be nothing that a file can have in it."""

    most_rows = 1
    envelope = b"", b""

    def __init__(self, options: FileOptions, boundary: str) -> None:
        self._options = options
        self._boundary = boundary
        self.content_type = f"multipart/form-data; boundary={boundary}"

    def named(self, given: Input) -> Mapping[str, Sequence[str]]:  # noqa: ARG002 - the options say
        """Return the columns that the options name."""
        form = [one["$column"] for one in self._options.form.values() if isinstance(one, dict)]
        return {"service.options.content": [self._options.content], "service.options.form": form}

    def columns(self, given: Input, names: Sequence[str]) -> tuple[str, ...]:
        """Return what the options name, and `name`; a text in the form may name a column, or be one by itself."""
        if given.send:  # settled when the job was planned: a file with more columns changes nothing
            return given.send
        named = [name for some in self.named(given).values() for name in some]
        perhaps = [NAME, *(one for one in self._options.form.values() if isinstance(one, str))]
        return tuple(dict.fromkeys((*named, *(one for one in perhaps if one in names))))

    def encoder(self, given: Input, schema: pa.Schema, send: Sequence[str]) -> FormEncoder:
        """Return what makes the bodies."""
        return FormEncoder(self._options, self._boundary, schema, send, reject_nan=given.nan == "reject")

    def read(
        self,
        status: int,
        headers: Mapping[str, str],
        body: bytes,
        *,
        uuid: str,  # noqa: ARG002
        rows: int,  # noqa: ARG002
    ) -> pa.Array[Any] | Fault:
        """Return the whole reply as the answer, or why it is none."""
        return whole(status, headers, body)


class Messages(Multipart):
    """Makes a message of each row, over a transport that has no forms: the file's bytes alone."""

    def __init__(self, options: FileOptions, boundary: str) -> None:
        super().__init__(options, boundary)
        self.content_type = ANY

    def encoder(self, given: Input, schema: pa.Schema, send: Sequence[str]) -> MessageEncoder:
        """Return what makes the messages."""
        return MessageEncoder(self._options, self._boundary, schema, send, reject_nan=given.nan == "reject")


class FormEncoder:
    """Encodes each row as a whole body. Raises JobError for columns that cannot be sent so."""

    def __init__(
        self, options: FileOptions, boundary: str, schema: pa.Schema, send: Sequence[str], *, reject_nan: bool
    ) -> None:
        self._field, self._content, self._type = options.field, options.content, options.part_type
        self._boundary = boundary
        self._bytes = bytes_form(schema.field(self._content), "service.options.content")
        self._named = NAME in send and self._content != NAME and is_text(schema.field(NAME).type)
        self._form: dict[str, str | tuple[str, Form]] = {}
        for name, value in options.form.items():
            column = value["$column"] if isinstance(value, dict) else value
            if isinstance(column, str) and column in send:
                form = column_form(schema.field(column), "service.options.form", reject_nan=reject_nan)
                self._form[name] = column, form
            else:
                self._form[name] = text_of(value) or ""

    def encode(self, batch: pa.RecordBatch, row_uuids: pa.Array[Any] | None = None) -> Encoded:
        """Encode all rows; a null file, and a value that has no form, is refused."""
        rows, refused = batch.num_rows, dict[int, str]()
        contents = self._values(self._content, self._bytes, batch, refused)
        names = self._names(batch, row_uuids)
        forms = [list[tuple[str, str]]() for _ in range(rows)]
        for field, given in self._form.items():
            texts = [given] * rows if isinstance(given, str) else map(text_of, self._values(*given, batch, refused))
            for fields, text in zip(forms, texts, strict=True):
                if text is not None:
                    fields.append((field, text))
        for position, content in enumerate(contents):
            if content is None:
                refused.setdefault(position, f"{self._content} is null")
        filled = list(zip(names, forms, [content or b"" for content in contents], strict=True))
        bodies = [self._body(*one) for one in filled]
        shown = [json_of({"name": name, "size": len(content), "form": dict(form)}) for name, form, content in filled]
        ends = np.cumsum(np.fromiter(map(len, bodies), np.int64, rows) + 1)
        return Encoded(b"\n".join([*bodies, b""]), ends, refused, pa.array(shown, pa.binary()).cast(pa.string()))

    def _body(self, name: str, form: Sequence[tuple[str, str]], content: bytes) -> bytes:
        file = RequestField(self._field, content, name)
        file.make_multipart(content_type=self._type or type_of(splitext(name)[1]))
        fields = [RequestField.from_tuples(*field) for field in form]
        return encode_multipart_formdata([*fields, file], self._boundary)[0]

    def _names(self, batch: pa.RecordBatch, row_uuids: pa.Array[Any] | None) -> list[str]:
        uuids: list[str] = [_NOBODY] * batch.num_rows if row_uuids is None else row_uuids.to_pylist()  # type: ignore[assignment]
        if not self._named:
            return uuids
        given: list[str | None] = batch.column(NAME).cast(pa.string()).to_pylist()
        return [name or uuid for name, uuid in zip(given, uuids, strict=True)]

    @staticmethod
    def _values(column: str, form: Form, batch: pa.RecordBatch, refused: dict[int, str]) -> list[Any]:
        values, faults = form(batch.column(column))
        for position, fault in faults.items():
            refused.setdefault(position, column + fault)
        return values


class MessageEncoder(FormEncoder):
    """Encodes each row as its file."""

    def _body(self, name: str, form: Sequence[tuple[str, str]], content: bytes) -> bytes:  # noqa: ARG002
        return content


@lru_cache(maxsize=1024)  # names are anybody's
def type_of(suffix: str) -> str:
    """Guess a file's media type by its suffix; what is compressed is just bytes."""
    found, packed = _types.guess_type(f"file{suffix}", strict=False)
    return ANY if packed or not found else found
