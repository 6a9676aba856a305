"""Result objects written once more, with new rows among the stored ones; a stored row stays what it is.

Parquet is read one row group at a time, as it was written. In the forms made of text a row stays the very text, in
pieces of some megabytes: all that is read of it is its place.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from pipeline.forms import FORMS, PLACE, pieces, whole_csv, whole_lines
from pipeline.storage import storing
from schemas.plan import NO_END

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from pipeline.encode import Int64s
    from pipeline.storage import Draft, Store

_READ_BUFFER: Final = 1 << 20


class Stored(NamedTuple):
    """Successive rows of a result object: their PLACE, and the rows, in a form of text as one column of texts."""

    place: pa.RecordBatch
    rows: pa.Table


def stored(store: Store, name: str, schema: pa.Schema) -> Generator[Stored, None, None]:
    """Yield the rows of the result object `name`, a row group or about 4 MB at a time. Raises StorageFailed."""
    form = name.rpartition(".")[2]
    with storing("read", f"{store.uri}/{name}"), store.open(name) as file:
        yield from _groups(file, schema) if form == "parquet" else _texts(file, form)


def _groups(file: Any, schema: pa.Schema) -> Iterator[Stored]:
    with pq.ParquetFile(file, pre_buffer=False, buffer_size=_READ_BUFFER) as parquet:
        for number in range(parquet.num_row_groups):
            rows = parquet.read_row_group(number, use_threads=False).select(schema.names)
            if rows.num_rows:
                yield Stored(_place(rows), _as(rows, schema))


def _as(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Give rows their types again: what Parquet keeps only the values of, such as a dictionary of numbers."""
    columns: list[Any] = list(rows.columns)
    for at, field in enumerate(schema):
        if types.is_dictionary(field.type) and not types.is_dictionary(columns[at].type):
            columns[at] = columns[at].cast(field.type.value_type).dictionary_encode()
    return pa.table(columns, names=schema.names).cast(schema)


def _texts(file: Any, form: str) -> Iterator[Stored]:
    header = b""
    for piece in pieces(file, whole_csv if form == "csv" else whole_lines):
        begin = int(_ends(piece, form)[0]) if form == "csv" and not header else 0
        header, text = header or piece[:begin], piece[begin:]
        if text:
            places = FORMS[form].places(io.BytesIO(header + text))
            yield Stored(_place(pa.Table.from_batches(places)), _texts_of(text, _ends(text, form)))


def _place(rows: pa.Table) -> pa.RecordBatch:
    [batch] = rows.select(PLACE.names).cast(PLACE).combine_chunks().to_batches()
    return batch


def _ends(text: bytes, form: str) -> Int64s:
    """Return where each row ends, behind its newline: in CSV one with an even number of quotes before it."""
    data = np.frombuffer(text, np.uint8)
    newlines = data == ord("\n")
    if form == "csv":
        newlines &= np.cumsum(data == ord('"'), dtype=np.uint8) % 2 == 0  # it overflows, which an even number survives
    return np.flatnonzero(newlines) + 1


def _texts_of(text: bytes, ends: Int64s) -> pa.Table:
    """Return rows as one column, without a copy."""
    offsets: Any = np.concatenate(([0], ends))
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(text)]
    column: Any = pa.Array.from_buffers(pa.large_binary(), len(ends), buffers)
    return pa.table({"row": column})


class Inserter:
    """A writer of result objects that puts the rows it is given among stored ones, all in the order of their numbers.

    `old` are the stored rows, in that order; `numbers` tells the numbers of rows by their PLACE.
    """

    def __init__(
        self,
        draft: Draft,
        schema: pa.Schema,
        form: str,
        old: Iterator[Stored],
        numbers: Callable[[pa.RecordBatch], Int64s],
    ) -> None:
        self._draft = draft
        self._schema = schema
        self._form = form
        self._writer = FORMS[form].writer(draft, schema)
        self._old = old
        self._numbers = numbers
        self._rest: _Numbered | None = None

    def write_table(self, table: pa.Table) -> None:
        """Append rows, the stored ones that come before and between them included."""
        new = _Numbered(self._numbers(_place(table)), self._as_stored(table))
        for old in self._before(int(new.numbers[-1])):
            among = int(np.searchsorted(new.numbers, old.numbers[-1]))
            self._put(_merged(old, new.cut(0, among)))
            new = new.cut(among, len(new.numbers))
        self._put(new.rows)

    def close(self) -> None:
        """Append the stored rows that are left, and what stands behind the rows."""
        for old in self._before(NO_END):
            self._put(old.rows)
        self._writer.close()

    def _before(self, number: int) -> Iterator[_Numbered]:
        """Yield the stored rows that come before a number and were not yet taken."""
        while (part := self._rest or self._next()) is not None:
            among = int(np.searchsorted(part.numbers, number))
            self._rest = part.cut(among, len(part.numbers)) if among < len(part.numbers) else None
            if among:
                yield part.cut(0, among)
            if self._rest:
                return

    def _next(self) -> _Numbered | None:
        part = next(self._old, None)
        return _Numbered(self._numbers(part.place), part.rows) if part else None

    def _as_stored(self, table: pa.Table) -> pa.Table:
        if self._form == "parquet":
            return table
        sink = io.BytesIO()
        writer = FORMS[self._form].writer(cast("Any", sink), self._schema)
        header = sink.tell()
        writer.write_table(table)
        text = sink.getvalue()[header:]
        return _texts_of(text, _ends(text, self._form))

    def _put(self, rows: pa.Table) -> None:
        if self._form == "parquet":
            self._writer.write_table(rows)
        else:
            texts: list[Any] = rows.column("row").to_pylist()
            self._draft.write(b"".join(texts))


class _Numbered(NamedTuple):
    """Rows with their numbers in the source, in order."""

    numbers: Int64s
    rows: pa.Table

    def cut(self, start: int, stop: int) -> _Numbered:
        return _Numbered(self.numbers[start:stop], self.rows.slice(start, stop - start))


def _merged(old: _Numbered, new: _Numbered) -> pa.Table:
    """Put new rows among old ones: in slices, since not every type can be taken row by row."""
    places = np.searchsorted(old.numbers, new.numbers)
    tables, position = [], 0
    for at in np.unique(places).tolist():
        first, last = np.searchsorted(places, [at, at + 1]).tolist()
        tables += [old.rows.slice(position, at - position), new.rows.slice(first, last - first)]
        position = at
    return pa.concat_tables([*tables, old.rows.slice(position)]).combine_chunks()
