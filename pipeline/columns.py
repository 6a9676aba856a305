"""Which columns of the input a job reads, sends and keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from pipeline.encode import RowEncoder
from pipeline.errors import JobError
from pipeline.read import types_of

if TYPE_CHECKING:
    from schemas.job import Job


class Columns(NamedTuple):
    """The input's columns as this job uses them: all that are read, those sent, those kept; types as cast."""

    schema: pa.Schema
    send: tuple[str, ...]
    keep: tuple[str, ...]

    @property
    def needed(self) -> tuple[str, ...]:
        """Columns to read, each once."""
        return tuple(dict.fromkeys((*self.send, *self.keep)))

    @property
    def kept(self) -> pa.Schema:
        """The schema of the kept columns."""
        return pa.schema([pa.field(name, self.schema.field(name).type) for name in self.keep])


def columns_of(job: Job, schema: pa.Schema, where: str) -> Columns:
    """Choose the columns of an input. Raises JobError for one that the input does not have, or has twice."""
    for key, names in {"send": job.input.send or (), "keep": job.input.keep, "columns": job.input.columns}.items():
        for name in names:
            if name not in schema.names:
                raise JobError(f"input.{key}: {where} has no column {name!r}; it has: {', '.join(schema.names)}")
    send = job.input.send or tuple(name for name in schema.names if name not in job.input.keep)
    for name in (*send, *job.input.keep, *job.input.columns):
        if schema.names.count(name) > 1:
            raise JobError(f"input.path: {where} has more than one column {name!r}; give each a name of its own")
    for name, kind in types_of(job.input.columns).items():
        schema = schema.set(schema.get_field_index(name), pa.field(name, kind))
    columns = Columns(schema, send, job.input.keep)
    encoder_of(job, columns)
    RowEncoder(columns.kept, columns.keep, rename={}, key="input.keep")
    return columns


def encoder_of(job: Job, columns: Columns) -> RowEncoder:
    """Return what encodes this job's rows. Raises JobError for a type that has no JSON form."""
    return RowEncoder(columns.schema, columns.send, rename=job.input.rename, reject_nan=job.input.nan == "reject")
