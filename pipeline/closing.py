"""What the close code of a websocket means: the status of the HTTP reply that says the same, or a lost connection.

Codes below 4000 are registered, those from 4000 on are the application's own; many services make them of a status.
"""

from __future__ import annotations

from typing import Final

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


def status_of(code: int) -> int | None:
    """Return the status that a code stands for, or LOST."""
    return _STATUSES.get(code, _CRASHED if code >= _OWN else LOST)
