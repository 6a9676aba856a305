"""Which row of the plan an object speaks of, and what that row must be called: the oracle of `verify`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.ids import file_names, row_namer
from pipeline.storage import storing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.encode import Int64s
    from pipeline.storage import Store
    from schemas.plan import Source

Bools = npt.NDArray[np.bool_]

_ROWS: Final = 16_384
_READ_BUFFER: Final = 1 << 20
_NEAR: Final = 16
"""Rows no further apart than that get their row_uuids in one go, together with the rows between them."""


class Rows(Protocol):
    """Rows of a source. `place` has the columns source, source_row and row_uuid, as `pipeline.forms` reads them."""

    def numbers(self, place: pa.RecordBatch) -> tuple[Int64s, Bools]:
        """Return the number of each row, and whether it is of this source at all."""

    def uuids(self, numbers: Int64s) -> pa.Array[Any]:
        """Return the row_uuids of rows, in any order."""

    def shown(self, numbers: Int64s) -> list[str]:
        """Return rows as a line for the user names them."""


Between = Callable[[int, int], Rows]
"""`(start, stop) -> rows [start, stop)` of a source; ranges are asked for in order."""


@contextmanager
def rows_of(store: Store, job: str, source: Source) -> Iterator[Between]:
    """Open the rows of a source of an output; `job` is the name that row_uuids are made of."""
    if not source.listing:
        numbered = _Numbered(job, source)
        yield lambda *_: numbered
        return
    with storing("read", f"{store.uri}/{source.uri}"), store.open(source.uri) as file:
        table = pq.ParquetFile(file, pre_buffer=False, buffer_size=_READ_BUFFER)
        yield _Listing(job, table).between


class _Numbered:
    """The rows of a file, which has numbered them."""

    def __init__(self, job: str, source: Source) -> None:
        self._source = source
        self._names = row_namer(job, source.path)

    def numbers(self, place: pa.RecordBatch) -> tuple[Int64s, Bools]:
        sources: Any = place.column("source")
        uri, path = self._source.uri, self._source.path
        strange = [one for one in sources.unique().to_pylist() if one != uri and not _lies_at(one, path)]
        own = ~true(pc.is_in(sources, value_set=pa.array(strange, pa.string())))
        return _filled(place.column("source_row")), own

    def uuids(self, numbers: Int64s) -> pa.Array[Any]:
        once: Any = np.unique(numbers)
        runs = np.split(once, np.flatnonzero(np.diff(once) > _NEAR) + 1) if len(once) else []
        names: list[Any] = [self._names(int(run[0]), int(run[-1]) + 1).take(pa.array(run - run[0])) for run in runs]
        named: pa.Array[Any] = pa.concat_arrays([_NONE, *names]).take(pa.array(np.searchsorted(once, numbers)))
        return named

    def shown(self, numbers: Int64s) -> list[str]:
        return [str(number) for number in numbers.tolist()]


class _Listing:
    """Rows that are files, as the plan lists them; read forwards, no further than is asked for."""

    def __init__(self, job: str, table: pq.ParquetFile) -> None:
        self._job = job
        self._batches = table.iter_batches(_ROWS, columns=["uri", "path"], use_threads=False)
        self._first = 0
        self._batch = next(self._batches, None)

    def between(self, start: int, stop: int) -> Rows:
        parts = []
        while self._batch is not None:
            low, high = max(start - self._first, 0), min(stop - self._first, self._batch.num_rows)
            if low < high:
                parts.append(self._batch.slice(low, high - low))
            if stop <= self._first + self._batch.num_rows:
                break
            self._first += self._batch.num_rows
            self._batch = next(self._batches, None)
        return _Files(self._job, start, pa.Table.from_batches(parts, _LISTED).combine_chunks())


class _Files:
    """Some rows that are files; row `start` is the first of them."""

    def __init__(self, job: str, start: int, listed: pa.Table) -> None:
        self._job = job
        self._start = start
        self._uris: Any = listed.column("uri")
        self._paths: Any = listed.column("path")

    def numbers(self, place: pa.RecordBatch) -> tuple[Int64s, Bools]:
        found: Any = pc.index_in(place.column("source"), value_set=self._uris)
        if found.null_count:
            found = pc.coalesce(found, self._moved(place))
        own = true(found.is_valid()) & (_filled(place.column("source_row")) == 0)
        return _filled(found.cast(pa.int64())) + self._start, own

    def _moved(self, place: pa.RecordBatch) -> Any:
        """Find rows that were scored before their files moved: by their row_uuids, which do not change."""
        named: Any = pc.index_in(place.column("row_uuid"), value_set=self._names)
        paths = self._paths.take(named).to_pylist()
        same = [_lies_at(uri, path) for uri, path in zip(place.column("source").to_pylist(), paths, strict=True)]
        return pc.if_else(pa.array(same), named, pa.scalar(None, named.type))

    @cached_property
    def _names(self) -> pa.Array[Any]:
        return file_names(self._job, self._paths)

    def uuids(self, numbers: Int64s) -> pa.Array[Any]:
        return file_names(self._job, self._paths.take(pa.array(numbers - self._start)))

    def shown(self, numbers: Int64s) -> list[str]:
        listed = self._start + len(self._uris)  # a receipt may claim more
        return [self._uris[one - self._start].as_py() if one < listed else str(one) for one in numbers.tolist()]


def _lies_at(uri: str | None, path: str | None) -> bool:
    """Whether a file is at this path below some folder: an input that moved as a whole is the same input."""
    below = f"/{path}"
    return uri is not None and path is not None and (uri.endswith(below) or unquote(uri).endswith(below))


def true(mask: Any) -> Bools:
    """Return where an Arrow column of booleans is true; null is not."""
    found: Bools = pc.fill_null(mask, False).to_numpy(zero_copy_only=False)  # noqa: FBT003
    return found


def _filled(numbers: Any) -> Int64s:
    """Return numbers, -1 where there is none."""
    filled: Int64s = pc.fill_null(numbers, -1).to_numpy()
    return filled


_NONE: Final = pa.array([], pa.string())
_LISTED: Final = pa.schema([pa.field("uri", pa.string()), pa.field("path", pa.string())])
