"""CSV: one stream, parsed by Arrow block by block; every record has its row, also one that cannot be read.

Columns come out as text, as they are in the file; the types that `look` infers are those that this text can be cast to.
Blank lines are no rows.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv

from pipeline import records
from pipeline.errors import JobError
from pipeline.globs import folders
from pipeline.pieces import Broken, Found, Piece
from pipeline.records import LONGEST, NEWLINES, UNDECODABLE, UnendedError
from pipeline.storage import open_source, open_stream

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pipeline.pieces import Mark, Wanted
    from schemas.job import Csv, Input
    from schemas.plan import Source

BATCH_ROWS: Final = 10_000
BATCH_BYTES: Final = 4_000_000

_TEXTS: Final = frozenset(
    {pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view()}
)
_EMPTY: Final = pa.scalar("")
_NULL: Final = pa.scalar(None, pa.string())
_TRUTHS: Final = pa.array(["true", "false"])


def look(uri: str, given: Input, known: Mapping[str, pa.DataType]) -> Found:
    """Read a file's header and, for the types of columns that are not known, its first MiB.

    Where `known` has no more than the declared columns, no earlier file has fixed any, and theirs are inferred too.
    Raises JobError when it does not begin with text, or cannot be unpacked. A file without rows is no error.
    """
    try:
        fs, path = open_source(uri)
        size = fs.get_file_info(path).size
        with open_stream(uri) as stream:
            file = _File(uri, stream, given)
            block = next(file.blocks(), b"")
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise JobError(f"input.path: {uri} is not readable as CSV: {reason}; replace it or leave it out") from None
    fixed = known if not known.keys() <= given.columns.keys() else {}
    types = _inferred(block, file.names, given.csv, fixed) if block else [pa.string()] * len(file.names)
    inferred = dict(zip(file.names, types, strict=True)) if not fixed else {}
    fields = [pa.field(name, known.get(name, kind)) for name, kind in zip(file.names, types, strict=True)]
    return Found(pa.schema(fields), None if block else 0, size, empty=not block, inferred=inferred)


def pieces(source: Source, wanted: Wanted, start: int, mark: Mark) -> Iterator[Piece]:  # noqa: ARG001 - one stream
    """Yield the wanted columns as text, of all rows that are in a block with row `start` or behind it.

    A field is null if it is empty or one of the null values, and not in quotes; `""` is the empty text, or null in a
    column that is to be no text. Raises JobError for a column that neither the file nor its folders have, and for a
    record that does not end; memory is bounded by a block, or by a few times the longest record that is allowed.
    """
    with open_stream(source.uri) as stream:
        file = _File(source.uri, stream, wanted.input)
        for block in file.blocks():
            parsed = _parse(block, file.names, file.positions(wanted.columns), wanted.input.csv)
            if file.row + parsed.rows > start:
                yield from _sliced(file.row, *_marked(parsed, block, wanted))
            file.row += parsed.rows


class _File:
    """A CSV file: `names` of its columns, once the first block is read; `row` is the next block's first row."""

    def __init__(self, uri: str, stream: pa.NativeFile, given: Input) -> None:
        self._uri = uri
        self._stream = stream
        self._given = given
        self.names: list[str] = []
        self.row = 0

    def blocks(self) -> Iterator[bytes]:
        """Yield blocks of rows; the header is in none of them. The caller moves `row` on."""
        form = self._given.csv
        try:
            for block in records.blocks(self._stream.read, form.encoding, form.delimiter, form.quote):
                rows = block.lstrip(NEWLINES)
                if rows and not self.names:
                    rows = self._begin(rows)
                if rows:
                    yield rows
        except UnendedError:
            what = f"source row {self.row}" if self.names else "its first row"
            raise JobError(
                f"input.path: {self._uri}: {what} is over {LONGEST >> 20} MB, or a quote in it is never closed; "
                "mend the file, or say how it is quoted: input.csv.quote"
            ) from None
        except UnicodeError as error:
            raise self._not_text(str(error).splitlines()[0]) from None

    def positions(self, columns: Sequence[str]) -> dict[str, int]:
        """Say where the columns are in a row. Of columns that have the same name, the first counts."""
        said = folders(self._uri)
        for name in columns:
            if name not in self.names and name not in said:
                there = ", ".join(one if one.isprintable() else repr(one) for one in self.names)
                raise JobError(f"input.path: {self._uri} has no column {name!r}; it has: {there}")
        places = {name: position for position, name in reversed(list(enumerate(self.names)))}
        return {name: places[name] for name in columns if name in places}

    def _begin(self, rows: bytes) -> bytes:
        """Take the names from the first record, and return the rows without a header."""
        form = self._given.csv
        record = records.first_record(rows, form.delimiter, form.quote)
        text = record.decode()
        if "\0" in text or (form.header and UNDECODABLE in text):
            raise self._not_text("it does not begin with text in this encoding")
        fields = _fields(record, form.delimiter, form.quote)
        if form.header:
            self.names = list(fields)
            return rows[len(record) :].lstrip(NEWLINES)
        named = list(self._given.columns)[: len(fields)]
        self.names = named + [f"f{position}" for position in range(len(named), len(fields))]
        return rows

    def _not_text(self, reason: str) -> JobError:
        return JobError(
            f"input.csv.encoding: {self._uri} is not readable as {self._given.csv.encoding}: {reason}; "
            "give the encoding that it has, or leave the file out"
        )


class _Parsed(NamedTuple):
    """The rows of a block that have the right number of fields, and all the others by their position."""

    data: pa.RecordBatch
    ragged: dict[int, arrow_csv.InvalidRow]

    @property
    def rows(self) -> int:
        """All rows of the block."""
        return self.data.num_rows + len(self.ragged)


@lru_cache(maxsize=1)  # for the million files that have the same header
def _fields(record: bytes, delimiter: str, quote: str) -> list[str]:
    """Return the fields of the one record that is given."""
    most = record.count(delimiter.encode()) + 1
    table = arrow_csv.read_csv(
        pa.BufferReader(record),  # type: ignore[arg-type]
        arrow_csv.ReadOptions(use_threads=False, block_size=len(record) + 1, autogenerate_column_names=True),
        arrow_csv.ParseOptions(delimiter=delimiter, quote_char=quote or False, newlines_in_values=True),
        arrow_csv.ConvertOptions(check_utf8=False, column_types={f"f{at}": pa.string() for at in range(most)}),
    )
    return [column[0].as_py() for column in table.columns]


def _parse(block: bytes, names: Sequence[str], columns: Mapping[str, int], form: Csv) -> _Parsed:
    """Parse columns of a block, given by their names and positions."""
    ragged: dict[int, arrow_csv.InvalidRow] = {}

    def skip(row: arrow_csv.InvalidRow) -> Literal["skip"]:
        assert row.number  # from 1; there is none with several threads
        ragged[row.number - 1] = row
        return "skip"

    columns = columns or {names[0]: 0}  # rows without any column could not be counted
    chosen = [str(position) for position in columns.values()]  # names may be there twice, positions are not
    table = arrow_csv.read_csv(
        pa.BufferReader(block),  # type: ignore[arg-type]
        arrow_csv.ReadOptions(
            use_threads=False, block_size=len(block) + 1, column_names=[str(index) for index in range(len(names))]
        ),
        arrow_csv.ParseOptions(
            delimiter=form.delimiter,
            quote_char=form.quote or False,
            newlines_in_values=True,
            invalid_row_handler=skip,
        ),
        arrow_csv.ConvertOptions(
            check_utf8=False,
            column_types=dict.fromkeys(chosen, pa.string()),
            null_values=["", *form.null_values],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            include_columns=chosen,
        ),
    )
    arrays = [column.combine_chunks() for column in table.columns]
    return _Parsed(pa.RecordBatch.from_arrays(arrays, names=list(columns)), ragged)


def _marked(parsed: _Parsed, block: bytes, wanted: Wanted) -> tuple[pa.RecordBatch, dict[int, Broken]]:
    """Return all rows of a block, with a place for those that are broken, and why they are."""
    data, form = parsed.data, wanted.input.csv
    broken: dict[int, Broken] = {}
    if parsed.ragged:
        data = _spread(data, list(parsed.ragged))
        broken = {position: _ragged(row, form) for position, row in parsed.ragged.items()}
    if UNDECODABLE.encode() in block:
        broken |= _undecodable(data, form.encoding)
    if form.quote and (form.quote * 2).encode() in block:
        data = _without_empty_texts(data, wanted.types)
    return data, broken


def _spread(data: pa.RecordBatch, gaps: list[int]) -> pa.RecordBatch:
    """Put rows of nulls in, so that they are at these positions."""
    is_gap = np.zeros(data.num_rows + len(gaps), dtype=np.bool_)
    is_gap[gaps] = True
    return data.take(pa.array(np.cumsum(~is_gap) - 1, mask=is_gap))


def _ragged(row: arrow_csv.InvalidRow, form: Csv) -> Broken:
    fields = f"{row.actual_columns} field{'s' * (row.actual_columns != 1)}"
    message = f"row has {fields}, the {'header' if form.header else 'first row'} has {row.expected_columns}"
    return Broken("unreadable", message, msgspec.json.encode(_shown(row.text)))


def _undecodable(data: pa.RecordBatch, encoding: str) -> dict[int, Broken]:
    broken: dict[int, Broken] = {}
    for name, column in zip(data.schema.names, data.columns, strict=True):
        for position in pc.indices_nonzero(pc.match_substring(column, UNDECODABLE)).to_numpy().tolist():
            [row] = data.slice(position, 1).to_pylist()
            shown = {key: value and _shown(value) for key, value in row.items()}
            found = Broken("unreadable", f"{name} is not text in {encoding}", msgspec.json.encode(shown))
            broken.setdefault(position, found)
    return broken


def _shown(text: str) -> str:
    return text.replace(UNDECODABLE, "\N{REPLACEMENT CHARACTER}")


def _without_empty_texts(data: pa.RecordBatch, types: Mapping[str, pa.DataType]) -> pa.RecordBatch:
    """Make empty texts null in columns that are to be no text."""
    for index, name in enumerate(data.schema.names):
        if types.get(name, pa.string()) not in _TEXTS:
            column = data.column(index)
            data = data.set_column(index, name, pc.if_else(pc.equal(column, _EMPTY), _NULL, column))
    return data


def _sliced(first: int, data: pa.RecordBatch, broken: Mapping[int, Broken]) -> Iterator[Piece]:
    rows = max(1, min(BATCH_ROWS, BATCH_BYTES * data.num_rows // max(1, data.nbytes)))
    for start in range(0, data.num_rows, rows):
        here = {at: broken[start + at] for at in range(rows) if start + at in broken} if broken else {}
        yield Piece(first + start, data.slice(start, rows), here)


def _inferred(block: bytes, names: Sequence[str], form: Csv, known: Mapping[str, pa.DataType]) -> list[pa.DataType]:
    """Return types of all columns, those not known by what the block has in them."""
    places = {str(position): position for position, name in enumerate(names) if name not in known}
    if not places:
        return [pa.string()] * len(names)
    data = _parse(block, names, places, form).data
    return [_type_of(data.column(str(index))) if str(index) in places else pa.string() for index in range(len(names))]


def _type_of(column: pa.Array[Any]) -> pa.DataType:
    """Return the type that all values of a column can be cast to: int64, double, bool, or else string."""
    values = column.filter(pc.and_(pc.not_equal(column, _EMPTY), pc.invert(pc.match_substring(column, UNDECODABLE))))
    if not len(values) or pc.any(pc.match_substring(values, "x", ignore_case=True)).as_py():
        return pa.string()  # an x is in no number but 0x1f, which Arrow takes for one
    if pc.all(pc.is_in(pc.utf8_lower(values), _TRUTHS)).as_py():
        return pa.bool_()
    for kind in (pa.int64(), pa.float64()):
        try:
            values.cast(kind)
        except pa.ArrowInvalid:
            continue
        return kind
    return pa.string()
