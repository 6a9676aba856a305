"""What is written of outcomes: result tables, and dead letters. Values in, values out."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import Raw

from pipeline.gate import Unfit
from pipeline.ids import repeated
from pipeline.jsonrows import JsonRows
from schemas.tables import Attempt, DeadLetter, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from pipeline.converse import Dead, Scored
    from pipeline.encode import Int64s, RowEncoder
    from pipeline.pack import Chunk
    from schemas.plan import Source

_OK: Final = 200


class Answers(NamedTuple):
    """A request's answers as the column `prediction` has them; `faults` says by position why some do not fit."""

    values: pa.Array[Any]
    faults: Mapping[int, str]


def answers_of(scored: Scored, fields: JsonRows | None) -> Answers:
    """Read a request's answers as the declared fields; as JSON texts, where none are declared."""
    if fields is None:
        return Answers(scored.answers, {})
    texts: Any = scored.answers.cast(pa.binary()).to_pylist()
    batch, faults = fields.decode(texts)
    return Answers(batch.to_struct_array(), faults)


class Declared:
    """Sees whether answers are what `output.prediction` declares; `fields` reads them so."""

    def __init__(self, prediction: Mapping[str, pa.DataType], fields: JsonRows) -> None:
        self._prediction = prediction
        self._fields = fields

    def unfit(self, answers: pa.Array[Any]) -> Unfit | None:
        """Return why the first answer does not fit, where not one does."""
        texts: Any = answers.cast(pa.binary()).to_pylist()
        _, faults = self._fields.decode(texts)
        if len(faults) < len(texts):
            return None
        key = ".".join(["output.prediction", *self._wrong(texts[0])])
        return Unfit(f"the answers to {{}} do not fit {key}", faults[0], f"{key} (bulkscore probe shows what fits)")

    def _wrong(self, text: bytes) -> list[str]:
        """Return the field that an answer does not fit; none where it is no object, or has none that are promised."""
        declared = [JsonRows({name: kind}, loose=False) for name, kind in self._prediction.items()]
        wrong = [name for name, one in zip(self._prediction, declared, strict=True) if one.decode([text])[1]]
        return wrong[:1] if not JsonRows({}, loose=False).decode([text])[1] else []


class Part(NamedTuple):
    """What is written of successive rows of a request that succeeded, without the request's body.

    `first` is the first row's position in the request; `uris` are the rows' files, where rows are files.
    """

    first: int
    rows: Int64s
    row_uuids: pa.Array[Any]
    keep: pa.RecordBatch
    answers: pa.Array[Any]
    uris: pa.Array[Any] | None
    request_uuid: str
    attempts: int
    latency_ms: float
    at: datetime


def parts_of(scored: Scored, answers: Answers) -> Iterator[Part]:
    """Take what is written of a request: its rows whose answers fit, as many as follow each other at a time."""
    chunk, latency = scored.chunk, round(scored.seconds * 1000, 3)
    for before, behind in pairwise([-1, *sorted(answers.faults), len(answers.values)]):
        at, count = before + 1, behind - before - 1
        start, stop = scored.first + at, scored.first + behind
        if count:
            yield Part(
                start,
                chunk.source_rows[start:stop],
                chunk.row_uuids.slice(start, count),
                chunk.keep.slice(start, count),
                answers.values.slice(at, count),
                None if chunk.uris is None else chunk.uris.slice(start, count),
                chunk.uuid,
                scored.attempts,
                latency,
                scored.at,
            )


def result_table(parts: Sequence[Part], source: Source, schema: pa.Schema) -> pa.Table:
    """Return the result rows of several requests over one source, in order."""
    counts = [len(part.rows) for part in parts]
    which = np.repeat(np.arange(len(parts)), counts)  # the part of each row
    moments = pa.array([part.at for part in parts], schema.field("scored_at").type)
    columns: dict[str, Any] = {
        name: pa.chunked_array([part.keep.column(name) for part in parts]) for name in parts[0].keep.schema.names
    }
    columns |= {
        "prediction": pa.chunked_array([part.answers for part in parts]),
        "source": pa.repeat(source.uri, len(which)),
        "source_row": np.concatenate([part.rows for part in parts]),
        "row_uuid": pa.chunked_array([part.row_uuids for part in parts]),
        "request_uuid": repeated([part.request_uuid for part in parts], counts),
        "request_row": np.concatenate([np.arange(part.first, part.first + len(part.rows)) for part in parts]),
        "attempts": np.array([part.attempts for part in parts], np.int32)[which],
        "latency_ms": np.array([part.latency_ms for part in parts])[which],
        "scored_at": pa.array(moments.to_numpy()[which], moments.type),
    }
    if source.listing:
        columns |= {
            "source": pa.chunked_array([part.uris for part in parts if part.uris is not None]),
            "source_row": np.zeros(len(which), np.int64),
        }
    return pa.Table.from_pydict({name: columns[name] for name in schema.names}, schema=schema)


class Letters:
    """Writes dead letters about the rows of one source.

    `keep` encodes the kept columns, `shown` makes what a reader sees of a row that was sent.
    """

    def __init__(self, source: Source, keep: RowEncoder, shown: Callable[[bytes], bytes]) -> None:
        self._source = source
        self._keep = keep
        self._shown = shown

    def refused(self, chunk: Chunk) -> Iterator[DeadLetter]:
        """Yield those of a chunk's rows that were not sent at all."""
        for row in chunk.refused:
            yield DeadLetter(
                **self._place(row.source_row, row.uri),
                row_uuid=row.row_uuid,
                request_uuid=None,
                kind=row.kind,
                status=None,
                code=None,
                message=row.message,
                history=(),
                row=_row(row.line, row.uri),
                keep=self._kept(row.keep),
            )

    def failed(self, dead: Dead) -> Iterator[DeadLetter]:
        """Yield those of the rows of a request that failed for good."""
        fault, rows = dead.fault, range(len(dead.chunk))
        return self._sent(dead.chunk, rows, dead.kind, fault.status, fault.code, fault.message, dead.history)

    def misfit(self, scored: Scored, faults: Mapping[int, str]) -> Iterator[DeadLetter]:
        """Yield those of the rows whose answers are not what the job declares."""
        for position, fault in sorted(faults.items()):
            answer = scored.answers[position].as_py()
            why, message = (scored.hide(one.encode()).decode() for one in (fault, f"{fault}; the answer is {answer}"))
            attempt = Attempt(scored.at.astimezone(UTC).isoformat(), "mismatch", _OK, message=why)
            yield from self._sent(
                scored.chunk, [scored.first + position], "mismatch", _OK, None, message, (*scored.history, attempt)
            )

    def _sent(
        self,
        chunk: Chunk,
        positions: Iterable[int],
        kind: Kind,
        status: int | None,
        code: str | None,
        message: str,
        history: tuple[Attempt, ...],
    ) -> Iterator[DeadLetter]:
        for position in positions:
            uri = None if chunk.uris is None else chunk.uris[position].as_py()
            yield DeadLetter(
                **self._place(int(chunk.source_rows[position]), uri),
                row_uuid=chunk.row_uuids[position].as_py(),
                request_uuid=chunk.uuid,
                kind=kind,
                status=status,
                code=code,
                message=message,
                history=history,
                row=_row(self._shown(chunk.line(position)) if uri is None else b"", uri),
                keep=self._kept(chunk.keep.slice(position, 1)),
            )

    def _place(self, row: int, uri: str | None) -> dict[str, Any]:
        """Return a row's source and number; a row that is a file of its own is the first of that file."""
        own = self._source.listing
        return {"source": uri if own else self._source.uri, "source_row": 0 if own else row}

    def _kept(self, keep: pa.RecordBatch) -> Raw:
        return Raw(self._keep.encode(keep).lines.rstrip(b"\n"))


def _row(line: bytes, uri: str | None) -> Raw:
    """Return what a dead letter shows of a row: for a file its URI, never its bytes."""
    return Raw(line if uri is None else msgspec.json.encode(uri))
