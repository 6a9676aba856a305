"""What adapters make of replies: JSON texts as they stand, or the fault that a reply is."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from msgspec import DecodeError, Raw, Struct
from msgspec.json import Decoder

from pipeline.encode import json_of
from pipeline.status import SUCCESS, Action, Fault, judge
from schemas.values import readable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

UNREADABLE: Final = (DecodeError, UnicodeDecodeError, RecursionError)  # ValidationError is a DecodeError

_FAMILY: Final = "MR."
_SUCCEEDED: Final = "MR.0100"


class Partly(NamedTuple):
    """A success of some rows: `answers` has a text for each, which is none at the positions that `failed`, in order."""

    answers: pa.Array[Any]
    failed: tuple[int, ...]


class _Erring(Struct):
    erno: str | None = None


_ERRING: Final = Decoder(_Erring)
_ONE: Final = Decoder(Raw)


def texts(status: int, answers: Sequence[Raw | bytes]) -> pa.Array[Any] | Fault:
    """Return the answers as an array of JSON texts, joined at once; a fault where one is not UTF-8."""
    offsets = np.zeros(len(answers) + 1, np.int32)
    np.cumsum(np.fromiter(map(len, answers), np.int32, len(answers)), out=offsets[1:])
    array = pa.StringArray.from_buffers(len(answers), pa.py_buffer(offsets.data), pa.py_buffer(b"".join(answers)))
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        return misfit(status, "the reply is not UTF-8")
    return array


def sifted(status: int, answers: Sequence[Any]) -> pa.Array[Any] | Partly | Fault:
    """Return answers that are JSON as it stands (bytes, Raw), values to be written as JSON, or the faults of rows.

    A request of which no row has an answer has failed as a whole.
    """
    failed = tuple(position for position, one in enumerate(answers) if isinstance(one, Fault))
    if failed and len(failed) == len(answers):
        first: Fault = answers[0]
        return first
    found = texts(status, [_as_text(one) for one in answers])
    return found if isinstance(found, Fault) or not failed else Partly(found, failed)


def _as_text(answer: object) -> Raw | bytes:
    return answer if isinstance(answer, Raw | bytes) else b"null" if isinstance(answer, Fault) else json_of(answer)


def counted(status: int, answers: Sequence[Any], rows: int) -> Fault | None:
    """Return the fault of a reply that has not one answer a row."""
    if len(answers) == rows:
        return None
    return misfit(status, f"{rows} rows were sent, {len(answers)} answers came back")


def whole(status: int, headers: Mapping[str, str], body: bytes) -> pa.Array[Any] | Fault:
    """Return a whole reply as the one answer that it is."""
    fault = failure(status, headers, body)
    if fault:
        return fault
    if not body:
        return misfit(status, "the reply is empty, or is no stream of events with an answer in it")
    try:
        return texts(status, [_ONE.decode(body)])
    except UNREADABLE as error:
        return misfit(status, f"the reply cannot be read: {error}")


def failure(status: int, headers: Mapping[str, str], body: bytes) -> Fault | None:
    """Return the fault of a reply that is no success, by its status or in spite of it; None for all others.

    The built-in model server reports a failed model as `erno`, even with a 200.
    """
    return judge(status, headers, body) if status not in SUCCESS or _failed(erno(body)) else None


def unfit(status: int, headers: Mapping[str, str], body: bytes, message: str) -> Fault:
    """Judge a reply without answers: by its `erno`, where it has one."""
    return judge(status, headers, body) if erno(body) else misfit(status, message)


def misfit(status: int, message: str) -> Fault:
    """Return the fault of a reply that is not what was agreed."""
    return Fault(Action.MISFIT, status, None, readable(message))


def erno(body: bytes) -> str | None:
    """Return the model server's code, if the reply has one."""
    with suppress(*UNREADABLE):
        return _ERRING.decode(body).erno
    return None


def _failed(code: str | None) -> bool:
    return code is not None and code.startswith(_FAMILY) and code != _SUCCEEDED
