"""The ModelArts JSON protocol: `{"meta": {"uuid": U}, "data": {"req_data": [...]}}` and its reply.

`wrapper: none` leaves `data` out, as XGBoost-type models want it; `meta: false` leaves `meta` out, as the documents'
cURL sample does. Where a uuid was sent, the reply's `meta.uuid` must be the same unless it is blank, and `resp_data`
must have one entry a row: nowhere does the platform promise it, so it is checked every time.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
from msgspec import DecodeError, Raw, Struct
from msgspec.json import Decoder

from pipeline.status import Action, Fault, judge

if TYPE_CHECKING:
    from collections.abc import Mapping

    from schemas.options import ModelArtsOptions


class _Meta(Struct):
    uuid: str | None = None


class _Rows(Struct):
    resp_data: list[Raw]


class _Wrapped(Struct):
    data: _Rows
    meta: _Meta | str | None = None  # blank, as the documents call it, may be the empty text


class _Bare(_Rows):
    meta: _Meta | str | None = None


class _Erring(Struct):
    erno: str | None = None


_WRAPPED: Final = Decoder(_Wrapped)
_BARE: Final = Decoder(_Bare)
_ERRING: Final = Decoder(_Erring)
_UNREADABLE: Final = (DecodeError, UnicodeDecodeError, RecursionError)  # ValidationError is a DecodeError


class ModelArts:
    """Frames rows as a request body and reads one JSON text a row out of the reply."""

    content_type = "application/json"

    def __init__(self, options: ModelArtsOptions) -> None:
        self._meta = options.meta
        self._wrapped = options.wrapper == "data"

    def frame(self, uuid: str) -> tuple[bytes, bytes]:
        """Return what stands before and behind the comma-separated rows of a body."""
        meta = f'"meta":{{"uuid":"{uuid}"}},' if self._meta else ""
        before, behind = ('"data":{"req_data":[', "]}}") if self._wrapped else ('"req_data":[', "]}")
        return f"{{{meta}{before}".encode(), behind.encode()

    def read(
        self, status: int, headers: Mapping[str, str], body: bytes, *, uuid: str, rows: int
    ) -> pa.Array[Any] | Fault:
        """Return the rows' answers as JSON texts, in order, or why this reply is none."""
        if status != 200:  # noqa: PLR2004
            return judge(status, headers, body)
        try:
            reply = _WRAPPED.decode(body) if self._wrapped else _BARE.decode(body)
        except _UNREADABLE as error:
            return _unfit(status, headers, body, f"the reply cannot be read: {error}")
        answers = reply.data.resp_data if isinstance(reply, _Wrapped) else reply.resp_data
        theirs = (reply.meta.uuid or "").strip() if isinstance(reply.meta, _Meta) else ""
        if self._meta and theirs and theirs.lower() != uuid:
            return Fault(Action.MISFIT, status, None, f"the reply has meta.uuid {theirs[:100]!r}, not the one sent")
        if len(answers) != rows:
            return Fault(Action.MISFIT, status, None, f"{rows} rows were sent, {len(answers)} answers came back")
        try:
            return _texts(answers)
        except pa.ArrowInvalid:
            return Fault(Action.MISFIT, status, None, "the reply is not UTF-8")


def _texts(answers: list[Raw]) -> pa.StringArray:
    """Return the answers as an array, joined at once; raises ArrowInvalid where one is not UTF-8."""
    offsets = np.zeros(len(answers) + 1, np.int32)
    np.cumsum(np.fromiter(map(len, answers), np.int32, len(answers)), out=offsets[1:])
    texts = pa.StringArray.from_buffers(len(answers), pa.py_buffer(offsets.data), pa.py_buffer(b"".join(answers)))
    texts.validate(full=True)
    return texts


def _unfit(status: int, headers: Mapping[str, str], body: bytes, message: str) -> Fault:
    """Judge a reply without answers: the built-in model server reports a failed model as `erno`, even with a 200."""
    with suppress(*_UNREADABLE):
        if _ERRING.decode(body).erno:
            return judge(status, headers, body)
    return Fault(Action.MISFIT, status, None, message)
