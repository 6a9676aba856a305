"""The binary extension of the Open Inference Protocol: the tensors of a request as bytes, behind its JSON.

Rows are packed as JSON, each tensor with its bytes as base64; `wire` says how many bytes of each name follow, ends that
with a newline, which JSON has nowhere else, and puts the bytes of all rows behind it. Only base64 and what is said of
each row's tensors is dropped, so the body that is sent is never longer than the one that was packed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
from msgspec import UNSET, Raw, Struct, UnsetType
from msgspec.json import Decoder

from pipeline.encode import Encoded, encoded_lines, json_of
from pipeline.leaves import Converted
from pipeline.openinference import LENGTH, OpenInference
from pipeline.tensorbytes import content_of, values_of
from pipeline.tensorrows import TensorEncoder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from schemas.job import Input


class _Size(Struct, gc=False):
    binary_data_size: int


class _Head(Struct, gc=False):
    """What the JSON of a request says of a tensor."""

    name: str
    shape: list[int]
    datatype: str
    parameters: _Size


class _Packed(_Head, gc=False):
    """A row's part of a tensor, as it is packed; msgspec writes its bytes as base64."""

    data: memoryview


class _Part(Struct, gc=False):
    """The same as it is read again: how many bytes there are is seen; bytes are read faster than memoryviews."""

    name: str
    shape: list[int]
    datatype: str
    data: bytes


class _Request(Struct):
    inputs: list[list[_Part]]
    outputs: Raw | UnsetType = UNSET
    parameters: Raw | UnsetType = UNSET


class _Sent(Struct):
    parameters: Raw | UnsetType
    outputs: Raw | UnsetType
    inputs: list[_Head]


_REQUEST: Final = Decoder(_Request)
_ROW: Final = Decoder(list[_Part])


class BinaryInference(OpenInference):
    """Sends tensors as bytes, and asks for them so."""

    content_type = "application/octet-stream"

    def _beside(self) -> dict[str, Any]:
        """Return what a request says beside its tensors; what the job file says of outputs comes first."""
        options = self._options
        if options.outputs:
            outputs = {"outputs": [{"name": name, "parameters": {"binary_data": True}} for name in options.outputs]}
            return {**({"parameters": options.parameters} if options.parameters else {}), **outputs}
        return {"parameters": {"binary_data_output": True, **options.parameters}}

    def encoder(self, given: Input, schema: pa.Schema, send: Sequence[str]) -> BinaryEncoder:
        """Return what encodes rows, each as its own tensors."""
        return BinaryEncoder(given, schema, send, self._options.tensor)

    def wire(self, body: bytes) -> bytes:
        """Return the body as it is sent: JSON that ends in a newline, and the tensors' bytes."""
        request = _REQUEST.decode(body)
        tensors = list(zip(*request.inputs, strict=True))
        heads = [_head(same) for same in tensors]
        told = json_of(_Sent(request.parameters, request.outputs, heads))
        return b"".join([told, b"\n", *[row.data for same in tensors for row in same]])

    def headers(self, body: bytes) -> Mapping[str, str]:
        """Return how long the JSON of a body is."""
        return {LENGTH: str(body.index(b"\n") + 1)}

    def shown(self, row: bytes) -> bytes:
        """Return a row's tensors with their values, as JSON alone has them."""
        return json_of([_listed(one) for one in _ROW.decode(row)])


def _head(same: Sequence[_Part]) -> _Head:
    first, size = same[0], sum(len(one.data) for one in same)
    return _Head(first.name, [len(same), *first.shape[1:]], first.datatype, _Size(size))


def _listed(one: _Part) -> dict[str, Any]:
    values = values_of(one.datatype, memoryview(one.data)).tolist()
    return {"name": one.name, "shape": one.shape, "datatype": one.datatype, "data": values}


class BinaryEncoder(TensorEncoder):
    """Encodes rows as bytes; those that are refused as JSON alone has them, for their dead letters."""

    def __init__(self, given: Input, schema: pa.Schema, send: Sequence[str], tensor: str | None) -> None:
        super().__init__(schema, send, given.rename, tensor, binary=True)
        self._reject = given.nan == "reject"

    def encode(self, batch: pa.RecordBatch, row_uuids: pa.Array[Any] | None = None) -> Encoded:  # noqa: ARG002
        """Encode all rows of the batch, in order."""
        faults: dict[int, str] = {}
        tensors: list[list[memoryview]] = []
        for column in self._columns:
            datatype = self._heads[0]["datatype"] if self._one else column.datatype
            rows, odd = content_of(batch.column(column.name), datatype, column.shape, reject_nan=self._reject)
            tensors.append(rows)
            faults = {**{row: column.name + fault for row, fault in odd.items()}, **faults}  # a row's first one is told
        if self._one and len(tensors) > 1:
            tensors = [[memoryview(b"".join(parts)) for parts in zip(*tensors, strict=True)]]
        packed = [[_packed(head, data) for data in rows] for head, rows in zip(self._heads, tensors, strict=True)]
        values: list[Any] = list(zip(*packed, strict=True))
        refused = sorted(faults)
        for row, shown in zip(refused, self._refused(batch, refused), strict=True):
            values[row] = shown
        return encoded_lines(Converted(values, faults))

    def _refused(self, batch: pa.RecordBatch, rows: Sequence[int]) -> list[Any]:
        if not rows:
            return []
        try:
            return self._listed(batch.take(pa.array(rows))).values
        except pa.ArrowNotImplementedError:  # Arrow cannot take single values out of all that it has
            return [self._listed(batch.slice(row, 1)).values[0] for row in rows]


def _packed(head: Mapping[str, Any], data: memoryview) -> _Packed:
    return _Packed(head["name"], head["shape"], head["datatype"], _Size(len(data)), data)
