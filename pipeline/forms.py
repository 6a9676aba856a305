"""The forms of result objects: how tables are written, and how it is read again which rows an object has.

Parquet holds values as they are. JSONL and CSV follow the rules of the row (see `pipeline.encode`): a JSONL object is
one object a line, and a CSV cell is what would stand in it, text without its quotes. In CSV text is always in quotes
and null never is, so that an empty text is told from null. Every CSV object has a header.
"""

from __future__ import annotations

import csv as plain_csv
import io
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, cast

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv, types

from pipeline.encode import RowEncoder, text_of
from pipeline.errors import JobError
from pipeline.jsonform import form_of
from schemas.tables import RESULT_FIELDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pipeline.storage import Draft

PLACE: Final = pa.schema([field for field in RESULT_FIELDS if field.name in {"source", "source_row", "row_uuid"}])
"""What a result or dead letter says of who it is."""

_REPEATED: Final = ["source", "request_uuid", "attempts", "latency_ms", "scored_at"]
"""Columns with one value a request: a dictionary makes them smaller. For the others it costs more than it saves."""
_ROWS: Final = 16_384
_PIECE: Final = 4_000_000
_READ_BUFFER: Final = 1 << 20
_UNREADABLE: Final = (
    *(pa.ArrowException, plain_csv.Error, msgspec.DecodeError, UnicodeDecodeError),
    *(KeyError, OverflowError, RecursionError),
)


class Writer(Protocol):
    """Writes tables of one schema into an object, one after the other."""

    def write_table(self, table: pa.Table) -> None:
        """Append rows."""

    def close(self) -> None:
        """Write what stands behind the rows; the draft stays open."""


class Form(NamedTuple):
    """One form: what opens a writer on a draft, and what reads PLACE from a file in pieces of bounded memory."""

    writer: Callable[[Draft, pa.Schema], Writer]
    places: Callable[[Any], Iterator[pa.RecordBatch]]


class Unreadable(ValueError):
    """An object is not of the form that its suffix says; the text says why."""


def check_form(form: str, schema: pa.Schema) -> None:
    """See that a form can hold results of a schema. Raises JobError where it cannot."""
    FORMS[form].writer(cast("Any", io.BytesIO()), schema).close()


def places(name: str, file: pa.NativeFile) -> Iterator[pa.RecordBatch]:
    """Yield PLACE of every row of the object `name`, in order; `file` is open on it.

    A piece has 16,384 rows of Parquet, or the lines in 4 MB and at least one. Raises Unreadable.
    """
    suffix = name.rpartition(".")[2]
    if suffix not in FORMS:
        raise Unreadable(f"its suffix is none of {', '.join(FORMS)}")
    try:
        yield from FORMS[suffix].places(file)
    except _UNREADABLE as error:
        raise Unreadable(f"it cannot be read as {suffix}: {str(error).partition(chr(10))[0]}") from None


class _Parquet:
    def __init__(self, draft: Draft, schema: pa.Schema) -> None:
        sink, repeated = cast("Any", draft), cast("Any", _REPEATED)
        with _held("column"):
            self._writer = pq.ParquetWriter(sink, schema, compression="zstd", use_dictionary=repeated)

    def write_table(self, table: pa.Table) -> None:
        with _held("value"):
            self._writer.write_table(table)

    def close(self) -> None:
        self._writer.close()


@contextmanager
def _held(what: str) -> Iterator[None]:
    """Tell what Parquet does not hold of what Arrow does: a column's type, or times that it has no room for."""
    try:
        yield
    except pa.ArrowException as error:
        raise JobError(
            f"output.format: parquet cannot hold a {what} of the results: {str(error).partition(chr(10))[0]}; "
            "leave its column out of input.keep or output.prediction, or write jsonl or csv"
        ) from None


def _parquet_places(file: Any) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(file, pre_buffer=False, buffer_size=_READ_BUFFER) as table:
        for batch in table.iter_batches(_ROWS, columns=PLACE.names, use_threads=False):
            yield batch.select(PLACE.names).cast(PLACE)


class _JsonLines:
    def __init__(self, draft: Draft, schema: pa.Schema) -> None:
        self._draft = draft
        self._rows = RowEncoder(schema, schema.names, rename={}, key="input.keep")

    def write_table(self, table: pa.Table) -> None:
        for batch in _batches(table):
            self._draft.write(self._rows.encode(batch).lines)

    def close(self) -> None:
        """Nothing stands behind the rows."""


class _Place(msgspec.Struct, gc=False):
    source: str | None = None
    source_row: int | None = None
    row_uuid: str | None = None


_places: Final = msgspec.json.Decoder(_Place)


def _jsonl_places(file: Any) -> Iterator[pa.RecordBatch]:
    for lines in pieces(file, whole_lines):
        rows = _places.decode_lines(lines)
        columns = {name: [getattr(row, name) for row in rows] for name in PLACE.names}
        yield pa.RecordBatch.from_pydict(columns, PLACE)


class _Csv:
    def __init__(self, draft: Draft, schema: pa.Schema) -> None:
        self._draft = draft
        self._cells = [_cells_of(field.type) for field in schema]
        self._write([_quoted(pa.array([name])) for name in schema.names])

    def write_table(self, table: pa.Table) -> None:
        for batch in _batches(table):
            self._write([cells(column) for cells, column in zip(self._cells, batch.columns, strict=True)])

    def close(self) -> None:
        """Nothing stands behind the rows."""

    def _write(self, cells: list[Any]) -> None:
        join: Any = pc.binary_join_element_wise
        rows = join(*cells, ",", null_handling="replace", null_replacement="")
        self._draft.write(("\n".join(rows.to_pylist()) + "\n").encode())


def _cells_of(kind: pa.DataType) -> Callable[[Any], Any]:
    """Return what makes CSV cells of a column: its values as JSON texts, those that may hold anything in quotes."""
    if types.is_integer(kind) or types.is_boolean(kind):
        return lambda column: column.cast(pa.string())
    form = form_of(kind)
    bare = types.is_floating(kind) or types.is_decimal(kind) or types.is_temporal(kind) or types.is_null(kind)

    def cells(column: Any) -> Any:
        texts = pa.array([text_of(value) for value in form(column).values], pa.string())
        return texts if bare else _quoted(texts)

    return cells


def _quoted(texts: Any) -> Any:
    join: Any = pc.binary_join_element_wise
    return join('"', pc.replace_substring(texts, '"', '""'), '"', "")


def _csv_places(file: Any) -> Iterator[pa.RecordBatch]:
    names: list[str] = []
    for rows in pieces(file, whole_csv):
        header = 0 if names else 1
        names = names or next(plain_csv.reader(io.StringIO(rows.decode(), newline="")))
        table = csv.read_csv(
            cast("Any", pa.BufferReader(rows)),
            csv.ReadOptions(
                use_threads=False, block_size=len(rows) + 1, column_names=names, skip_rows_after_names=header
            ),
            csv.ParseOptions(newlines_in_values=True),
            csv.ConvertOptions(
                include_columns=PLACE.names,
                column_types=PLACE,
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
        yield from table.to_batches()


def whole_lines(data: bytes) -> int:
    """Return where the last whole line ends."""
    return data.rfind(b"\n") + 1


def whole_csv(data: bytes) -> int:
    """Return where the last whole row ends: at a newline that has an even number of quotes before it."""
    end = data.rfind(b"\n") + 1
    inside = data.count(b'"', 0, end) % 2
    while inside and end:
        before = data.rfind(b"\n", 0, end - 1) + 1
        inside = (inside + data.count(b'"', before, end)) % 2
        end = before
    return end


def pieces(file: Any, whole: Callable[[bytes], int]) -> Iterator[bytes]:
    """Yield the rows of a file, many at a time; `whole` tells where the last whole one ends. Raises Unreadable."""
    rest = b""
    while data := file.read(_PIECE):
        rest += data
        end = whole(rest)
        if end:
            yield rest[:end]
        rest = rest[end:]
    if rest:
        raise Unreadable("it ends in the middle of a row")


def _batches(table: pa.Table) -> list[pa.RecordBatch]:
    """Cut a table small, for its values become Python objects; the chunks it has are requests, smaller yet."""
    with suppress(pa.ArrowNotImplementedError):  # of dictionaries of lists
        table = table.combine_chunks()
    return table.to_batches(max_chunksize=_ROWS)


FORMS: Final[Mapping[str, Form]] = {
    "parquet": Form(_Parquet, _parquet_places),
    "jsonl": Form(_JsonLines, _jsonl_places),
    "csv": Form(_Csv, _csv_places),
}
"""By `output.format`, which is also the suffix of the objects."""
