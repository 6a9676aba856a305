"""Path patterns: `*` and `?` within a folder, `**` across folders. Pure: no folder is looked at."""

from __future__ import annotations

import re
from fnmatch import translate
from typing import Final

from pipeline.errors import JobError

WILD: Final = re.compile(r"[*?\[]")

OUR_NAMES: Final = (
    "job.json",
    "stop.json",
    "plan/000000.json",
    "results/000000-000000000000-000000000001-0-000000000000.parquet",
    "errors/000000-000000000000-000000000001-0-000000000000.jsonl",
    "receipts/000000-000000000000-000000000001-0-000000000000.json",
    "runs/20261121T000000-000000.json",
)
"""What an output's objects are called."""


def split_pattern(pattern: str) -> tuple[str, str]:
    """Return (folder without wildcards, the rest): row identities are derived from what is below the folder."""
    parts = pattern.split("/")
    wild = next((index for index, part in enumerate(parts) if WILD.search(part)), len(parts) - 1)
    wild = min(wild, len(parts) - 1)
    return "/".join(parts[:wild]) or "/", "/".join(parts[wild:])


def matches(pattern: str, path: str) -> bool:
    """Whether a relative path matches a relative glob; wildcards do not match a leading dot."""
    return re.fullmatch(_regex(pattern), path) is not None


def _regex(pattern: str) -> str:
    pieces = []
    parts = pattern.split("/")
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        if part == "**":
            pieces.append(r"(?:[^/.][^/]*/)*" + (r"[^/.][^/]*" if last else ""))
        else:
            guard = r"(?!\.)" if part[:1] in {"*", "?", "["} else ""
            body = translate(part).removeprefix("(?s:").removesuffix(r")\Z").replace(".*", "[^/]*")
            pieces.append(guard + body + ("" if last else "/"))
    return "".join(pieces)


def keep_apart(pattern: str, output: str) -> None:
    """Refuse, with a JobError, an output one of whose objects would be read as input by the next run."""
    folder, rest = split_pattern(pattern)
    inside = f"{folder.rstrip('/')}/"
    for name in OUR_NAMES:
        path = f"{output.rstrip('/')}/{name}"
        if path.startswith(inside) and matches(rest, path.removeprefix(inside)):
            raise JobError(
                f"output.path: {output} is inside the input: its {name} would match {pattern}; move one of them"
            )
