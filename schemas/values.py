"""How single values of a job file are read: text, counts, sizes, durations, rates, allowances.

Every reader takes what YAML gave (or the text left after substitution) and returns the value, or
raises `InvalidValueError` with what was found and what is allowed. The key's path is put in front by whoever knows it.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

SIZES: Final = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
SECONDS: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
PERIODS: Final = {"s": 1, "min": 60, "h": 3600}

SIZE_PATTERN: Final = r"^(\d{1,15}(?:\.\d{1,9})?) ?([KMG]i?B|B|)$"
DURATION_PATTERN: Final = r"^(\d{1,12}(?:\.\d{1,9})?) ?(ms|s|m|h|)$"
RATE_PATTERN: Final = r"^(\d{1,12}(?:\.\d{1,9})?) ?/ ?(s|min|h)$"
PERCENT_PATTERN: Final = r"^(\d{1,3}(?:\.\d{1,9})?) ?%$"

COMPRESSED: Final = (".gz", ".zst", ".bz2", ".lz4")
"""What may follow the suffix of an input file's form."""

_SUFFIXES: Final = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".manifest": "manifest",
}
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
_URL_NAME: Final = re.compile(r"[^/:?#%\s]+\Z")
_SHOWN: Final = 80


class InvalidValueError(ValueError):
    """A value is not what its key takes: what was found, and what is allowed."""


def shown(value: object, most: int = _SHOWN) -> str:
    """Write `value` as an error line shows it: on one line, and cut behind `most` characters."""
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def readable(text: str, most: int = 500) -> str:
    """Return what others said as a line shows it: without breaks and control characters, and cut."""
    line = "".join(one if one.isprintable() else repr(one)[1:-1] for one in " ".join(text[: 4 * most].split()))
    return line if len(line) <= most else f"{line[:most]}..."


def text(value: object) -> str:
    """Read text with something in it, on one line."""
    if not isinstance(value, str):
        hint = "; put it in quotes" if isinstance(value, bool | int | float) else ""
        raise InvalidValueError(f"{shown(value)} is not text{hint}")
    if not value.strip() or _CONTROL.search(value):
        raise InvalidValueError(
            f"{shown(value)} is not allowed; allowed: text that is not empty, without control characters"
        )
    return value


def url_name(value: object) -> str:
    """Read a name that stands in a URL's path."""
    if not _URL_NAME.match(text(value)):
        raise InvalidValueError(f"{shown(value)} is not a name in a URL; allowed: text without / : ? # % and blanks")
    return str(value)


def texts(value: object) -> tuple[str, ...]:
    """Read a list of different texts, at least one."""
    if not isinstance(value, list | tuple):
        raise InvalidValueError(f"{shown(value)} is not a list; allowed: a list of text, such as [a, b]")
    found = tuple(text(one) for one in value)
    if not found:
        raise InvalidValueError("the list is empty; name at least one, or leave the key out")
    twice = next((one for at, one in enumerate(found) if one in found[:at]), None)
    if twice is not None:
        raise InvalidValueError(f"{shown(twice)} is in the list twice")
    return found


def one_or_more(value: object) -> tuple[str, ...]:
    """Read one text, or a list of them."""
    return texts(value if isinstance(value, list | tuple) else [value])


def character(value: object) -> str:
    """Read one ASCII character, which does not end a line."""
    if not isinstance(value, str) or len(value) != 1 or not value.isascii() or value in "\0\r\n":
        raise InvalidValueError(
            f'{shown(value)} is not allowed; allowed: one ASCII character, such as "," or "\\t", in double quotes'
        )
    return value


def maybe_character(value: object) -> str:
    """Read one ASCII character, which does not end a line, or `""` for none."""
    return "" if value == "" else character(value)


def encoding(value: object) -> str:
    """Read the name of a text encoding, as Python knows it; all its names are one."""
    try:
        "".encode(text(value))
    except (LookupError, UnicodeError):
        allowed = "a text encoding's name, such as utf-8, utf-16, cp1252, latin-1, gb18030"
        raise InvalidValueError(f"{shown(value)} is not an encoding; allowed: {allowed}") from None
    return codecs.lookup(text(value)).name


def form_of(path: str) -> str | None:
    """Tell the form of an input file, or of what a pattern matches, by its suffix; None where it does not tell."""
    name = path.removesuffix(next(filter(path.endswith, COMPRESSED), "")).lower()
    return next((form for suffix, form in _SUFFIXES.items() if name.endswith(suffix)), None)


def flag(value: object) -> bool:
    """Read `true` or `false`; as text too, since substitution gives text."""
    named = {"true": True, "false": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value in named:
        return named[value]
    raise InvalidValueError(f"{shown(value)} is not allowed; allowed: true, false")


def count(value: object) -> int:
    """Read a whole number, 1 or more."""
    number = _whole(value)
    if number is None or number < 1:
        raise InvalidValueError(f"{shown(value)} is not allowed; allowed: a whole number, 1 or more")
    return number


def maybe_count(value: object) -> int:
    """Read a whole number, 0 or more."""
    number = _whole(value)
    if number is None or number < 0:
        raise InvalidValueError(f"{shown(value)} is not allowed; allowed: a whole number, 0 or more")
    return number


def rows(value: object) -> int:
    """Read the rows of one request: 1 to 10000."""
    number = _whole(value)
    if number is None or not 1 <= number <= 10_000:  # noqa: PLR2004 the protocol's own bound
        raise InvalidValueError(f"{shown(value)} is not allowed; allowed: a whole number from 1 to 10000")
    return number


def size(value: object) -> int:
    """Read bytes, at least one: `12MB` is 12,000,000 and `12MiB` is 12 * 2**20."""
    found = _match(SIZE_PATTERN, value)
    in_bytes = Fraction(found[1]) * SIZES[found[2]] if found else Fraction(0)
    if in_bytes < 1 or in_bytes.denominator != 1:
        allowed = "bytes, or a number with KB, MB, GB, KiB, MiB, GiB"
        raise InvalidValueError(f"{shown(value)} is not a size; allowed: {allowed}")
    return int(in_bytes)


def duration(value: object) -> float:
    """Read seconds, 0 or more: `500ms`, `40s`, `30m`, `2h`, or a plain number."""
    found = _match(DURATION_PATTERN, value)
    if not found:
        raise InvalidValueError(f"{shown(value)} is not a duration; allowed: seconds, or a number with ms, s, m, h")
    return float(found[1]) * SECONDS[found[2]]


def some_time(value: object) -> float:
    """Read seconds, more than 0."""
    seconds = duration(value)
    if not seconds:
        raise InvalidValueError(f"{shown(value)} is not allowed; allowed: a duration of more than 0")
    return seconds


@dataclass(frozen=True)
class Rate:
    """So many requests a second, never exceeded by the whole job."""

    per_second: float

    @classmethod
    def read(cls, value: object) -> Rate:
        """Read `100/s`, `6000/min` or `3600/h`; more than 0."""
        if isinstance(value, Rate):
            return value
        found = _match(RATE_PATTERN, value)
        if not found or not float(found[1]):
            raise InvalidValueError(f"{shown(value)} is not a rate; allowed: a number per s, min or h, such as 100/s")
        return cls(float(found[1]) / PERIODS[found[2]])

    def __str__(self) -> str:
        return f"{self.per_second:g}/s"


@dataclass(frozen=True)
class Allowance:
    """Dead letters that still mean success: a count, or a percentage of the planned rows."""

    amount: Fraction = Fraction(0)
    percent: bool = False

    @classmethod
    def read(cls, value: object) -> Allowance:
        """Read a whole number (0 or more), or text such as `1%` or `0.5%`."""
        if isinstance(value, Allowance):
            return value
        found, number = _match(PERCENT_PATTERN, value), _whole(value)
        if found and Fraction(found[1]) <= 100:  # noqa: PLR2004 of a hundred
            return cls(Fraction(found[1]), percent=True)
        if number is None or number < 0:
            raise InvalidValueError(
                f"{shown(value)} is not allowed; allowed: a count, or a percentage of all rows such as 1%"
            )
        return cls(Fraction(number))

    def permits(self, dead: int, planned: int) -> bool:
        """Whether `dead` dead letters of `planned` rows still mean success; exact, `1%` is `dead * 100 <= planned`."""
        return dead <= self.of(planned)

    def of(self, planned: int) -> int:
        """Return how many dead letters of `planned` rows still mean success."""
        return math.floor(self.amount * planned / 100 if self.percent else self.amount)

    def __str__(self) -> str:
        number = str(self.amount) if self.amount.denominator == 1 else f"{float(self.amount):.9f}".rstrip("0")
        return f"{number}%" if self.percent else number


def _whole(value: object) -> int | None:
    """Read `value` as a whole number; None where it is none (a bool is none, `8.0` is 8)."""
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,18}", value, re.ASCII):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value != int(value):
        return None
    return int(value)


def _match(pattern: str, value: object) -> re.Match[str] | None:
    """Find the number and the unit in `value`, where it has the form of `pattern`; a plain number has no unit."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    plain = f"{value:.9f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
    return re.match(pattern, plain, re.ASCII)
