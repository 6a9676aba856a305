"""What an answer that is not a success means: (status, code, text, who answered) -> what to do.

The tables are data; `judge` only looks them up, most specific first. ModelArts reuses codes (`APIG.0201` comes with
seven statuses, `ModelArts.4503` with four texts), so a code alone never decides. Sources: the error tables of API
Gateway and ModelArts.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping


class Action(Enum):
    """What the conversation does next."""

    RETRY = "retry"  # passing trouble: again, later
    SLOWER = "slower"  # pressure: again, later, and fewer at once
    ABSENT = "absent"  # its model is not there: again, later, if it ever was; else the job ends
    TIMEOUT = "timeout"  # too slow: again, and halves when it repeats
    MISFIT = "misfit"  # a success that does not fit the request: again, and halves when it repeats
    TOO_LARGE = "too_large"  # halves at once
    REJECT = "reject"  # refused for its content: halves at once, until the refused rows are alone
    REFRESH = "refresh"  # the credentials have died: once more with new ones
    STOP = "stop"  # concerns every request: the job ends


By = Literal["gateway", "dispatcher", "model"]
"""The layer that answered: the API gateway, the platform behind it, or the model itself."""


class Fault(NamedTuple):
    """An answer that is not a success, in the service's own words; `by` is None where nobody can tell.

    `most_bytes` is the largest body that the service says it takes; `mend` names the keys that mend what ends the job,
    where they are not those of the address.
    """

    action: Action
    status: int | None
    code: str | None
    message: str
    by: By | None = None
    most_bytes: int | None = None
    mend: str = ""


SUCCESS: Final = frozenset({200, 201})
"""Statuses of replies with answers; any other 2xx has none: it promises them for later, or for a part of the rows."""

_BY_STATUS: Final[dict[int, Action]] = {
    **dict.fromkeys(SUCCESS, Action.RETRY),  # a failure that its body alone tells
    400: Action.REJECT,
    401: Action.REFRESH,
    403: Action.STOP,
    404: Action.STOP,
    405: Action.STOP,
    408: Action.RETRY,
    410: Action.STOP,
    411: Action.STOP,
    413: Action.TOO_LARGE,
    414: Action.STOP,
    415: Action.STOP,
    422: Action.REJECT,
    425: Action.RETRY,
    429: Action.SLOWER,
    431: Action.STOP,
    494: Action.STOP,
    500: Action.RETRY,
    501: Action.STOP,
    502: Action.RETRY,
    503: Action.SLOWER,
    504: Action.TIMEOUT,
}

_BY_CLASS: Final[dict[int, Action]] = {
    1: Action.STOP,
    2: Action.MISFIT,
    3: Action.STOP,  # a redirect: the job file names another URL than the service has
    4: Action.REJECT,
    5: Action.RETRY,
}

_APP_KEYS: Final = tuple(f"APIG.{number}" for number in (*range(1001, 1005), 1009, 2102, *range(2201, 2214)))

_STOPPING: Final[dict[int, tuple[str, ...]]] = {
    400: (
        *("APIG.0104", "APIG.0105", "APIG.0106", "APIG.0204", "APIG.0205", "APIG.0607", *_APP_KEYS),
        *("ModelArts.0204", "ModelArts.4106", "ModelArts.4200", "ModelArts.4201", "ModelArts.4203", "ModelArts.4204"),
        *("ModelArts.4902", "ModelArts.4903", "ModelArts.4904", "ModelArts.4905"),
    ),
    401: (
        *("APIG.0303", "APIG.0311", "APIG.0312", "APIG.0313", *_APP_KEYS),
        *("ModelArts.0205", "ModelArts.0206", "ModelArts.0207", "ModelArts.0208", "ModelArts.0209", "ModelArts.0210"),
        *("ModelArts.0212", "ModelArts.4203"),
    ),
    500: ("APIG.0103", "APIG.0104", "APIG.0105", "ModelArts.4204"),
}
"""Codes that concern every request, under statuses that otherwise do not."""

_BY_CODE: Final[dict[tuple[int, str], Action]] = {
    (500, "ModelArts.4302"): Action.SLOWER,
    (500, "ModelArts.4505"): Action.TIMEOUT,
    **{(status, code): Action.STOP for status, codes in _STOPPING.items() for code in codes},
}

_ANY: Final = frozenset(range(600))
_FAILED: Final = frozenset({500, 504})

_BY_TEXT: Final[tuple[tuple[str, frozenset[int], re.Pattern[str], Action], ...]] = tuple(
    (code, statuses, re.compile(text, re.IGNORECASE), action)
    for code, statuses, text, action in (
        ("APIG.0303", frozenset({401}), "signature expired", Action.REFRESH),  # whose clock is wrong, signs once more
        ("ModelArts.4503", _FAILED, "SSL error", Action.STOP),
        ("ModelArts.4503", _FAILED, "respond timeout", Action.SLOWER),
        ("ModelArts.4503", _FAILED, "timed out", Action.TIMEOUT),
        ("ModelArts.4503", _FAILED, "not found or failed to respond", Action.RETRY),
        ("ModelArts.8909", _ANY, "timed out", Action.TIMEOUT),
        ("ModelArts.8909", _ANY, "", Action.RETRY),
        ("ModelArts.8910", _ANY, "", Action.STOP),  # http where the service has https, or the other way round
        ("MR.0101", _ANY, "", Action.REJECT),
        ("MR.0105", _ANY, "", Action.REJECT),
    )
)

_BY_MODEL: Final[dict[int, Action]] = {403: Action.REJECT, 404: Action.REJECT}
"""What a model itself says so is about what it was sent, such as an id that it does not know; from the platform, and
from who cannot be told, it is about the URL or the credentials."""

_FAMILIES: Final[dict[str, By]] = {"APIG": "gateway", "ModelArts": "dispatcher", "MR": "model"}
_SERVERS: Final[dict[str, By]] = {"api-gateway": "gateway", "ModelArts": "model"}
"""Answers of the dispatcher have this `Server` too, but a code of its own beside it."""


def judge(status: int, headers: Mapping[str, str], body: bytes) -> Fault:
    """Say what an answer with this status, which is no success, means."""
    code, message = words(body)
    server = _line(headers.get("Server", ""))
    text = message or f"HTTP {status} from {server or 'an unnamed server'}"
    known = code.replace("APIGW.", "APIG.")
    by = _FAMILIES.get(known.partition(".")[0]) or _SERVERS.get(server)
    return Fault(_action(status, known, message, by), status, code or None, text, by)


def _action(status: int, code: str, message: str, by: By | None) -> Action:
    for known, statuses, pattern, action in _BY_TEXT:
        if code == known and status in statuses and pattern.search(message):
            return action
    if by == "model" and status in _BY_MODEL:
        return _BY_MODEL[status]
    return _BY_CODE.get((status, code)) or _BY_STATUS.get(status) or _BY_CLASS.get(status // 100, Action.RETRY)


def words(body: bytes) -> tuple[str, str]:
    """Return (code, message) of an error body in any of the platform's shapes, each in one line.

    Where it has no such shape the message is how it begins, without tags.
    """
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "", _beginning(body)
    for level in (answer, *(answer.values() if isinstance(answer, dict) else ())):
        if isinstance(level, dict):
            code, message = _first(level, _CODES), _first(level, _MESSAGES)
            if code or message:
                return code[:100], message[:500]
    return "", _beginning(body) if answer else ""


_CODES: Final = ("error_code", "errorCode", "erno", "code")
_MESSAGES: Final = ("error_msg", "errorMsg", "msg", "message", "detail", "error")


def _first(level: Mapping[str, Any], names: tuple[str, ...]) -> str:
    values = (level.get(name) for name in names)
    return next((_line(str(value)) for value in values if type(value) in {str, int} and value != ""), "")


def _beginning(body: bytes) -> str:
    return _line(re.sub(rb"<[^>]*>", b" ", body[:2000]).decode("utf-8", "replace"))[:200]


def _line(text: str) -> str:
    return " ".join(text.split())
