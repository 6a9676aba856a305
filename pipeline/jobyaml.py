"""YAML as a job file means it: plain values, and the line of every key.

Plain scalars are read as YAML 1.2 reads them (`no` and `12:30` are text, a date is text), because a job file is
written for today's editors and schemas. A key given twice, a tag and an alias to itself are errors. Messages never
quote a value: it may be a password that was meant to be in quotes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import yaml

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Keys = tuple[str, ...]

# The base loaders leave every scalar as text: what a plain one means is decided here. The C parser is ten times faster.
_LOADER: Final[Any] = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
_TAGS: Final = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map")}
_PLAIN: Final[tuple[tuple[re.Pattern[str], Callable[[str], object]], ...]] = (
    (re.compile(r"|~|null|Null|NULL"), lambda _: None),
    (re.compile(r"true|True|TRUE"), lambda _: True),
    (re.compile(r"false|False|FALSE"), lambda _: False),
    (re.compile(r"[-+]?(0|[1-9][0-9_]{0,17})"), int),
    (re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,2})?|[-+]?[0-9]+[eE][-+]?[0-9]{1,2}"), float),
)


class NotReadableError(ValueError):
    """The file is no YAML mapping; `line` and `column` count from 1, 0 where there is none to name."""

    def __init__(self, message: str, line: int = 0, column: int = 0) -> None:
        super().__init__(message)
        self.line, self.column = line, column


@dataclass(frozen=True)
class Document:
    """A mapping, and the line on which each of its keys stands."""

    values: dict[str, Any]
    lines: dict[Keys, int] = field(default_factory=dict)

    def line(self, keys: Keys) -> int:
        """Find the line of a key, or of the nearest key above it; 0 where it did not come from the file."""
        while keys and keys not in self.lines:
            keys = keys[:-1]
        return self.lines.get(keys, 0)

    def forget(self, keys: Keys) -> None:
        """Note that a key, and all below it, no longer comes from the file."""
        for below in [one for one in self.lines if one[: len(keys)] == keys]:
            del self.lines[below]
        self.lines[keys] = 0


def read(path: Path) -> Document:
    """Read one mapping from a file. Raises `NotReadableError`."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise NotReadableError("is not UTF-8 text") from None
    except OSError as error:
        raise NotReadableError(f"cannot be read: {error.strerror}") from None
    lines: dict[Keys, int] = {}
    values = parse(text, lines)
    if values is None:
        raise NotReadableError("is empty; a job file starts with `version: 1`")
    if not isinstance(values, dict):
        raise NotReadableError("is not a mapping; a job file starts with `version: 1`")
    return Document(values, lines)


def parse(text: str, lines: dict[Keys, int] | None = None) -> Any:
    """Read one YAML value, and note in `lines` where its keys stand. Raises `NotReadableError`."""
    try:
        root = yaml.compose(text, Loader=_LOADER)
        return None if root is None else _Reader({} if lines is None else lines).value(root, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        raise NotReadableError(f"is not YAML: {_reason(error)}", *at) from None
    except yaml.YAMLError:
        raise NotReadableError("is not YAML: a character that may not be in it") from None
    except RecursionError:
        raise NotReadableError("is nested too deeply") from None


def _reason(error: yaml.MarkedYAMLError) -> str:
    """Say what the parser found, without the text it found it in."""
    if isinstance(error, yaml.composer.ComposerError):
        return "an alias (*) without its anchor (&), an anchor given twice, or a second document"
    return re.sub(r"['\"`].{4,}['\"`]", "text", error.problem or "unknown form")


@dataclass
class _Reader:
    lines: dict[Keys, int]
    above: list[yaml.Node] = field(default_factory=list)

    def value(self, node: yaml.Node, keys: Keys) -> Any:
        line = node.start_mark.line + 1
        if node.tag not in _TAGS:
            raise NotReadableError("tags are not known here; put text that starts with ! in quotes", line)
        if any(node is one for one in self.above):
            raise NotReadableError("an alias leads back to itself", line)
        self.above.append(node)
        try:
            return self._held(node, keys)
        finally:
            self.above.pop()

    def _held(self, node: yaml.Node, keys: Keys) -> Any:
        if isinstance(node, yaml.SequenceNode):
            return [self.value(one, keys) for one in node.value]
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, keys)
        quoted = isinstance(node, yaml.ScalarNode) and node.style
        return node.value if quoted else _plain(node.value, keys)

    def _mapping(self, node: yaml.MappingNode, keys: Keys) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, held in node.value:
            line = name.start_mark.line + 1
            if not isinstance(name, yaml.ScalarNode):
                raise NotReadableError("a key is not text", line)
            below = (*keys, name.value)
            if name.value in values:
                raise NotReadableError(f"{'.'.join(below)}: the key is given twice", line)
            self.lines.setdefault(below, line)
            values[name.value] = self.value(held, below)
        return values


def _plain(text: str, keys: Keys) -> object:
    """Read a scalar without quotes; a parameter is the text as written, so that `1.10` stays `1.10`."""
    parameter = len(keys) > 1 and keys[0] == "params"
    table = _PLAIN[:1] if parameter else _PLAIN
    return next((read(text) for pattern, read in table if pattern.fullmatch(text)), text)
