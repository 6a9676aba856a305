"""JSON as MindSpore Serving's parser reads it, and in its words what is wrong with what is none."""

from __future__ import annotations

import json
from json import JSONDecodeError
from typing import Any, Final

import numpy as np

_INTEGERS: Final = (-(2**63), 2**64)
_VALUE: Final = "'[', '{', or a literal"
_WHERE: Final = {
    "Expecting value": ("value", _VALUE),
    "Expecting property name enclosed in double quotes": ("object key", "string literal"),
    "Extra data": ("value", "end of input"),
}
"""By Python's words for what is wrong: what was being parsed there, and what could have stood there."""
_SIGNS: Final = frozenset("[]{},:")


class NoJson(ValueError):
    """What the parser says, where it says why."""


def document_of(body: bytes) -> Any:
    """Read JSON; integers that do not fit 64 bits are floats. Raises NoJson."""
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NoJson("" if body[:1] == b"{" else _at("", 0, *_WHERE["Expecting value"])) from error
    try:
        document = json.loads(text, parse_int=_integer, parse_float=_float, parse_constant=_no_constant)
        json.dumps(document, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except JSONDecodeError as error:
        raise NoJson(_at(text, error.pos, *_WHERE[error.msg]) if error.msg in _WHERE else "") from error
    except _Constant as error:
        raise NoJson(_at(text, _place(text, str(error)), *_WHERE["Expecting value"])) from error
    except (UnicodeEncodeError, RecursionError) as error:
        raise NoJson("") from error
    return document


class _Constant(ValueError):
    """One that Python's parser knows, and JSON does not: NaN, Infinity or -Infinity."""


def _no_constant(name: str) -> float:
    raise _Constant(name)


def _place(text: str, name: str) -> int:
    """Return where a constant stands for a value: cut off there, the text lacks one."""
    place = text.find(name)
    while place >= 0:
        try:
            json.loads(text[:place])
        except JSONDecodeError as error:
            if error.msg == "Expecting value" and error.pos == place:
                return place
        place = text.find(name, place + 1)
    return 0


def _at(text: str, place: int, parsing: str, expected: str) -> str:
    """Say what is wrong at a place."""
    line, column = text.count("\n", 0, place) + 1, place - text.rfind("\n", 0, place)
    found = text[place : place + 1]
    wrong = "invalid literal"
    if found in _SIGNS or place >= len(text) > 0:
        wrong = f"unexpected {f'{found!r}' if found else 'end of input'}; expected {expected}"
    head = f"[json.exception.parse_error.101] parse error at line {line}, column {column}"
    return f"{head}: syntax error while parsing {parsing} - {wrong}"


def _integer(text: str) -> int | float:
    value = int(text)
    return value if _INTEGERS[0] <= value < _INTEGERS[1] else _float(text)


def _float(text: str) -> float:
    value = float(text)
    if not np.isfinite(value):
        raise NoJson(f"[json.exception.out_of_range.406] number overflow parsing '{text}'")
    return value
