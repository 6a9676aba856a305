"""Values that a job file names by reference: `${env:NAME}` and `${file:path}`.

A `Secret` holds the words of the reference, never what they stand for: it can be pickled into a pipeline graph,
compared and printed. What it stands for exists only where `resolve` is called, on the worker.
"""

from __future__ import annotations

import html
import json
import os
import re
from base64 import b64encode, urlsafe_b64encode
from dataclasses import dataclass, field
from os.path import commonprefix
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn
from urllib.parse import quote, quote_plus

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

REFERENCE: Final = re.compile(r"\$\{(env|file):([^${}]+)\}")
HIDDEN: Final = "***"
SHORTEST: Final = 8
"""Characters of a word that may be a secret: services have headers that say `production`, too, but `v1` is none."""

RECOGNISED: Final = 16
"""Characters by which the beginning of a long secret is known, where others cut it short."""

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


class Unresolved(LookupError):
    """A reference leads nowhere on this machine. One line: the key's path, the reference and the mend; it pickles."""


@dataclass(frozen=True)
class Secret:
    """Text with references in it, such as `Bearer ${env:KEY}`; `key` is its path in the job file, for error lines."""

    text: str = field(repr=False)
    key: str = field(default="", compare=False, repr=False)

    @property
    def named(self) -> bool:
        """Whether there is a reference in it at all; a header may be literal text, which is hidden altogether."""
        return REFERENCE.search(self.text) is not None

    def resolve(self, env: Mapping[str, str] = os.environ) -> str:
        """Look up what it stands for here and now, afresh at each call.

        Raises `Unresolved` where a variable is unset or empty, or a file cannot be read or has more than one line.
        """
        try:
            return expand(self.text, env)
        except Unresolved as problem:
            raise Unresolved(f"{self.key}: {problem}" if self.key else str(problem)) from None

    def __str__(self) -> str:
        return self.text if self.named else HIDDEN

    def __repr__(self) -> str:
        return f"Secret({str(self)!r})"


class Unpicklable:
    """What holds resolved secrets, which do not travel."""

    def __reduce_ex__(self, _: object) -> NoReturn:
        """Refuse."""
        raise TypeError(f"{type(self).__name__} holds secrets and cannot be pickled; open it where it is used")


def strike(text: bytes, secrets: Iterable[str]) -> bytes:
    """Return what others said without our secrets, which they quote: whole or cut, as they are or encoded.

    A secret is struck with each of its words: a header may have one behind `Bearer`.
    """
    words = {word for secret in secrets for word in (secret, *secret.split()) if len(word) >= SHORTEST}
    for form in sorted({form for word in words for form in _forms(word)}, key=len, reverse=True):
        text = _struck(text, form)
    return text


def _forms(word: str) -> Iterator[bytes]:
    """Yield a word as JSON, URLs, forms, HTML and base64 have it."""
    plain = word.encode()
    yield plain
    for ascii_only in (True, False):
        quoted = json.dumps(word, ensure_ascii=ascii_only)[1:-1]
        yield from (quoted.encode(), quoted.replace("/", "\\/").encode())
    yield from (one.encode() for one in (quote(word, safe=""), quote(word), quote_plus(word), html.escape(word)))
    yield from (b64encode(plain).rstrip(b"="), urlsafe_b64encode(plain).rstrip(b"="))


def _struck(text: bytes, form: bytes) -> bytes:
    kept, start = [], 0
    while (at := text.find(form[:RECOGNISED], start)) >= 0:
        kept += [text[start:at], HIDDEN.encode()]
        start = at + len(commonprefix([text[at : at + len(form)], form]))  # noqa: RUF071 - these are no paths
    return b"".join((*kept, text[start:]))


def reveal(value: Secret | str, env: Mapping[str, str] = os.environ) -> str:
    """Give the text of a value that may be literal or a reference."""
    return value.resolve(env) if isinstance(value, Secret) else value


def expand(text: str, env: Mapping[str, str], folder: Path = Path()) -> str:
    """Give `text` with each reference replaced by what it names; relative files are looked for in `folder`."""

    def found(match: re.Match[str]) -> str:
        kind, name = match.groups()
        value = _variable(name, env) if kind == "env" else _content(name, folder)
        if _CONTROL.search(value):
            raise Unresolved(f"{match[0]} has more than one line or control characters; allowed: one line of text")
        return value

    return REFERENCE.sub(found, text)


def _variable(name: str, env: Mapping[str, str]) -> str:
    value = env.get(name)
    if not value:
        state = "is not set" if value is None else "is empty"
        raise Unresolved(f"${{env:{name}}} {state} in the environment; export {name}=...")
    return value


def _content(name: str, folder: Path) -> str:
    """Read the file's text without its last line end."""
    try:
        content = (folder / name).read_text(encoding="utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise Unresolved(f"${{file:{name}}} is not UTF-8 text") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a path"
        raise Unresolved(f"${{file:{name}}} cannot be read: {reason}") from None
    if not content:
        raise Unresolved(f"${{file:{name}}} is empty")
    return content
