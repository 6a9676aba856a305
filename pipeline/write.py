"""Outcomes -> objects -> receipt, in that order. A range of rows is done when its receipt is there, and only then."""

from __future__ import annotations

import logging
import uuid
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pyarrow as pa

from pipeline.converse import Outcome, Scored
from pipeline.encode import RowEncoder
from pipeline.errors import JobError
from pipeline.forms import FORMS
from pipeline.jsonrows import JsonRows
from pipeline.jsontypes import NotFromJson
from pipeline.outcomes import Letters, Part, answers_of, parts_of, result_table
from schemas.receipt import Receipt, StoredObject, object_name
from schemas.tables import DeadLetter, result_schema

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from datetime import datetime

    from pipeline.forms import Writer
    from pipeline.pack import Chunk
    from pipeline.plan import Range
    from pipeline.storage import Draft, Store
    from schemas.plan import Source, Work

OBJECT_SECONDS: Final = 60.0
OBJECT_BYTES: Final = 128_000_000
_GROUP_ROWS: Final = 64_000
_GROUP_BYTES: Final = 8_000_000
_PARTS: Final = 256
"""Requests whose results wait as they came: each is a dozen small objects, of which a minute must not be full."""

_encoder: Final = msgspec.json.Encoder()
_log: Final = logging.getLogger(__name__)


class RangeWriter:
    """Writes the outcomes of successive rows of one source into one object after another.

    An object is closed, and its receipt written, about every OBJECT_SECONDS or OBJECT_BYTES and at the end; what is
    not closed when the process dies is scored again. `form` is that of the results, `prediction` the fields that are
    declared; an answer that does not fit them, or has none of those `promised`, makes its row a dead letter; a field
    that no answer has is told once a run. `shown` makes what dead letters show of a row that was sent. `scored` and
    `dead` count the rows added so far. Not thread-safe: one split has one writer.
    """

    def __init__(
        self,
        store: Store,
        work: Work,
        rows: Range,
        kept: pa.Schema,
        *,
        run: str,
        clock: Callable[[], float],
        now: Callable[[], datetime],
        form: str = "parquet",
        prediction: Mapping[str, pa.DataType] = {},
        promised: Collection[str] = (),
        shown: Callable[[bytes], bytes] = bytes,
    ) -> None:
        self.scored = self.dead = 0
        self._store = store
        self._work = work
        self._form = form
        self._schema = result_schema(kept, prediction)
        self._fields = fields_of(prediction, promised) if prediction else None
        self._missing = set(prediction)
        keep = RowEncoder(kept, kept.names, rename={}, key="input.keep")
        self._letters = Letters(work.source, keep, shown)
        self._run = run
        self._clock = clock
        self._now = now
        self._from = rows.start
        self._next = rows.start
        self._object: _Object | None = None

    def add(self, chunk: Chunk, outcomes: Sequence[Outcome]) -> Receipt | None:
        """Append a chunk's outcomes; chunks come in row order. Returns a receipt when that closed an object."""
        self._object = self._object or self._open()
        before = self._object.scored, self._object.dead
        self._object.bury(self._letters.refused(chunk))
        for outcome in outcomes:
            self._add(self._object, outcome)
        self.scored += self._object.scored - before[0]
        self.dead += self._object.dead - before[1]
        self._next = chunk.stop
        return self.close() if self._is_full(self._object) else None

    def _is_full(self, one: _Object) -> bool:
        """Whether an object is closed as soon as its last row is whole."""
        return self._clock() - one.opened > OBJECT_SECONDS or one.size > OBJECT_BYTES

    def _add(self, to: _Object, outcome: Outcome) -> None:
        attempts = outcome.attempts if isinstance(outcome, Scored) else len(outcome.history)
        counted = isinstance(outcome, Scored) and outcome.further
        if not counted:
            to.requests += attempts + outcome.before.requests
            to.sent += attempts * len(outcome.chunk.body) + outcome.before.size
        if isinstance(outcome, Scored):
            answers = answers_of(outcome, self._fields)
            values: Any = answers.values
            self._missing = {name for name in self._missing if values.field(name).null_count == len(values)}
            for part in parts_of(outcome, answers):
                to.score(part)
            to.bury(self._letters.misfit(outcome, answers.faults))
            to.received += 0 if counted else outcome.received
        else:
            to.bury(self._letters.failed(outcome))

    def close(self, *, end: bool = False) -> Receipt | None:
        """Close the object that is open, if one is, and write its receipt.

        `end` says that the source has no rows behind those that were added: of a source whose rows are not known
        nobody else can tell. That is written down, if need be by a receipt of no rows.
        """
        rows = self._work.source.rows
        end = end if rows is None else self._next == rows
        if self._object is None and (rows is not None or not end):
            return None
        written = self._object or self._open()
        if written.scored:
            for name in self._missing:
                _tell_missing(self._run, name)
        receipt = self._receipt(written, end=end)
        self._store.write(f"receipts/{receipt.name}.json", _encoder.encode(receipt))
        self._from, self._object = self._next, None
        return receipt

    def _receipt(self, of: _Object, *, end: bool) -> Receipt:
        """Make the objects visible, and say what they hold."""
        attempt = uuid.uuid4().hex[:12]
        work, generation = self._work, self._work.generation
        results, errors = of.keep(object_name(work.source.number, self._from, self._next, generation, attempt))
        return Receipt(
            source=work.source.number,
            start=self._from,
            stop=self._next,
            generation=generation,
            attempt=attempt,
            version=work.source.version,
            scored=of.scored,
            dead=of.dead,
            run=self._run,
            results=results,
            errors=errors,
            end=end,
            requests=of.requests,
            bytes_sent=of.sent,
            bytes_received=of.received,
            started_at=of.started_at,
            finished_at=self._now().isoformat(),
            seconds=round(self._clock() - of.opened, 3),
        )

    def skip(self, row: int) -> Receipt | None:
        """Close what is open and go on at `row`: the rows between stay undone."""
        receipt = self.close()
        self._from = self._next = row
        return receipt

    def abandon(self) -> None:
        """Give up the object that is open; its rows stay undone."""
        if self._object:
            self._object.abandon()
            self._object = None

    def _open(self) -> _Object:
        started_at = self._now().isoformat()
        return _Object(
            self._store, self._work.source, self._schema, self._form, self._writer, self._clock(), started_at
        )

    def _writer(self, draft: Draft) -> Writer:
        """Open what writes the results."""
        return FORMS[self._form].writer(draft, self._schema)


@cache
def _tell_missing(run: str, name: str) -> None:  # noqa: ARG001 - once for each run
    """Say that answers lack a declared field: a slip in its name would else go unseen, for absent is null."""
    _log.warning("no answer so far has %s, so output.prediction.%s is null; see that the name is right", name, name)


def _has_views(kind: pa.DataType) -> bool:
    """Whether a type is a view, or holds one."""
    view = str(kind).partition("<")[0].endswith("_view")
    return view or any(_has_views(kind.field(index).type) for index in range(kind.num_fields))


def fields_of(prediction: Mapping[str, pa.DataType], promised: Collection[str] = ()) -> JsonRows:
    """Return what reads answers as the declared fields. Raises JobError for a type that answers are not read as."""
    for name, kind in prediction.items():
        if _has_views(kind):  # Parquet's writer cannot take slices of them
            raise JobError(f"output.prediction.{name}: {kind} is not written; declare the type without _view")
    try:
        return JsonRows(prediction, loose=False, promised=promised)
    except NotFromJson as what:
        raise JobError(f"output.prediction: {what}; declare another type, or leave the field out") from None


class _Object:
    """The results and dead letters of one range while they are written."""

    def __init__(
        self,
        store: Store,
        source: Source,
        schema: pa.Schema,
        form: str,
        writer: Callable[[Draft], Writer],
        opened: float,
        started_at: str,
    ) -> None:
        self._store = store
        self._source = source
        self._schema = schema
        self._suffixes = {"results": form, "errors": "jsonl"}
        self._open_writer = writer
        self.opened = opened
        self.started_at = started_at
        self.scored = self.dead = self.requests = self.sent = self.received = 0
        self._waiting: list[Part] = []
        self._tables: list[pa.Table] = []
        self._waiting_rows = self._waiting_bytes = 0
        self._drafts: dict[str, Draft] = {}
        self._writer: Writer | None = None

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return sum(draft.size for draft in self._drafts.values())

    def score(self, part: Part) -> None:
        self._waiting.append(part)
        self.scored += len(part.rows)
        self._waiting_rows += len(part.rows)
        self._waiting_bytes += part.answers.nbytes + part.keep.nbytes + part.row_uuids.nbytes
        if self._waiting_rows >= _GROUP_ROWS or self._waiting_bytes >= _GROUP_BYTES:
            self._flush()
        elif len(self._waiting) >= _PARTS:
            self._join()

    def bury(self, letters: Iterable[DeadLetter]) -> None:
        for letter in letters:
            self.copy(_encoder.encode(letter) + b"\n")

    def copy(self, letter: bytes) -> None:
        self._draft("errors").write(letter)
        self.dead += 1

    def begin(self) -> Writer:
        """Open the results, unless they are."""
        if self._writer is None:
            self._writer = self._open_writer(self._draft("results"))
        return self._writer

    def keep(self, name: str) -> tuple[StoredObject | None, StoredObject | None]:
        self._flush()
        if self._writer:
            self._writer.close()
        kept = {
            folder: draft.keep(f"{folder}/{name}.{self._suffixes[folder]}") for folder, draft in self._drafts.items()
        }
        self.abandon()
        return kept.get("results"), kept.get("errors")

    def abandon(self) -> None:
        for draft in self._drafts.values():
            draft.close()
        self._drafts.clear()

    def _draft(self, folder: str) -> Draft:
        if folder not in self._drafts:
            self._drafts[folder] = self._store.create(folder)
        return self._drafts[folder]

    def _join(self) -> None:
        """Make one table of the results that wait."""
        self._tables.append(result_table(self._waiting, self._source, self._schema).combine_chunks())
        self._waiting.clear()

    def _flush(self) -> None:
        if self._waiting:
            self._tables.append(result_table(self._waiting, self._source, self._schema))
            self._waiting.clear()
        if self._tables:
            self.begin().write_table(pa.concat_tables(self._tables))
            self._tables.clear()
        self._waiting_rows = self._waiting_bytes = 0
