"""Path patterns: `*` and `?` within a folder, `**` across folders. Pure: no folder is looked at."""

from __future__ import annotations

import os
import re
from fnmatch import fnmatchcase
from itertools import takewhile
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from pipeline.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_LOCAL: Final = "file://"
_HIVE_NULL: Final = "__HIVE_DEFAULT_PARTITION__"
WILD: Final = re.compile(r"[*?\[]")

OUR_NAMES: Final = (
    "_SUCCESS",
    "job.json",
    "stop.json",
    "plan/000000.json",
    "results/000000-000000000000-000000000001-0-000000000000.{form}",
    "errors/000000-000000000000-000000000001-0-000000000000.jsonl",
    "receipts/000000-000000000000-000000000001-0-000000000000.json",
    "plan/000000-000000-20261121T000000-000000.parquet",
    "runs/20261121T000000-000000.json",
    "runs/20261121T000000-000000.html",
)
"""What an output's objects are called; `form` is that of its results."""


def split_pattern(pattern: str) -> tuple[str, str]:
    """Return (folder without wildcards, the rest): row identities are derived from what is below the folder."""
    parts = pattern.split("/")
    wild = next((index for index, part in enumerate(parts) if WILD.search(part)), len(parts) - 1)
    return "/".join(parts[:wild]) or "/", "/".join(parts[wild:])


def shared_folder(patterns: Iterable[str]) -> str:
    """Return the folder that the fixed parts of all patterns are in, or are."""
    parts = [split_pattern(pattern)[0].split("/") for pattern in patterns]
    same = [one[0] for one in takewhile(lambda level: len(set(level)) == 1, zip(*parts, strict=False))]
    return "/".join(same)


def matches(pattern: str, path: str) -> bool:
    """Whether a relative path matches a relative glob; wildcards do not match a leading dot."""
    return _match(pattern.split("/"), path.split("/"))


def _match(patterns: Sequence[str], parts: Sequence[str]) -> bool:
    if not patterns or not parts:
        return not patterns and not parts
    if patterns[0] != "**":
        return _fits(patterns[0], parts[0]) and _match(patterns[1:], parts[1:])
    here = _match(patterns[1:], parts) if len(patterns) > 1 else len(parts) == 1 and _fits("*", parts[0])
    return here or (_fits("*", parts[0]) and _match(patterns, parts[1:]))


def _fits(pattern: str, name: str) -> bool:
    hidden = name.startswith(".") and not pattern.startswith(".")
    return not hidden and fnmatchcase(name, pattern)


def folders(uri: str) -> dict[str, str | None]:
    """Return what a file's folders say in Hive's manner: `.../dt=2026-11-21/a.csv` has a column dt.

    Of two that say the same name the inner one holds. Values are text, percent signs as Hive writes them decoded.
    """
    path = unquote(uri) if uri.startswith("file://") else uri  # only local URIs are written with percent signs
    said = (folder.partition("=") for folder in path.split("/")[:-1])
    values = {unquote(name): unquote(value) for name, equals, value in said if equals and name}
    return {name: None if value == _HIVE_NULL else value for name, value in values.items()}


def plain(location: str) -> str:
    """Return a local URI as the path that it is; only such URIs are written with percent signs."""
    return unquote(location.removeprefix(_LOCAL)) if location.startswith(_LOCAL) else location


def keep_apart(pattern: str, output: str, form: str = "parquet") -> None:
    """Refuse, with a JobError, an output one of whose objects would be read as input by the next run.

    `form` is that of the results.
    """
    folder, rest = split_pattern(plain(pattern))
    inside = f"{_real(folder).rstrip('/')}/"
    out = _real(plain(output)).rstrip("/")
    for name in (one.format(form=form) for one in OUR_NAMES):
        path = f"{out}/{name}"
        if path.startswith(inside) and matches(rest, path.removeprefix(inside)):
            raise JobError(
                f"output.path: {output} is inside the input: its {name} would match {pattern}; move one of them"
            )


def _real(location: str) -> str:
    """Follow the links of a path; URLs have none."""
    return location if "://" in location else os.path.realpath(location)


def nothing_at(pattern: str, *, folder: bool = False) -> str:
    """Say that no file is where the input should be; `folder` tells that a folder is."""
    if folder:
        return f"input.path: {pattern} is a folder; name the files in it, such as {pattern.rstrip('/')}/*.parquet"
    problem = "matches no file" if WILD.search(pattern) else "does not exist"
    return f"input.path: {pattern} {problem}; mend the path, or put the file there"
