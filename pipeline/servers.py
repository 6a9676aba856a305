"""What the common model servers' failures mean: {"error": text}, {"detail": ...}, {"code", "type", "message"}, text.

Their statuses are real, but not all mean what they say: a server answers 500 or 503 for a row that its model cannot
take. `judge` says what a status means in general; the tables here are what these servers mean by it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from msgspec import Raw
from msgspec.json import Decoder

from pipeline.encode import json_of
from pipeline.replies import UNREADABLE, misfit
from pipeline.status import Action, Fault, judge

if TYPE_CHECKING:
    from collections.abc import Mapping

_PLATFORM: Final = frozenset({"gateway", "dispatcher"})
_BETWEEN: Final = frozenset({502, 504})
"""Statuses of whoever stands between us and the server, whatever their body looks like."""


class Sign(NamedTuple):
    """A status, and a text in its code or its message, that together mean an action.

    `mend` names the keys that mend what ends the job, where they are not those of the address.
    """

    status: int
    text: str
    action: Action
    mend: str = ""


_ABOUT_VALUES: Final = (
    "Value", "Type", "Key", "Index", "Attribute", "Assertion", "Validation",
    "Arithmetic", "Overflow", "ZeroDivision", "FloatingPoint", "Unicode", "UnicodeDecode", "UnicodeEncode",
)  # fmt: skip
_VALUES: Final = (
    Sign(500, rf"^[\w.]*({'|'.join(_ABOUT_VALUES)})Error( ?:|$)", Action.REJECT),
    Sign(
        500,
        r"^[\w.]*RuntimeError( ?:|$)(?i:(?!.*(memory|alloc|cuda|cudnn|cublas|thread|shutdown|closed)))",
        Action.REJECT,
    ),
)
"""A Python exception about the values that a model was given, as KServe words it, and a traceback.

Frameworks tell of shapes by a RuntimeError; of a machine that has failed, or is full, they do so too.
"""

_LOADING: Final = Sign(400, r"^Model .* is not ready yet\.$", Action.SLOWER)
"""MLServer's word for a model that it is loading; no row is the reason."""

_NO_TEXT: Final = Sign(500, r"^Failed to encode .* using UTF-8", Action.REJECT)
"""KServe's word for BYTES that came as bytes: it makes text of them before the model sees them."""

_NO_BYTES: Final = Sign(422, r"^body: Input should be a valid dictionary", Action.STOP, "service.options.binary")
"""FastAPI's word for a body that is not JSON, as from MLServer, which lacks the binary extension over HTTP."""

_INPUTS: Final = "input.send or input.rename"
_CREDIT: Final = "the account's credit or service.auth"
_NAMED: Final = Sign(404, "", Action.STOP, "service.url or service.options.model")
_VERSIONED: Final = Sign(404, "", Action.STOP, "service.url, or model or version in service.options")

SIGNS: Final[Mapping[str, tuple[Sign, ...]]] = {
    "kserve": (*_VALUES, _NAMED),
    "open-inference": (*_VALUES, _LOADING, _NO_TEXT, _NO_BYTES, _VERSIONED),
    "tensorflow": (
        _VERSIONED,
        Sign(400, r"keys must be equal to: [^\"{}]*$", Action.STOP, _INPUTS),  # all rows have the same
        Sign(409, "", Action.RETRY),  # aborted
        Sign(499, "", Action.RETRY),  # cancelled
    ),
    "mlflow": (Sign(400, r"^Model is missing inputs ", Action.STOP, _INPUTS),),
    "torchserve": (
        _VERSIONED,
        Sign(400, "InvalidKeyException", Action.REFRESH),  # a token that is wrong, or has lived its hour
        Sign(503, "InternalServerException", Action.RETRY),  # its handler has failed: by the rows, or by itself
    ),
    "openai": (
        _NAMED,
        # what a gateway's filter finds in a row; what it finds wrong with an account concerns them all
        Sign(403, r"(?i)^(?!.*\b(account|organi[sz]ation)\b).*(flagged|moderation|content.?policy)", Action.REJECT),
        Sign(429, "insufficient_quota", Action.STOP, _CREDIT),
    ),
}
"""By protocol, the first that fits; what is not here means what `judge` says."""

_EVERYWHERE: Final = (
    Sign(402, "", Action.STOP, _CREDIT),
    Sign(403, "", Action.STOP),
    Sign(404, "", Action.STOP, "service.url"),
    Sign(407, "", Action.STOP, "the proxy that the environment names"),
)
"""No model, no route, no permission, no credit: no row is the reason, whichever layer says so."""


def judged(protocol: str, status: int, headers: Mapping[str, str], body: bytes) -> Fault:
    """Say what a server's answer that is no success means; a body of its own shape is taken for the model's word."""
    fault = judge(status, headers, body)
    if fault.by in _PLATFORM:
        return fault
    said = _object(body)
    message = _detail(said) or _raised(body) or fault.message
    fault = fault._replace(code=_code(said) or fault.code, message=message)
    if said and status not in _BETWEEN:
        fault = fault._replace(by="model")
    for sign in (*SIGNS.get(protocol, ()), *_EVERYWHERE):
        if sign.status == status and any(re.search(sign.text, one or "") for one in (fault.code, fault.message)):
            return fault._replace(action=sign.action, mend=sign.mend)
    return fault


def without(protocol: str, status: int, body: bytes, key: str) -> Fault:
    """Say why a reply without answers is none, in the server's words where it has some."""
    said = judged(protocol, 500, {}, body)
    told = "" if said.message.startswith("HTTP 500") else f": {said.message}"
    return misfit(status, f"the reply has no {key!r}{told}")


def _object(body: bytes) -> dict[str, Any]:
    try:
        said = msgspec.json.decode(body)
    except UNREADABLE:
        return {}
    return said if isinstance(said, dict) else {}


def _code(said: Mapping[str, Any]) -> str | None:
    """Return the name of an error: TorchServe's and OpenAI's `type` where `code` is the status again, or nothing."""
    error = said.get("error")
    inner = error if isinstance(error, dict) else said
    code, kind = inner.get("code"), inner.get("type")
    return " ".join(kind.split())[:100] if isinstance(kind, str) and kind and not isinstance(code, str) else None


def _detail(said: Mapping[str, Any]) -> str | None:
    """Return in one line what a server finds wrong with a request, where it is not all that it says."""
    detail = said.get("detail")
    if isinstance(detail, list):  # with a place and a text each
        found = [_finding(one) for one in detail if isinstance(one, dict)]
        return "; ".join(found)[:500] or None
    return _cause(said.get("message"), said.get("stack_trace"))


_EXCEPTION: Final = re.compile(r"\n(\S.*)", re.DOTALL)
"""What stands in a traceback behind the last frame's code, which is indented."""


def _exception(trace: str) -> str | None:
    """Return the exception at the end of a Python traceback."""
    raised = _EXCEPTION.search(trace.rpartition('\n  File "')[2])
    return raised and raised[1]


def _cause(message: object, trace: object) -> str | None:
    """Return what is wrong behind MLflow's words: it quotes all that was sent first, or tells it by a trace alone."""
    if not isinstance(message, str):
        return None
    raised = _exception(trace) if isinstance(trace, str) else None
    if raised:
        message = f"{raised} ({message.partition('. ')[0]})"
    elif message.startswith("Failed to predict data '"):
        message = message.rpartition("Error: ")[2]
    else:
        return None
    return " ".join(message.split())[:500] or None


def _raised(body: bytes) -> str | None:
    """Return the exception at the end of a Python traceback, as MLServer and other servers answer while they debug."""
    if not body.startswith(b"Traceback (most recent call last):"):
        return None
    exception = _exception(body.decode("utf-8", "replace"))
    return " ".join(exception.split())[:500] if exception else None


def _finding(one: Mapping[str, Any]) -> str:
    place = one.get("loc")
    dotted = ".".join(map(str, place)) if isinstance(place, list) else ""
    text = " ".join(str(one.get("msg", "")).split())
    return f"{dotted}: {text}" if dotted else text


_OBJECT: Final = Decoder(dict[str, Raw])
_LIST: Final = Decoder(list[Raw])


def decoded_object(body: bytes) -> dict[str, Raw]:
    """Read an object, its values as they stand. Raises what `UNREADABLE` says."""
    return _OBJECT.decode(body)


def decoded_list(body: bytes | Raw) -> list[Raw]:
    """Read a list, its items as they stand. Raises what `UNREADABLE` says."""
    return _LIST.decode(body)


TEXT: Final = rb'"(?:[^"\\]++|\\.)*+"?'
"""The pattern of a JSON text; one without an end goes to the end of all, so that nobody looks for it again."""

_ODD: Final = re.compile(
    rb"%s|NaN\b|-NaN\b|Infinity\b|-Infinity\b" % TEXT, re.DOTALL
)  # five times as fast as in groups


def finite(body: bytes) -> bytes:
    """Return a reply with null for the NaN and Infinity that some servers write, which JSON does not have.

    All else stands as it stood.
    """
    if b"NaN" not in body and b"Infinity" not in body:
        return body
    return _ODD.sub(lambda found: found[0] if found[0][:1] == b'"' else b"null", body)


def around(rows: str, beside: Mapping[str, Any], *, alone: bool = False) -> tuple[bytes, bytes]:
    """Return what stands before and behind the rows that are listed under a key, or the one row that is there alone."""
    hole = Raw(b"\n") if alone else Raw(b"[\n]")  # JSON has no raw newline
    before, behind = json_of({**beside, rows: hole}).split(b"\n")
    return before, behind
