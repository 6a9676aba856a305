"""The plan: which rows there are, and how they are cut for workers. Frozen once written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import Struct

if TYPE_CHECKING:
    from schemas.receipt import Receipt

NO_END: Final = 10**12
"""Behind the last row of any source: object names have twelve digits for a row."""


class Source(Struct, frozen=True, omit_defaults=True, gc=False):
    """One input file as it was when it was planned.

    `number` names it in receipts and objects; `uri` is absolute (local files as `file://`); `path` is the part below
    the input's fixed prefix, from which row identities are derived, so that moving the input keeps them; `version`
    tells whether the file is still the same one; `rows` is None where only reading it to its end can tell. `accepted`
    is a later version of a file that is done, which its owner let pass as it is.

    A `listing` is no input file but the plan's own list of them, whose rows are files: `uri` is its name in the output.
    """

    number: int
    uri: str
    path: str
    size: int
    version: str
    rows: int | None
    accepted: str = ""
    listing: bool = False


class Split(Struct, frozen=True, omit_defaults=True, gc=False):
    """Rows `[start, stop)` of one source: the unit of parallelism, never of what a crash costs.

    `stop` is None for a source whose rows are not known. Row `start` begins at `offset`: a byte of a file that is made
    of lines, the number of a record batch of an Arrow file, and nothing else for other forms.
    """

    source: int
    start: int
    stop: int | None
    offset: int = 0


class Redo(Struct, frozen=True, omit_defaults=True):
    """Rows `[start, stop)` of a source must be scored again: no receipt of an earlier generation counts for them."""

    source: int
    generation: int
    start: int = 0
    stop: int = NO_END


class Plan(Struct, frozen=True, omit_defaults=True):
    """What one run found new: its sources, the columns they have in common, and their splits.

    A source with the number of an earlier one takes its place, splits and all.
    """

    run: str
    columns: dict[str, str]
    sources: tuple[Source, ...]
    splits: tuple[Split, ...]
    redo: tuple[Redo, ...] = ()


class Order(Struct, frozen=True):
    """What a run asks of its workers: its name, and whether the first rows are a trial.

    `max_requests` are the requests that it may send; `allowed` the dead letters that it may make, where that is known.
    """

    run: str
    probe: bool = True
    max_requests: int | None = None
    allowed: int | None = None


class Heal(Struct, frozen=True):
    """What is healed: the range of a receipt. Its dead letters of these kinds are asked again; without any, all are."""

    receipt: Receipt
    kinds: tuple[str, ...] = ()


class Work(Struct, frozen=True):
    """One element of the pipeline: rows `[start, stop)` of `source` that no receipt covered when the run began.

    `stop` is NO_END where the source's rows are not known. `mark` is a row at or before `start`, and the offset where
    it begins, as splits have it. With `heal` the rows are those of one receipt, which counts until it is rewritten.
    """

    source: Source
    start: int
    stop: int
    generation: int = 0
    mark: tuple[int, int] = (0, 0)
    heal: Heal | None = None
