"""The ModelArts JSON protocol: `{"meta": {"uuid": U}, "data": {"req_data": [...]}}` and its reply.

`wrapper: none` leaves `data` out, as XGBoost-type models want it; `meta: false` leaves `meta` out, as the documents'
cURL sample does. Where a uuid was sent, the reply's `meta.uuid` must be the same unless it is blank, and `resp_data`
must have one entry a row: nowhere does the platform promise it, so it is checked every time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from msgspec import Raw, Struct
from msgspec.json import Decoder

from pipeline.adapter import Adapter
from pipeline.jsonrows import has_some, names
from pipeline.replies import UNREADABLE, misfit, texts, unfit
from pipeline.status import SUCCESS, judge

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import pyarrow as pa

    from pipeline.status import Fault
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


_WRAPPED: Final = Decoder(_Wrapped)
_BARE: Final = Decoder(_Bare)
_DECLARE: Final = "declare output.prediction as the answers are, {} for their JSON"


class ModelArts(Adapter):
    """Frames rows as a request body and reads one JSON text a row out of the reply."""

    def __init__(self, options: ModelArtsOptions, promised: Collection[str] = ()) -> None:
        self._promised = frozenset(promised)
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
        if status not in SUCCESS:
            return judge(status, headers, body)
        try:
            reply = _WRAPPED.decode(body) if self._wrapped else _BARE.decode(body)
        except UNREADABLE as error:
            return unfit(status, headers, body, f"the reply cannot be read: {error}")
        answers = reply.data.resp_data if isinstance(reply, _Wrapped) else reply.resp_data
        theirs = (reply.meta.uuid or "").strip() if isinstance(reply.meta, _Meta) else ""
        if self._meta and theirs and theirs.lower() != uuid:
            return misfit(status, f"the reply has meta.uuid {theirs[:100]!r}, not the one sent")
        if len(answers) != rows:
            return misfit(status, f"{rows} rows were sent, {len(answers)} answers came back")
        if self._promised and answers and not any(has_some(self._promised, answer) for answer in answers):
            return misfit(status, f"no answer has {names(self._promised)}, which service.schema promises; {_DECLARE}")
        return texts(status, answers)
