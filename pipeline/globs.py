"""Path patterns: `*` and `?` within a folder, `**` across folders. Pure: no folder is looked at."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from pipeline.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Sequence

WILD: Final = re.compile(r"[*?\[]")

OUR_NAMES: Final = (
    "_SUCCESS",
    "job.json",
    "stop.json",
    "plan/000000.json",
    "results/000000-000000000000-000000000001-0-000000000000.parquet",
    "errors/000000-000000000000-000000000001-0-000000000000.jsonl",
    "receipts/000000-000000000000-000000000001-0-000000000000.json",
    "runs/20261121T000000-000000.json",
    "runs/20261121T000000-000000.html",
)
"""What an output's objects are called."""


def split_pattern(pattern: str) -> tuple[str, str]:
    """Return (folder without wildcards, the rest): row identities are derived from what is below the folder."""
    parts = pattern.split("/")
    wild = next((index for index, part in enumerate(parts) if WILD.search(part)), len(parts) - 1)
    return "/".join(parts[:wild]) or "/", "/".join(parts[wild:])


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


def keep_apart(pattern: str, output: str) -> None:
    """Refuse, with a JobError, an output one of whose objects would be read as input by the next run."""
    folder, rest = split_pattern(pattern.removeprefix("file://"))
    inside = f"{folder.rstrip('/')}/"
    for name in OUR_NAMES:
        path = f"{output.removeprefix('file://').rstrip('/')}/{name}"
        if path.startswith(inside) and matches(rest, path.removeprefix(inside)):
            raise JobError(
                f"output.path: {output} is inside the input: its {name} would match {pattern}; move one of them"
            )


def nothing_at(pattern: str, *, folder: bool = False) -> str:
    """Say that no file is where the input should be; `folder` tells that a folder is."""
    if folder:
        return f"input.path: {pattern} is a folder; name the files in it, such as {pattern.rstrip('/')}/*.parquet"
    problem = "matches no file" if WILD.search(pattern) else "does not exist"
    return f"input.path: {pattern} {problem}; mend the path, or put the file there"
