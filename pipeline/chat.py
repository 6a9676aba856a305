"""OpenAI's chat completions, one row a request.

An answer is `{"content", "finish_reason", "usage"}`, with `tool_calls` and `refusal` where the reply has them; a stream
of chunks is put together to the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct
from msgspec.json import Decoder

from pipeline.encode import json_of
from pipeline.openai import FAMILY, Templated
from pipeline.replies import counted, misfit, texts
from pipeline.servers import judged

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from pipeline.status import Fault
    from schemas.servers import ChatOptions

_ERROR: Final = "error"
_FAILED: Final = range(400, 600)


class _Choice(Struct):
    message: dict[str, Any] | None = None
    delta: dict[str, Any] | None = None
    finish_reason: Any = None
    index: int = 0
    error: Any = None


class _Completion(Struct):
    choices: list[_Choice]
    usage: Any = None
    error: Any = None


class _Chunk(Struct):
    choices: list[_Choice] = []
    usage: Any = None
    error: Any = None


_COMPLETION: Final = Decoder(_Completion)
_CHUNKS: Final = Decoder(list[_Chunk])


class Chat(Templated):
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
        fault = _broken_off(whole) or counted(status, whole.choices, rows)
        if fault:
            return fault
        [choice] = whole.choices
        if streamed and choice.finish_reason is None:
            return misfit(status, "the stream has ended without a finish_reason")
        if choice.message is None:
            return misfit(status, f"the reply's choice has no {'delta' if streamed else 'message'!r}")
        return texts(status, [json_of(_answer(choice.message, choice.finish_reason, whole.usage))])


def _broken_off(whole: _Completion) -> Fault | None:
    """Return the fault of a model that failed behind a success: its error means what it would mean as a status.

    Without a number of its own it is a crash, as of a 500.
    """
    ended = any(choice.finish_reason == _ERROR for choice in whole.choices)
    errors = (*(choice.error for choice in whole.choices), whole.error, ended and f"it ended as {_ERROR!r}")
    error = next(filter(None, errors), None)
    if not error:
        return None
    code = error.get("code") if isinstance(error, dict) else None
    status = code if type(code) is int and code in _FAILED else 500
    fault = judged(FAMILY, status, {}, json_of({"error": error}))
    return fault._replace(message=f"the model failed behind a success: {fault.message}")


def _answer(message: Mapping[str, Any], finish_reason: object, usage: object) -> dict[str, Any]:
    said = {name: value for name, value in message.items() if name != "role" and value is not None}
    calls = said.get("tool_calls")
    if isinstance(calls, list) and all(isinstance(call, dict) for call in calls):
        said["tool_calls"] = _ordered(calls)
    return {"content": None, **said, "finish_reason": finish_reason, "usage": usage}


def _ordered(calls: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return calls in the order of `index`, which then says no more; those without one come last, as they came."""
    indices = [_index(call) for call in calls]
    order = sorted(range(len(calls)), key=lambda at: (indices[at] is None, indices[at] or 0))
    return [{name: value for name, value in calls[at].items() if name != "index"} for at in order]


def _joined(chunks: Sequence[_Chunk]) -> _Completion:
    """Put the chunks of a stream together: texts in order, tool calls by their index, the last usage, any error."""
    whole: dict[int, _Choice] = {}
    usage = error = None
    for chunk in chunks:
        usage = chunk.usage if chunk.usage is not None else usage
        error = error or chunk.error
        for part in chunk.choices:
            choice = whole.setdefault(part.index, _Choice())
            if part.delta is not None:
                choice.message = _merged(choice.message or {}, part.delta)
            choice.finish_reason = part.finish_reason if part.finish_reason is not None else choice.finish_reason
            choice.error = choice.error or part.error
    return _Completion([whole[index] for index in sorted(whole)], usage, error)


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
