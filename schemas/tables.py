"""The result and dead-letter tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import pyarrow as pa
from msgspec import Raw, Struct

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Kind = Literal["rejected", "too_large", "unreadable", "mismatch", "timeout", "exhausted"]
"""Why a row has no answer."""

RESULT_FIELDS: Final[tuple[pa.Field[Any], ...]] = (
    pa.field("prediction", pa.string()),
    pa.field("source", pa.string()),
    pa.field("source_row", pa.int64()),
    pa.field("row_uuid", pa.string()),
    pa.field("request_uuid", pa.string()),
    pa.field("request_row", pa.int32()),
    pa.field("attempts", pa.int32()),
    pa.field("latency_ms", pa.float64()),
    pa.field("scored_at", pa.timestamp("us", tz="UTC")),
)


def result_schema(kept: Iterable[pa.Field[Any]], prediction: Mapping[str, pa.DataType] = {}) -> pa.Schema:
    """Columns of every result object: the kept ones first, as typed in the input, then ours.

    `prediction` is JSON text, or a struct of the declared fields where there are some.
    """
    schema = pa.schema([*kept, *RESULT_FIELDS])
    if not prediction:
        return schema
    answer = pa.field("prediction", pa.struct(list(prediction.items())))
    return schema.set(schema.get_field_index("prediction"), answer)


class Attempt(Struct, frozen=True, omit_defaults=True):
    """One attempt of a request: what was answered by whom, and what was done about it.

    `received` says whether the service may have processed the request.
    """

    time: str
    action: str
    status: int | None = None
    code: str | None = None
    request_id: str | None = None
    server: str | None = None
    message: str | None = None
    received: bool = True


class DeadLetter(Struct, frozen=True):
    """A row without an answer, with everything needed to see why and to send it again."""

    source: str
    source_row: int
    row_uuid: str
    request_uuid: str | None
    kind: Kind
    status: int | None
    code: str | None
    message: str
    history: tuple[Attempt, ...]
    row: Raw
    keep: Raw
