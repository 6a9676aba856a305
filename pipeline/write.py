"""Outcomes -> objects -> receipt, in that order. A range of rows is done when its receipt is there, and only then."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Raw

from pipeline.converse import Dead, Outcome, Scored
from pipeline.encode import RowEncoder
from pipeline.ids import repeated
from schemas.receipt import Receipt, StoredObject, object_name
from schemas.tables import DeadLetter, result_schema

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    from pipeline.encode import Int64s
    from pipeline.pack import Chunk
    from pipeline.plan import Range
    from pipeline.storage import Draft, Store
    from schemas.plan import Work

OBJECT_SECONDS: Final = 60.0
OBJECT_BYTES: Final = 128_000_000
_GROUP_ROWS: Final = 64_000
_GROUP_BYTES: Final = 8_000_000
_REPEATED: Final = ["source", "request_uuid", "attempts", "latency_ms", "scored_at"]
"""Columns with one value a request: a dictionary makes them smaller. For the others it costs more than it saves."""
_SUFFIXES: Final = {"results": "parquet", "errors": "jsonl"}

_encoder: Final = msgspec.json.Encoder()


class RangeWriter:
    """Writes the outcomes of successive rows of one source into one object after another.

    An object is closed, and its receipt written, about every OBJECT_SECONDS or OBJECT_BYTES and at the end; what is
    not closed when the process dies is scored again. Not thread-safe: one split has one writer.
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
    ) -> None:
        self._store = store
        self._work = work
        self._schema = result_schema(kept)
        self._keep = RowEncoder(kept, kept.names, rename={}, key="input.keep")
        self._run = run
        self._clock = clock
        self._now = now
        self._from = rows.start
        self._next = rows.start
        self._object: _Object | None = None

    def add(self, chunk: Chunk, outcomes: Sequence[Outcome]) -> Receipt | None:
        """Append a chunk's outcomes; chunks come in row order. Returns a receipt when that closed an object."""
        if self._object is None:
            self._object = _Object(
                self._store, self._work.source.uri, self._schema, self._clock(), self._now().isoformat()
            )
        for outcome in outcomes:
            if isinstance(outcome, Scored):
                self._object.score(part_of(outcome))
                self._object.received += outcome.received
            attempts = outcome.attempts if isinstance(outcome, Scored) else len(outcome.history)
            self._object.requests += attempts + outcome.before.requests
            self._object.sent += attempts * len(outcome.chunk.body) + outcome.before.size
        self._object.bury(dead_letters(chunk, outcomes, self._work.source.uri, self._keep))
        self._next = chunk.stop
        old = self._clock() - self._object.opened > OBJECT_SECONDS
        return self.close() if old or self._object.size > OBJECT_BYTES else None

    def close(self) -> Receipt | None:
        """Close the object that is open, if one is, and write its receipt."""
        if self._object is None:
            return None
        attempt = uuid.uuid4().hex[:12]
        work, generation = self._work, self._work.generation
        name = object_name(work.source.number, self._from, self._next, generation, attempt)
        results, errors = self._object.keep(name)
        receipt = Receipt(
            source=work.source.number,
            start=self._from,
            stop=self._next,
            generation=generation,
            attempt=attempt,
            version=work.source.version,
            scored=self._object.scored,
            dead=self._object.dead,
            run=self._run,
            results=results,
            errors=errors,
            end=self._next == work.source.rows,
            requests=self._object.requests,
            bytes_sent=self._object.sent,
            bytes_received=self._object.received,
            started_at=self._object.started_at,
            finished_at=self._now().isoformat(),
            seconds=round(self._clock() - self._object.opened, 3),
        )
        self._store.write(f"receipts/{name}.json", _encoder.encode(receipt))
        self._from, self._object = self._next, None
        return receipt

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


class _Object:
    """The results and dead letters of one range while they are written."""

    def __init__(self, store: Store, source: str, schema: pa.Schema, opened: float, started_at: str) -> None:
        self._store = store
        self._source = source
        self._schema = schema
        self.opened = opened
        self.started_at = started_at
        self.scored = self.dead = self.requests = self.sent = self.received = 0
        self._waiting: list[Part] = []
        self._waiting_rows = self._waiting_bytes = 0
        self._drafts: dict[str, Draft] = {}
        self._writer: pq.ParquetWriter | None = None

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

    def bury(self, letters: Iterator[DeadLetter]) -> None:
        for letter in letters:
            self._draft("errors").write(_encoder.encode(letter) + b"\n")
            self.dead += 1

    def keep(self, name: str) -> tuple[StoredObject | None, StoredObject | None]:
        self._flush()
        if self._writer:
            self._writer.close()
        kept = {folder: draft.keep(f"{folder}/{name}.{_SUFFIXES[folder]}") for folder, draft in self._drafts.items()}
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

    def _flush(self) -> None:
        if not self._waiting:
            return
        if self._writer is None:
            draft = self._draft("results")
            self._writer = pq.ParquetWriter(
                cast("Any", draft), self._schema, compression="zstd", use_dictionary=cast("Any", _REPEATED)
            )
        self._writer.write_table(result_table(self._waiting, self._source, self._schema))
        self._waiting.clear()
        self._waiting_rows = self._waiting_bytes = 0


class Part(NamedTuple):
    """What is written of one request that succeeded; unlike `Scored` it does not hold the request's body."""

    rows: Int64s
    row_uuids: pa.Array[Any]
    keep: pa.RecordBatch
    answers: pa.Array[Any]
    request_uuid: str
    attempts: int
    latency_ms: float
    at: datetime


def part_of(scored: Scored) -> Part:
    """Take what is written of a request."""
    chunk, latency = scored.chunk, round(scored.seconds * 1000, 3)
    return Part(
        chunk.source_rows, chunk.row_uuids, chunk.keep, scored.answers, chunk.uuid, scored.attempts, latency, scored.at
    )


def result_table(parts: Sequence[Part], source: str, schema: pa.Schema) -> pa.Table:
    """Return the result rows of several requests over one source, in order."""
    counts = [len(part.rows) for part in parts]
    which = np.repeat(np.arange(len(parts)), counts)  # the request of each row
    moments = pa.array([part.at for part in parts], schema.field("scored_at").type)
    columns: dict[str, Any] = {
        name: pa.chunked_array([part.keep.column(name) for part in parts]) for name in parts[0].keep.schema.names
    }
    columns |= {
        "prediction": pa.chunked_array([part.answers for part in parts]),
        "source": pa.repeat(source, len(which)),
        "source_row": np.concatenate([part.rows for part in parts]),
        "row_uuid": pa.chunked_array([part.row_uuids for part in parts]),
        "request_uuid": repeated([part.request_uuid for part in parts], counts),
        "request_row": np.concatenate([np.arange(count, dtype=np.int32) for count in counts]),
        "attempts": np.array([part.attempts for part in parts], np.int32)[which],
        "latency_ms": np.array([part.latency_ms for part in parts])[which],
        "scored_at": pa.array(moments.to_numpy()[which], moments.type),
    }
    return pa.Table.from_pydict({name: columns[name] for name in schema.names}, schema=schema)


def dead_letters(chunk: Chunk, outcomes: Sequence[Outcome], source: str, keep: RowEncoder) -> Iterator[DeadLetter]:
    """Yield the dead letters of a chunk: rows refused before sending, then rows of requests that failed for good."""
    for refusal in chunk.refused:
        yield DeadLetter(
            source=source,
            source_row=refusal.source_row,
            row_uuid=refusal.row_uuid,
            request_uuid=None,
            kind=refusal.kind,
            status=None,
            code=None,
            message=refusal.message,
            history=(),
            row=Raw(refusal.line),
            keep=_kept(keep, refusal.keep, 0),
        )
    for dead in outcomes:
        if isinstance(dead, Dead):
            for position, source_row in enumerate(dead.chunk.source_rows.tolist()):
                yield DeadLetter(
                    source=source,
                    source_row=source_row,
                    row_uuid=dead.chunk.row_uuids[position].as_py(),
                    request_uuid=dead.chunk.uuid,
                    kind=dead.kind,
                    status=dead.fault.status,
                    code=dead.fault.code,
                    message=dead.fault.message,
                    history=dead.history,
                    row=Raw(dead.chunk.line(position)),
                    keep=_kept(keep, dead.chunk.keep, position),
                )


def _kept(encoder: RowEncoder, keep: pa.RecordBatch, position: int) -> Raw:
    return Raw(encoder.encode(keep.slice(position, 1)).lines.rstrip(b"\n"))
