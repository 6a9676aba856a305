"""The Open Inference Protocol (V2): a request is a list of tensors, whose first axis is the rows.

A row is encoded as the tensors of a request of its own, `[{"name", "shape": [1, ...], "datatype", "data": [...]}]`,
and rows are packed like any others; `wire` joins their data, tensor by tensor, when the body is sent. Only what is
said of each tensor is dropped, so the body that is sent is never longer than the one that was packed.

An answer is an object of the reply's outputs: each the row's own part, and a plain value where a tensor has one a row,
whether its shape says [rows] or [rows, 1]. An output may have its data in JSON, or as bytes behind it.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, Final

from msgspec import UNSET, Raw, Struct, UnsetType
from msgspec.json import Decoder

from pipeline.adapter import Adapter
from pipeline.addresses import address
from pipeline.encode import json_of
from pipeline.replies import UNREADABLE, misfit, texts
from pipeline.servers import around, finite, judged, without
from pipeline.status import SUCCESS
from pipeline.tensorbytes import values_of
from pipeline.tensorrows import TensorEncoder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pyarrow as pa

    from pipeline.status import Fault
    from schemas.job import Input
    from schemas.servers import OpenInferenceOptions

PROTOCOL: Final = "open-inference"
LENGTH: Final = "Inference-Header-Content-Length"
"""The header that says how long the JSON is, where bytes follow it."""


class Tensor(Struct):
    """A tensor in JSON; `data` is a list, as it stands."""

    name: str
    shape: list[int]
    datatype: str
    data: Raw


class _Request(Struct):
    """A request as it is framed: all that the options add, and the tensors of each row."""

    inputs: list[list[Tensor]]
    outputs: Raw | UnsetType = UNSET
    parameters: Raw | UnsetType = UNSET


class _Sent(Struct):
    parameters: Raw | UnsetType
    outputs: Raw | UnsetType
    inputs: list[Tensor]


class _Parameters(Struct):
    binary_data_size: int | None = None


class _Output(Struct):
    """A tensor of a reply: its `data` are a list, or bytes behind the JSON, as many as its parameters say."""

    name: str
    shape: list[int]
    datatype: str
    data: Raw | UnsetType = UNSET
    parameters: _Parameters | None = None


class _Response(Struct):
    outputs: list[_Output]


_REQUEST: Final = Decoder(_Request)
_RESPONSE: Final = Decoder(_Response)
_ITEMS: Final = Decoder(list[Raw])
_TOLD: Final = 20
_MOST_EMPTY: Final = 10_000
"""How many empty lists a row's part may be made of."""


class OpenInference(Adapter):
    """Frames rows as one request of tensors, and takes the tensors of its reply apart."""

    def __init__(self, options: OpenInferenceOptions) -> None:
        self._options = options
        self.envelope = around("inputs", self._beside())

    def _beside(self) -> dict[str, Any]:
        """Return what a request says beside its tensors."""
        outputs = {"outputs": [{"name": name} for name in self._options.outputs]} if self._options.outputs else {}
        parameters = {"parameters": self._options.parameters} if self._options.parameters else {}
        return {**parameters, **outputs}

    def address(self, url: str) -> str:
        """Return the URL to call."""
        return address(PROTOCOL, self._options, url)

    def encoder(self, given: Input, schema: pa.Schema, send: Sequence[str]) -> TensorEncoder:
        """Return what encodes rows, each as its own tensors."""
        return TensorEncoder(schema, send, given.rename, self._options.tensor)

    def wire(self, body: bytes) -> bytes:
        """Return the body as it is sent: the rows' tensors joined to one of each name."""
        request = _REQUEST.decode(body)
        inputs = [_joined(same) for same in zip(*request.inputs, strict=True)]
        return json_of(_Sent(request.parameters, request.outputs, inputs))

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
            return judged(PROTOCOL, status, headers, body)
        try:
            told, content = _parted(headers, body)
            parts = _parts(_RESPONSE.decode(finite(told)).outputs, content, rows)
        except UNREADABLE as error:
            return _unread(status, body, error)
        except ValueError as error:
            return misfit(status, str(error))
        if not parts:
            return misfit(status, f"{rows} rows were sent, no outputs came back")
        return texts(status, [_object(parts, row) for row in range(rows)])


def _unread(status: int, body: bytes, error: Exception) -> Fault:
    if body.lstrip()[:1] == b"{" and b'"error"' in body:
        return without(PROTOCOL, status, body, "outputs")
    return misfit(status, f"the reply cannot be read: {error}")


def _joined(same: Sequence[Tensor]) -> Tensor:
    first = same[0]
    data = b",".join([row for one in same if (row := bytes(one.data)[1:-1])])  # a row may have no values at all
    return Tensor(first.name, [len(same), *first.shape[1:]], first.datatype, Raw(b"[" + data + b"]"))


def _parted(headers: Mapping[str, str], body: bytes) -> tuple[bytes, memoryview]:
    """Return a reply's JSON, and the bytes behind it. Raises ValueError where the header cannot be right."""
    told = headers.get(LENGTH, str(len(body)))
    if not told.isdecimal() or int(told) > len(body):
        raise ValueError(f"{LENGTH} is {told[:_TOLD]!r}, and the reply has {len(body)} bytes")
    return body[: int(told)], memoryview(body)[int(told) :]


def _parts(outputs: Sequence[_Output], content: memoryview, rows: int) -> list[tuple[bytes, list[bytes]]]:
    """Return of each output its name, and each row's part. Raises ValueError where it has not one for each."""
    parts = []
    for one in outputs:
        size = one.parameters.binary_data_size if one.parameters else None
        if size is None:
            parts.append((json_of(one.name), list(_in_json(one, rows))))
            continue
        if not 0 <= size <= len(content):
            raise ValueError(f"output {one.name!r} has {size} bytes, and {len(content)} came back")
        parts.append((json_of(one.name), _in_bytes(one, content[:size], rows)))
        content = content[size:]
    if content:
        raise ValueError(f"{len(content)} bytes came back behind the last output")
    return parts


def _inner(output: _Output, rows: int) -> tuple[list[int], int]:
    """Return the shape of a row's part, and how many values it has."""
    shape = output.shape
    if not shape or shape[0] != rows or min(shape) < 0:
        raise ValueError(f"{rows} rows were sent, and output {output.name!r} came back with shape {shape}")
    if 0 in shape and prod(filter(None, shape[1:])) > _MOST_EMPTY:
        raise ValueError(f"output {output.name!r} came back with no values, and with shape {shape}")
    return ([] if shape[1:] == [1] else shape[1:]), prod(shape[1:])


def _counted(output: _Output, values: int, expected: int) -> None:
    if values != expected:
        raise ValueError(f"output {output.name!r} has shape {output.shape}, and {values} values")


def _in_bytes(output: _Output, content: memoryview, rows: int) -> list[bytes]:
    inner, each = _inner(output, rows)
    try:
        values = values_of(output.datatype, content)
    except ValueError as error:
        raise ValueError(f"output {output.name!r}: {error}") from None
    _counted(output, len(values), rows * each)
    return [json_of(part) for part in values.reshape(rows, *inner).tolist()]


def _in_json(output: _Output, rows: int) -> Iterator[bytes]:
    inner, each = _inner(output, rows)
    flat = _leaves(output, rows)
    _counted(output, len(flat), rows * each)
    for row in range(rows):
        yield _nested(flat[row * each : (row + 1) * each], inner)


def _leaves(tensor: _Output, rows: int) -> list[bytes]:
    """Return a tensor's values, flat, as they may be, or nested. Raises ValueError where it is neither, or ragged."""
    if tensor.data is UNSET:
        raise ValueError(f"output {tensor.name!r} came back without data")
    items = list(map(bytes, _ITEMS.decode(tensor.data)))
    if bytes(tensor.data).count(b"[") == 1 or not any(map(_is_list, items)):
        return items
    regular = len(items) == rows
    while regular and items and all(map(_is_list, items)):
        lists = [_ITEMS.decode(one) for one in items]
        regular = len(set(map(len, lists))) == 1
        items = [bytes(one) for inner in lists for one in inner]
    if not regular or any(map(_is_list, items)):
        raise ValueError(f"output {tensor.name!r} has shape {tensor.shape}, and its lists have not")
    return items


def _is_list(item: bytes) -> bool:
    return item.startswith(b"[")


def _nested(flat: Sequence[bytes], shape: Sequence[int]) -> bytes:
    if not shape:
        return flat[0]
    step = len(flat) // shape[0] if shape[0] else 0
    return b"[" + b",".join(_nested(flat[at * step : (at + 1) * step], shape[1:]) for at in range(shape[0])) + b"]"


def _object(parts: Sequence[tuple[bytes, Sequence[bytes]]], row: int) -> bytes:
    return b"{" + b",".join([name + b":" + values[row] for name, values in parts]) + b"}"
