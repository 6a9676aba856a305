"""What comes over a websocket: whose answer a message says it is, and what the code means that closes a connection.

A close code is judged as the status of the HTTP reply that says the same, or is just a lost connection. Codes below
4000 are registered; those from 4000 on are the application's own, and many services make them of a status.
"""

from __future__ import annotations

from typing import Final

import msgspec

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

_OWN: Final = 4000
_CRASHED: Final = 500

_NOT_JSON: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_ABSENT: Final = msgspec.Raw()


class _Meta(msgspec.Struct):
    uuid: str | None = None


class Marked(msgspec.Struct):
    """What is looked at of a message: whose answer it says it is, and whether it tells of an error."""

    meta: _Meta | str | None = None
    erno: msgspec.Raw = _ABSENT
    error: msgspec.Raw = _ABSENT
    error_code: msgspec.Raw = _ABSENT

    @property
    def uuid(self) -> str | None:
        """None where the message has none; one that is there may be blank, and so it is in a `meta` of text."""
        if isinstance(self.meta, _Meta):
            return None if self.meta.uuid is None else self.meta.uuid.strip().lower()
        return None if self.meta is None else ""

    @property
    def erring(self) -> bool:
        """Whether it tells of an error, in one of the forms that services have for it."""
        return any(bytes(one) not in {b"", b"null"} for one in (self.erno, self.error, self.error_code))


_MARKED: Final = msgspec.json.Decoder(Marked)


def marked(message: bytes) -> Marked:
    """Look at a message; one that is no JSON object says nothing."""
    try:
        return _MARKED.decode(message)
    except _NOT_JSON:
        return Marked()


def status_of(code: int) -> int | None:
    """Return the status that a code stands for, or LOST."""
    return _STATUSES.get(code, _CRASHED if code >= _OWN else LOST)
