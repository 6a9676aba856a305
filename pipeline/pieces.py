"""What an input format gives: what planning must know of a file, and then its rows, piece by piece.

A format is a module with `look` and `pieces` (see `Format`). It knows nothing of splits, casts or folder columns:
`pipeline.read` cuts, casts and adds them, alike for all formats.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import pyarrow as pa

    from schemas.job import Input
    from schemas.plan import Source
    from schemas.tables import Kind


class Broken(NamedTuple):
    """A row that cannot be sent: the kind of its dead letter, why, and the JSON that its `row` shows."""

    kind: Kind
    message: str
    row: bytes


class Piece(NamedTuple):
    """Successive rows of a source, as stored, from source row `first`. `broken` is by position in `data`.

    A broken row has its place in `data`, where its values (nulls, say) mean nothing.
    """

    first: int
    data: pa.RecordBatch
    broken: Mapping[int, Broken] = {}


class Mark(NamedTuple):
    """A place where a file may be entered: row `row` begins at `offset`.

    That is a byte of a file that is made of lines, and the number of a record batch of an Arrow file.
    """

    row: int
    offset: int


class Found(NamedTuple):
    """What planning learns of a file.

    `schema` has its columns with their types; `rows` is None where only reading to the end can tell; `size` is what its
    rows weigh in bytes, as far as that is known; `empty` says that it certainly has no rows: its types mean nothing.
    `inferred` are types that values of the first file show, of declared columns too: what these are when their
    declaration is taken back.
    """

    schema: pa.Schema
    rows: int | None
    size: int
    marks: tuple[Mark, ...] = ()
    empty: bool = False
    inferred: Mapping[str, pa.DataType] = {}


class Wanted(NamedTuple):
    """How a source is to be read.

    `columns` are needed, in this order; `types` has the type of every column of formats that have none of their own
    (CSV, JSONL), and else those that are declared; `largest` is how many bytes of a whole file can be sent. Where rows
    are files, those that `only` does not want by their number are not opened, and mean nothing.
    """

    input: Input
    columns: tuple[str, ...]
    types: Mapping[str, pa.DataType]
    largest: int = 12_000_000
    only: Callable[[int], bool] | None = None


class Format(Protocol):
    """One form of input files. Files may be compressed; `pipeline.storage` opens them."""

    def look(self, uri: str, given: Input, known: Mapping[str, pa.DataType]) -> Found:
        """Look at a file for planning; `known` are types fixed already, by the job file or by an earlier file.

        Raises JobError, one line that names the file, when it is not of this form.
        """

    def pieces(self, source: Source, wanted: Wanted, start: int, mark: Mark) -> Iterator[Piece]:
        """Yield the wanted columns of all rows from `start`, or from somewhere before it, to the end of the source.

        `mark` is at or before `start`. Columns that the file does not have are left out. Raises OSError or
        ArrowException where storage or the file's coding fails, and BulkscoreError for what has a clearer line.
        """
