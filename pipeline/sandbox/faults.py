"""Scripted trouble: the language of fault schedules, and which fault the next attempt meets. No I/O but one file.

    {5: [503, "429 after 2s", expire, ok], "row:id=iris-007": "MR.0105 always"}

An integer is the number of a request, counted as they arrive from 1; its list is used up by that request's attempts,
recognised by their `X-Request-Id` or `meta.uuid`; a request with neither is new each time. `row:COLUMN=VALUE` is any
request with such a row. The last entry of a list stays if it ends in `always`; after the list all is well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import yaml

from pipeline.errors import JobError
from pipeline.sandbox.replies import MESSAGES

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

KINDS: Final = {
    "ok": "all is well, whatever --chaos says",
    "expire": "every token dies now",
    "html": "a proxy's 502 page instead of JSON",
    "crash": "the model's own 500, without a code",
    "garbage": "a 200 that is not JSON",
    "short": "one answer too few (iris)",
    "long": "one answer too many (iris)",
    "foreign": "the uuid of another request (iris)",
    "blank": "a blank uuid (iris)",
    "drop": "the connection is reset when the request was processed, before any answer",
    "drop-early": "the connection is reset before the body is read",
    "error-event": "the stream says in its middle that the model failed (text)",
    "push": "messages that nobody asked for come before the answer (websocket)",
    "swap": "the answer comes over somebody else's connection (websocket)",
    "truncate": "the connection is closed in the middle of the answer",
    "trickle": "the answer comes at a byte a second and never ends",
    "trickle-headers": "the same, from the status line on",
}
_ENTRY: Final = re.compile(
    rf"(?:(?P<kind>{'|'.join(KINDS)})|slow (?P<slow>\d+(?:\.\d+)?)(?P<unit>ms|s)"
    r"|(?P<error>\d{3}|[A-Za-z]+\.\d{4}|\d{3} [A-Za-z]+\.\d{4})(?: after (?P<after>\d+)s)?)(?P<always> always)?",
)
_ROW_KEY: Final = re.compile(r"row:([^=]+)=(.*)", re.DOTALL)


@dataclass(frozen=True)
class Fault:
    """What befalls one attempt."""

    kind: str  # a key of KINDS, "slow" or "error"
    error: str = ""  # the key of MESSAGES, for "error"
    retry_after: int | None = None  # seconds
    seconds: float = 0.0  # more in the service, for "slow"
    always: bool = False

    @property
    def name(self) -> str:
        """What it is called in a schedule, and in the counters."""
        after = "" if self.retry_after is None else f" after {self.retry_after}s"
        return f"{self.error}{after}" if self.error else self.kind


OK: Final = Fault("ok")


@dataclass(frozen=True)
class RowKey:
    """Matches the rows whose `column` has `value`; a number by its value, all else by its text."""

    column: str
    value: str

    def matches(self, row: Mapping[str, object]) -> bool:
        """Return whether the row is meant."""
        cell = row.get(self.column)
        if isinstance(cell, (int, float)) and not isinstance(cell, bool):
            try:
                return float(self.value) == cell
            except ValueError:
                return False
        return cell == self.value


Rules = dict[int | RowKey, tuple[Fault, ...]]


def read_rules(source: str | os.PathLike[str] | Mapping[object, object] | None) -> Rules:
    """Return the schedule in a JSON or YAML file, or in a mapping of the same form.

    Raises:
        JobError: the file cannot be read, or a key or an entry is not in the language.

    """
    if source is None:
        return {}
    if isinstance(source, Mapping):
        return dict(_rules("faults", source))
    try:
        content = yaml.safe_load(Path(source).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise JobError(f"{source}: cannot be read as JSON or YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, Mapping):
        raise JobError(f"{source}: {content!r} is not a mapping of requests or rows to faults")
    return dict(_rules(str(source), content))


def _rules(place: str, content: Mapping[object, object]) -> Iterator[tuple[int | RowKey, tuple[Fault, ...]]]:
    for name, entries in content.items():
        where = f"{place}: {name}"
        key = _key(where, str(name))
        faults = tuple(parse(where, entry) for entry in (entries if isinstance(entries, list) else [entries]))
        _check_order(where, key, faults)
        yield key, faults


def _key(where: str, name: str) -> int | RowKey:
    if name.isdecimal() and int(name) > 0:
        return int(name)
    if match := _ROW_KEY.fullmatch(name):
        return RowKey(*match.groups())
    raise JobError(f"{where}: a key is a request number from 1, or row:COLUMN=VALUE")


def _check_order(where: str, key: int | RowKey, faults: tuple[Fault, ...]) -> None:
    if any(fault.always for fault in faults[:-1]):
        raise JobError(f"{where}: only the last entry of a list may be 'always'")
    if isinstance(key, RowKey) and any(fault.kind == "drop-early" for fault in faults):
        raise JobError(f"{where}: 'drop-early' happens before rows are read; use 'drop', or a request number")


def parse(where: str, entry: object) -> Fault:
    """Return the fault that an entry means; `where` is named if it means none.

    Raises:
        JobError: the entry is not in the language.

    """
    match = _ENTRY.fullmatch(str(entry))
    if match is None:
        raise JobError(f"{where}: {entry!r} is not a fault; allowed: {_allowed()}")
    always = match["always"] is not None
    if match["kind"]:
        return Fault(match["kind"], always=always)
    if match["slow"]:
        return Fault("slow", seconds=float(match["slow"]) * (0.001 if match["unit"] == "ms" else 1.0), always=always)
    after = int(match["after"]) if match["after"] else None
    return Fault("error", _error(where, match["error"]), after, always=always)


def _error(where: str, wanted: str) -> str:
    for key in MESSAGES:
        if wanted == key or wanted in key.split():
            return key
    raise JobError(f"{where}: no layer answers {wanted!r}; allowed: {', '.join(MESSAGES)}")


def _allowed() -> str:
    statuses = dict.fromkeys(key.split()[0] for key in MESSAGES)
    return f"{', '.join(statuses)} (+ ' after 2s'), a code like ModelArts.4206, slow 30s, {', '.join(KINDS)}"
