"""OpenAI's protocols: chat completions, one row a request, and embeddings, many rows a request.

A chat's answer is `{"content", "finish_reason", "usage"}`, with `tool_calls` and `refusal` where the reply has them; a
stream of chunks is put together to the same. An embedding's answer is `{"embedding": [...]}`: replies are put in the
rows' order by `index`, and base64 (of little-endian float32: half the bytes) is asked for, unless `parameters` say
otherwise.
"""

from __future__ import annotations

from base64 import b64decode
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
    from collections.abc import Mapping, Sequence

    from pipeline.encode import Encoded
    from pipeline.status import Fault
    from schemas.job import Input
    from schemas.servers import ChatOptions, EmbeddingsOptions

MOST_INPUTS: Final = 2048
_FAMILY: Final = "openai"
_TOLD: Final = 300


class _FullEncoder(TemplateEncoder):
    """Encodes rows, but for those with a null: servers make nothing of it, and some fail as if they were ill."""

    def __init__(self, template: object, schema: pa.Schema, *, reject_nan: bool) -> None:
        super().__init__(template, schema, reject_nan=reject_nan)
        self._names = columns(template)

    def encode(self, batch: pa.RecordBatch, row_uuids: pa.Array[Any] | None = None) -> Encoded:
        """Encode all rows of the batch, in order."""
        encoded = super().encode(batch, row_uuids)
        nulls = {
            row: f"{name} is null, and OpenAI's protocols have no null there"
            for name in self._names
            if batch.column(name).null_count
            for row in np.flatnonzero(np.asarray(batch.column(name).is_null())).tolist()
        }
        return encoded._replace(refused={**nulls, **encoded.refused})


class _Templated(Adapter):
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
            return judged(_FAMILY, status, headers, body)
        try:
            return self._answers(status, finite(body), rows)
        except UNREADABLE as error:
            if body.lstrip()[:1] == b"{" and b'"error"' in body:
                return without(_FAMILY, status, body, self.found_under)
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


class Embeddings(_Templated):
    """Frames rows as one request for their embeddings."""

    protocol = "openai-embeddings"
    key = "input"
    found_under = "data"
    most_rows = MOST_INPUTS

    def encoder(self, given: Input, schema: pa.Schema, send: Sequence[str]) -> TemplateEncoder:
        """Return what fills in the template. Raises JobError for numbers: a list of them is one text, as tokens."""
        mark, name = mark_of(self._template) or ("", "")
        kind: Any = schema.field(name).type if mark == COLUMN else pa.null()
        if types.is_integer(kind) or types.is_floating(kind):
            raise JobError(
                f"service.options.input: column {name!r} has type {kind}, and a list of numbers is read as the tokens "
                f"of one text; allowed: text, or lists of tokens; mend: input.columns: {{{name}: string}}"
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
            return misfit(status, f"an embedding is neither a list nor float32s in base64: {error}")


def _vector(found: bytes) -> bytes:
    """Return a vector as JSON: a list as it stands, or one of float32s. Raises ValueError for what is neither."""
    if found[:1] == b"[":
        return found
    if found[:1] != b'"':
        raise ValueError(found[:100].decode("utf-8", "replace"))
    numbers = np.frombuffer(b64decode(_TEXT.decode(found), validate=True), "<f4")
    return json_of(_FLOATS(pa.array(numbers.astype(np.float32))).values)


class _Choice(Struct):
    message: dict[str, Any] = {}
    delta: dict[str, Any] | None = None
    finish_reason: Any = None
    index: int = 0


class _Completion(Struct):
    choices: list[_Choice]
    usage: Any = None


_COMPLETION: Final = Decoder(_Completion)
_CHUNKS: Final = Decoder(list[_Completion])


class Chat(_Templated):
    """Frames a row as a request for a chat completion."""

    protocol = "openai-chat"
    key = "messages"
    found_under = "choices"

    def __init__(self, options: ChatOptions) -> None:
        self._streamed = options.stream
        super().__init__(options)

    def _beside(self) -> dict[str, Any]:
        streamed = {"stream": True, "stream_options": {"include_usage": True}} if self._streamed else {}
        return {**super()._beside(), **streamed}

    def _answers(self, status: int, body: bytes, rows: int) -> pa.Array[Any] | Fault:
        streamed = body.lstrip()[:1] == b"["
        whole = _joined(_CHUNKS.decode(body)) if streamed else _COMPLETION.decode(body)
        fault = counted(status, whole.choices, rows)
        if fault:
            return fault
        [choice] = whole.choices
        if streamed and choice.finish_reason is None:
            return misfit(status, "the stream has ended without a finish_reason")
        return texts(status, [json_of(_answer(choice, whole.usage))])


def _answer(choice: _Choice, usage: object) -> dict[str, Any]:
    said = {name: value for name, value in choice.message.items() if name != "role" and value is not None}
    calls = said.get("tool_calls")
    if isinstance(calls, list) and all(isinstance(call, dict) for call in calls):
        said["tool_calls"] = _ordered(calls)
    return {"content": None, **said, "finish_reason": choice.finish_reason, "usage": usage}


def _ordered(calls: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return calls in the order of `index`, which then says no more; those without one come last, as they came."""
    indices = [_index(call) for call in calls]
    order = sorted(range(len(calls)), key=lambda at: (indices[at] is None, indices[at] or 0))
    return [{name: value for name, value in calls[at].items() if name != "index"} for at in order]


def _joined(chunks: Sequence[_Completion]) -> _Completion:
    """Put the chunks of a stream together: texts in order, tool calls by their index, the last usage."""
    whole: dict[int, _Choice] = {}
    usage = None
    for chunk in chunks:
        usage = chunk.usage if chunk.usage is not None else usage
        for part in chunk.choices:
            choice = whole.setdefault(part.index, _Choice(message={}))
            choice.message = _merged(choice.message, part.delta or {})
            choice.finish_reason = part.finish_reason if part.finish_reason is not None else choice.finish_reason
    return _Completion([whole[index] for index in sorted(whole)], usage)


_NAMES: Final = frozenset({"role", "id", "type", "name"})
"""What comes whole in each chunk that has it; other texts come in pieces."""


def _merged(before: dict[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(before)
    for name, value in more.items():
        known = merged.get(name)
        if isinstance(known, str) and isinstance(value, str) and name not in _NAMES:
            merged[name] = known + value
        elif isinstance(known, dict) and isinstance(value, dict):
            merged[name] = _merged(known, value)
        elif isinstance(value, list) and name == "tool_calls":
            merged[name] = _calls(known, value)
        elif value is not None:
            merged[name] = value
    return merged


def _calls(known: object, pieces: Sequence[Any]) -> list[Any]:
    """Add each piece to the call that has its `index`; one that has none, or null, is a call of its own."""
    calls = list(known) if isinstance(known, list) else []
    for piece in pieces:
        if not isinstance(piece, dict):
            continue
        index = _index(piece)
        mine = next((at for at, call in enumerate(calls) if index is not None and _index(call) == index), None)
        if mine is None:
            calls.append(piece)
        else:
            calls[mine] = _merged(calls[mine], piece)
    return calls


def _index(call: Mapping[str, Any]) -> int | None:
    index = call.get("index")
    return index if type(index) is int else None
