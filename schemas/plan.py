"""The plan: which rows there are, and how they are cut for workers. Frozen once written."""

from __future__ import annotations

from msgspec import Struct


class Source(Struct, frozen=True):
    """One input file as it was when it was planned.

    `number` names it in receipts and objects; `uri` is absolute (local files as `file://`); `path` is the part below
    the input's fixed prefix, from which row identities are derived, so that moving the input keeps them; `version`
    tells whether the file is still the same one.
    """

    number: int
    uri: str
    path: str
    size: int
    version: str
    rows: int


class Split(Struct, frozen=True):
    """Rows `[start, stop)` of one source: the unit of parallelism, never of what a crash costs."""

    source: int
    start: int
    stop: int


class Plan(Struct, frozen=True):
    """What one run found new: its sources, the columns they have in common, and their splits."""

    run: str
    columns: dict[str, str]
    sources: tuple[Source, ...]
    splits: tuple[Split, ...]


class Work(Struct, frozen=True):
    """One element of the pipeline: rows `[start, stop)` of `source` that no receipt covered when the run began."""

    source: Source
    start: int
    stop: int
    generation: int = 0
