"""The Open Inference Protocol (V2): a request is a list of tensors, whose first axis is the rows.

A row is encoded as the tensors of a request of its own, `[{"name", "shape": [1, ...], "datatype", "data": [...]}]`,
and rows are packed like any others; `wire` joins their data, tensor by tensor, when the body is sent. Only what is
said of each tensor is dropped, so the body that is sent is never longer than the one that was packed.

In JSON the protocol has no null, no NaN, no FP16, and no bytes but text: a value that is none of its datatypes is
refused, or its column is. An answer is an object of the reply's outputs: each the row's own part, and a plain value
where a tensor has one a row, whether its shape says [rows] or [rows, 1].
"""

from __future__ import annotations

from math import isfinite, prod
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pyarrow as pa
from msgspec import Raw, Struct
from msgspec.json import Decoder
from pyarrow import types

from pipeline.adapter import Adapter
from pipeline.addresses import address
from pipeline.encode import Encoded, column_form, encoded_lines, json_of, wire_names
from pipeline.errors import JobError
from pipeline.jsonform import is_text, rows_of
from pipeline.leaves import Converted
from pipeline.replies import UNREADABLE, misfit, texts
from pipeline.servers import around, finite, judged, without
from pipeline.status import SUCCESS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pipeline.leaves import Form
    from pipeline.status import Fault
    from schemas.job import Input
    from schemas.servers import OpenInferenceOptions

PROTOCOL: Final = "open-inference"
_DATATYPES: Final[Mapping[pa.DataType, str]] = {
    pa.bool_(): "BOOL",
    pa.int8(): "INT8",
    pa.int16(): "INT16",
    pa.int32(): "INT32",
    pa.int64(): "INT64",
    pa.uint8(): "UINT8",
    pa.uint16(): "UINT16",
    pa.uint32(): "UINT32",
    pa.uint64(): "UINT64",
    pa.float32(): "FP32",
    pa.float64(): "FP64",
}
_MIXED: Final = "FP64"
_NUMBERS: Final = ("INT", "UINT", "FP")


class Tensor(Struct):
    """A tensor in JSON; `data` is a list, as it stands."""

    name: str
    shape: list[int]
    datatype: str
    data: Raw


class _Request(Struct):
    inputs: list[list[Tensor]]
    outputs: Raw = Raw(b"")  # none are asked for


class _Response(Struct):
    outputs: list[Tensor]


_REQUEST: Final = Decoder(_Request)
_RESPONSE: Final = Decoder(_Response)
_ITEMS: Final = Decoder(list[Raw])


class OpenInference(Adapter):
    """Frames rows as one request of tensors, and takes the tensors of its reply apart."""

    def __init__(self, options: OpenInferenceOptions) -> None:
        self._options = options
        outputs = {"outputs": [{"name": name} for name in options.outputs]} if options.outputs else {}
        self.envelope = around("inputs", outputs)

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
        outputs = {"outputs": request.outputs} if bytes(request.outputs) else {}
        return json_of({**outputs, "inputs": inputs})

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
            outputs = _RESPONSE.decode(finite(body)).outputs
            parts = [(json_of(one.name), list(_parts(one, rows))) for one in outputs]
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
    data = b",".join([bytes(one.data)[1:-1] for one in same])
    return Tensor(first.name, [len(same), *first.shape[1:]], first.datatype, Raw(b"[" + data + b"]"))


def _parts(tensor: Tensor, rows: int) -> Iterator[bytes]:
    """Yield each row's part of an output. Raises ValueError where it has not one for each."""
    shape = tensor.shape
    if not shape or shape[0] != rows or min(shape) < 0:
        raise ValueError(f"{rows} rows were sent, and output {tensor.name!r} came back with shape {shape}")
    items = _ITEMS.decode(tensor.data)
    inner, each = ([] if shape[1:] == [1] else shape[1:]), prod(shape[1:])
    if len(items) == rows and each != 1:  # nested, as it may be
        yield from map(bytes, items)
    elif len(items) == rows * each:
        flat = [bytes(_plain(one) if shape[1:] == [1] else one) for one in items]
        for row in range(rows):
            yield _nested(flat[row * each : (row + 1) * each], inner) if each else b"[]"
    else:
        raise ValueError(f"output {tensor.name!r} has shape {shape}, and {len(items)} values")


def _plain(one: Raw) -> Raw:
    """Take the value out of a nested row of one."""
    if bytes(one)[:1] != b"[":
        return one
    [value] = _ITEMS.decode(one)
    return value


def _nested(flat: Sequence[bytes], shape: Sequence[int]) -> bytes:
    if not shape:
        return flat[0]
    step = len(flat) // shape[0] if shape[0] else 0
    return b"[" + b",".join(_nested(flat[at * step : (at + 1) * step], shape[1:]) for at in range(shape[0])) + b"]"


def _object(parts: Sequence[tuple[bytes, Sequence[bytes]]], row: int) -> bytes:
    return b"{" + b",".join([name + b":" + values[row] for name, values in parts]) + b"}"


class _Column(NamedTuple):
    """A column that is sent: its datatype, and the shape of one row's value."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    form: Form


class TensorEncoder:
    """Encodes rows, each as the tensors of a request of its own. Raises JobError for columns that cannot be sent so."""

    def __init__(self, schema: pa.Schema, send: Sequence[str], rename: Mapping[str, str], tensor: str | None) -> None:
        self._columns = [_column(schema.field(name)) for name in send]
        if tensor is None:
            heads = zip(wire_names(send, rename), self._columns, strict=True)
            self._heads = [_head(name, one.datatype, one.shape) for name, one in heads]
        else:
            self._heads = [_head(tensor, *_as_one(self._columns))]
        self._one = tensor is not None

    def encode(self, batch: pa.RecordBatch, row_uuids: pa.Array[Any] | None = None) -> Encoded:  # noqa: ARG002
        """Encode all rows of the batch, in order."""
        values = [_whole(column, batch) for column in self._columns]
        paths = [column.name for column in self._columns]
        return encoded_lines(rows_of(self._together if self._one else self._each, paths, values, batch.num_rows))

    def _each(self, *values: list[Any]) -> list[dict[str, Any]]:
        return [{**head, "data": value} for head, value in zip(self._heads, values, strict=True)]

    def _together(self, *values: list[Any]) -> list[dict[str, Any]]:
        return [{**self._heads[0], "data": [one for value in values for one in value]}]


def _head(name: str, datatype: str, shape: Sequence[int]) -> dict[str, Any]:
    return {"name": name, "shape": [1, *shape], "datatype": datatype}


def _column(field: pa.Field[Any]) -> _Column:
    shape, kind = _shape(field.type)
    datatype = "BYTES" if is_text(kind) else _DATATYPES.get(kind)
    if datatype is None:
        raise JobError(f"input.send: column {field.name!r} has type {field.type}{_mend(kind)}")
    return _Column(field.name, datatype, shape, column_form(field, "input.send", reject_nan=False))


def _shape(kind: Any) -> tuple[tuple[int, ...], Any]:
    """Return the shape of a value, and the type of what is in it."""
    if isinstance(kind, pa.FixedShapeTensorType):
        order = kind.permutation or range(len(kind.shape))
        return tuple(kind.shape[axis] for axis in order), kind.value_type
    if types.is_fixed_size_list(kind):
        shape, inner = _shape(kind.value_type)
        return (kind.list_size, *shape), inner
    if types.is_dictionary(kind):
        return (), kind.value_type
    return (), kind


def _mend(kind: Any) -> str:
    if types.is_list(kind) or types.is_large_list(kind):
        return ", and a tensor's rows have one shape; give its length in input.columns: fixed_size_list<...>[N]"
    if types.is_float16(kind):
        return ", and the protocol has no FP16 in JSON; cast it in input.columns to float"
    return "; allowed in a tensor: numbers, bool, text, and lists of them of a fixed size"


def _as_one(columns: Sequence[_Column]) -> tuple[str, tuple[int, ...]]:
    """Return datatype and shape of the one tensor that all columns make."""
    kinds = {column.datatype for column in columns}
    shapes = {column.shape for column in columns}
    if len(columns) == 1:
        return columns[0].datatype, columns[0].shape
    if shapes != {()}:
        raise JobError(
            "service.options.tensor: several columns, and lists among them; allowed: plain values, or one list"
        )
    if len(kinds) > 1 and not all(kind.startswith(_NUMBERS) for kind in kinds):
        told = ", ".join(sorted(kinds))
        raise JobError(f"service.options.tensor: the columns are {told}; allowed: of one datatype, or all numbers")
    return (_MIXED if len(kinds) > 1 else kinds.pop()), (len(columns),)


def _whole(column: _Column, batch: pa.RecordBatch) -> Converted:
    """Return a column's values, each flat; one with something missing has a fault."""
    values, faults = column.form(batch.column(column.name))
    flat = [_flat(value, len(column.shape)) for value in values]
    missing = {
        at: " is null, NaN or infinite, or has such a value in it, and a tensor has none"
        for at, value in enumerate(flat)
        if not all(map(_is_there, value))
    }
    return Converted(flat, {**missing, **faults})


def _is_there(value: object) -> bool:
    return value is not None and not (isinstance(value, float) and not isfinite(value))


def _flat(value: Any, depth: int) -> list[Any]:
    if depth == 0 or value is None:
        return [value]
    return list(value) if depth == 1 else [one for inner in value for one in _flat(inner, depth - 1)]
