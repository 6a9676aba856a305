"""What comes over a websocket: whose answer a message says it is, and what the code means that closes a connection.

A close code is judged as the status of the HTTP reply that says the same, or is just a lost connection. Codes below
4000 are registered; those from 4000 on are the application's own, and many services make them of a status.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

LOST: Final = None
"""No more than a connection that is gone: the request is sent again over another one."""

_STATUSES: Final[dict[int, int]] = {
    1003: 400,  # unsupported data
    1007: 400,  # inconsistent data
    1008: 403,  # a policy is violated
    1009: 413,  # the message is too big
    1011: 500,  # the service failed
    1013: 503,  # try again later
    1014: 502,  # bad gateway
    3000: 401,  # unauthorized
    3003: 403,  # forbidden
    3008: 504,  # timeout
    4401: 401,
    4403: 403,
    4404: 404,
    4429: 429,
}

_LATER: Final[dict[int, int | None]] = {3000: LOST, 3003: LOST, 4401: LOST, 4403: LOST}
"""What closes a connection that was good: its credentials have died, and the handshake of the next one tells more."""

_OF_CONTENT: Final = {1008: 400}
"""What a service that answers others means by a message that it will not have."""

_OWN: Final = 4000
_CRASHED: Final = 500

_NOT_JSON: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Meta(msgspec.Struct):
    uuid: str | None = None


class Marked(NamedTuple):
    """What is looked at of a message.

    `uuid` is whose answer it says it is, None where it does not say; one that is there may be blank, and so it is in a
    `meta` of text. `status` is that of the reply which tells of the same error, None where it tells of none. `alien` is
    whether it is no JSON object.
    """

    uuid: str | None = None
    status: int | None = None
    alien: bool = False

    @property
    def erring(self) -> bool:
        """Whether it is no answer as agreed, and no push either: whoever waits would wait in vain."""
        return self.alien or self.status is not None


_MESSAGE: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_META: Final = msgspec.json.Decoder(_Meta | str | None)

_SURE: Final = ("erno", "error_code", "errorCode")
"""What tells of an error beside anything else; so does `error`, where it is text or an object."""

_WORDS: Final = frozenset(
    ("meta", "code", "message", "msg", "detail", "status", "request_id", "requestId", "timestamp", "path")
)
"""What a message has that tells of an error by nothing but its `code` and `message`, or its `detail`."""

_FINE: Final = frozenset(("", "0", "200", "ok", "success", "succeeded", "mr.0100"))
_TOLD: Final = frozenset((400, 413, 422, 429, 500, 502, 503, 504))
"""Statuses that a message may have as its code: others are not about what was sent, and a handshake says them."""


def marked(message: bytes) -> Marked:
    """Look at a message."""
    try:
        fields = _MESSAGE.decode(message)
    except _NOT_JSON:
        return Marked(alien=True)
    return Marked(_uuid(fields.get("meta")), _status(fields))


def _uuid(meta: msgspec.Raw | None) -> str | None:
    try:
        found = None if meta is None else _META.decode(meta)
    except _NOT_JSON:
        return None
    if isinstance(found, _Meta):
        return None if found.uuid is None else found.uuid.strip().lower()
    return None if found is None else ""


def _status(fields: Mapping[str, msgspec.Raw]) -> int | None:
    codes = [code for name in (*_SURE, "code") if (code := _code(fields.get(name)))]
    sure = _says(fields.get("error")) or any(_code(fields.get(name)) for name in _SURE)
    bare = fields.keys() <= _WORDS and ("detail" in fields or (codes and {"message", "msg"} & fields.keys()))
    if not (sure or bare):
        return None
    return next((int(code) for code in codes if code.isdecimal() and int(code) in _TOLD), _CRASHED)


def _code(raw: msgspec.Raw | None) -> str:
    """Return a code that is none of a success, else nothing."""
    value = _value(raw)
    code = str(value).strip() if type(value) in {str, int} else ""
    return "" if code.lower() in _FINE else code


def _says(raw: msgspec.Raw | None) -> bool:
    value = _value(raw)
    return isinstance(value, str | dict) and bool(value)


def _value(raw: msgspec.Raw | None) -> Any:
    try:
        return None if raw is None else msgspec.json.decode(raw)
    except _NOT_JSON:
        return None


def status_of(code: int, *, answered: bool = False, works: bool = False) -> int | None:
    """Return the status that a code stands for, or LOST.

    `answered` is whether something was answered over this connection, `works` whether anything was over any.
    """
    meaning: Mapping[int, int | None] = {
        **_STATUSES,
        **(_LATER if answered else {}),
        **(_OF_CONTENT if answered or works else {}),
    }
    return meaning.get(code, _CRASHED if code >= _OWN else LOST)


def is_stale(code: int) -> bool:
    """Whether the code says of a connection that was good that others as old are good no more."""
    return code in _LATER
