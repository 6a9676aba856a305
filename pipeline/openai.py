"""OpenAI's protocols: what chat completions have in common with embeddings, many rows a request, which are here.

An embedding's answer is `{"embedding": [...]}`: replies are put in the rows' order by `index`, and base64 (of
little-endian float32: half the bytes) is asked for, unless `parameters` say otherwise.
"""

from __future__ import annotations

from base64 import b64decode
from math import isfinite
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
from msgspec import Raw, Struct
from msgspec.json import Decoder
from pyarrow import types

from pipeline.adapter import Adapter
from pipeline.addresses import address
from pipeline.encode import json_of
from pipeline.errors import JobError
from pipeline.jsonform import form_of
from pipeline.replies import UNREADABLE, counted, misfit, texts
from pipeline.servers import around, finite, judged, without
from pipeline.status import SUCCESS
from pipeline.template import TemplateEncoder
from schemas.template import COLUMN, columns, mark_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pipeline.encode import Encoded
    from pipeline.leaves import Form
    from pipeline.status import Fault
    from schemas.job import Input
    from schemas.servers import ChatOptions, EmbeddingsOptions

MOST_INPUTS: Final = 2048
FAMILY: Final = "openai"
_TOLD: Final = 300


class _FullEncoder(TemplateEncoder):
    """Encodes rows, but for those with a null: servers make nothing of it, and some fail as if they were ill."""

    def __init__(self, template: object, schema: pa.Schema, *, reject_nan: bool) -> None:
        super().__init__(template, schema, reject_nan=reject_nan)
        self._forms = {name: form_of(schema.field(name).type) for name in columns(template)}

    def encode(self, batch: pa.RecordBatch, row_uuids: pa.Array[Any] | None = None) -> Encoded:
        """Encode all rows of the batch, in order."""
        encoded = super().encode(batch, row_uuids)
        nulls = {
            row: f"{name} {what}, and OpenAI's protocols have no null there"
            for name, form in self._forms.items()
            for row, what in _nulls(batch.column(name), form)
        }
        return encoded._replace(refused={**nulls, **encoded.refused})


def _nulls(column: pa.Array[Any], form: Form) -> Iterator[tuple[int, str]]:
    """Yield the rows of which null is sent, as their value or in their lists: what is NaN becomes null, too.

    The fields of an object may be null: that is how a table has messages of which each has other fields.
    """
    if column.null_count == 0 and (types.is_string(column.type) or types.is_large_string(column.type)):
        return
    for row, value in enumerate(form(column).values):
        if _is_null(value):
            yield row, "has a null in it" if isinstance(value, list) else "is null"


def _is_null(value: object) -> bool:
    if isinstance(value, float):
        return not isfinite(value)
    if not isinstance(value, list) or not value:
        return value is None
    return None in value or (isinstance(value[0], float | list) and any(map(_is_null, value)))


class Templated(Adapter):
    """What both have in common: a template says what is sent of a row, under one key."""

    most_rows = 1
    protocol = ""
    key = ""
    found_under = ""

    def __init__(self, options: ChatOptions | EmbeddingsOptions) -> None:
        self._options = options
        self._template: object = getattr(options, self.key)
        self.envelope = around(self.key, self._beside(), alone=self.most_rows == 1)

    def _beside(self) -> dict[str, Any]:
        return {"model": self._options.model, **self._options.parameters}

    def address(self, url: str) -> str:
        """Return the URL to call."""
        return address(self.protocol, self._options, url)

    def named(self, given: Input) -> Mapping[str, Sequence[str]]:  # noqa: ARG002 - the template says
        """Return the columns that the template names."""
        return {f"service.options.{self.key}": columns(self._template)}

    def columns(self, given: Input, names: Sequence[str]) -> tuple[str, ...]:  # noqa: ARG002
        """Return the columns that the template names, and no others."""
        return columns(self._template)

    def encoder(self, given: Input, schema: pa.Schema, send: Sequence[str]) -> TemplateEncoder:  # noqa: ARG002
        """Return what fills in the template for each row that has all columns of it."""
        return _FullEncoder(self._template, schema, reject_nan=given.nan == "reject")

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
        if status not in SUCCESS:
            return judged(FAMILY, status, headers, body)
        try:
            return self._answers(status, finite(body), rows)
        except UNREADABLE as error:
            if body.lstrip()[:1] == b"{" and b'"error"' in body:
                return without(FAMILY, status, body, self.found_under)
            return misfit(status, f"the reply cannot be read: {error}")
        except Exception as error:  # noqa: BLE001 - what it was not written for is never an answer
            told = " ".join(f"{type(error).__name__}: {error}".split())[:_TOLD]
            return misfit(status, f"the reply is not what was agreed: {told}")

    def _answers(self, status: int, body: bytes, rows: int) -> pa.Array[Any] | Fault:
        raise NotImplementedError


class _Item(Struct):
    index: int
    embedding: Raw


class _Items(Struct):
    data: list[_Item]


_ITEMS: Final = Decoder(_Items)
_TEXT: Final = Decoder(str)
_FLOATS: Final = form_of(pa.float32())
_IN_NUMBERS: Final = b"0123456789+-.eE, \t\r\n"
"""What a list of numbers consists of; any other value has other bytes in it."""


class Embeddings(Templated):
    """Frames rows as one request for their embeddings."""

    protocol = "openai-embeddings"
    key = "input"
    found_under = "data"
    most_rows = MOST_INPUTS

    def encoder(self, given: Input, schema: pa.Schema, send: Sequence[str]) -> TemplateEncoder:
        """Return what fills in the template. Raises JobError for what is neither text nor lists of tokens."""
        mark, name = mark_of(self._template) or ("", "")
        if mark == COLUMN and not _is_embedded(schema.field(name).type):
            raise JobError(
                f"service.options.input: column {name!r} has type {schema.field(name).type}, and a list of numbers is "
                "read as the tokens of one text; allowed: text, or lists of integers (tokens); "
                f"mend: input.columns: {{{name}: string}}, or another column"
            )
        return super().encoder(given, schema, send)

    def _beside(self) -> dict[str, Any]:
        return {"encoding_format": "base64", **super()._beside()}

    def _answers(self, status: int, body: bytes, rows: int) -> pa.Array[Any] | Fault:
        items = sorted(_ITEMS.decode(body).data, key=lambda item: item.index)
        fault = counted(status, items, rows)
        if fault:
            return fault
        if [item.index for item in items] != list(range(rows)):
            return misfit(status, f"the reply has not every index from 0 to {rows - 1} once")
        try:
            return texts(status, [b'{"embedding":%s}' % _vector(bytes(item.embedding)) for item in items])
        except (ValueError, *UNREADABLE) as error:
            return misfit(status, f"an embedding is neither numbers in a list nor float32s in base64: {error}")


def _is_embedded(kind: Any) -> bool:
    """Whether values of a type are texts, or lists of integers, however they are stored."""
    kind = _stored(kind)
    if any(holds(kind) for holds in _LISTS):
        return types.is_integer(_stored(kind.value_type))
    return not any(holds(kind) for holds in _NO_TEXTS)


def _stored(kind: Any) -> Any:
    """Return the type of the values in a dictionary, in runs, or of an extension that is sent as what it stores."""
    while True:
        if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
            kind = kind.value_type
        elif isinstance(kind, pa.BaseExtensionType) and kind.extension_name != "arrow.uuid":
            kind = kind.storage_type
        else:
            return kind


_LISTS: Final = (
    types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view,
)  # fmt: skip
_NO_TEXTS: Final = (
    types.is_integer, types.is_floating, types.is_decimal, types.is_boolean, types.is_struct, types.is_map,
)  # fmt: skip


def _vector(found: bytes) -> bytes:
    """Return a vector as JSON: a list as it stands, or one of float32s. Raises ValueError for what is neither."""
    if found[:1] == b"[" and found.translate(None, _IN_NUMBERS) == b"[]" and found[1:-1].strip():
        return found
    if found[:1] != b'"':
        raise ValueError(found[:100].decode("utf-8", "replace"))
    numbers = np.frombuffer(b64decode(_TEXT.decode(found), validate=True), "<f4")
    if not numbers.size or not np.isfinite(numbers).all():
        raise ValueError("it is empty, or has NaN or infinities")
    return json_of(_FLOATS(pa.array(numbers.astype(np.float32))).values)
