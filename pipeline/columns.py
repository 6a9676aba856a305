"""Which columns of the input a job reads, sends and keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from pipeline.arrowtypes import types_of
from pipeline.encode import RowEncoder
from pipeline.errors import JobError
from pipeline.globs import folders
from pipeline.pieces import Wanted
from pipeline.protocols import adapter_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.adapter import Adapter
    from pipeline.encode import Encoder
    from schemas.job import Job

TYPELESS = frozenset({"csv", "jsonl"})
"""Formats whose files do not say what types their columns have."""


class Columns(NamedTuple):
    """The input's columns as this job uses them: all that there are, those sent, those kept; types as cast."""

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


def check_columns(job: Job, schema: pa.Schema, uri: str) -> None:
    """See that an input file has the columns that the job names, each once. Raises JobError where it has not."""
    said = folders(uri)
    names = [*schema.names, *(name for name in said if name not in schema.names)]
    adapter = adapter_of(job.service)
    for key, wanted in {
        **adapter.named(job.input),
        "input.keep": job.input.keep,
        "input.columns": job.input.columns,
    }.items():
        for name in wanted:
            if name not in names:
                raise JobError(f"{key}: {uri} has no column {name!r}; it has: {', '.join(names)}")
            if name in said and name in schema.names:
                raise JobError(f"{key}: {name!r} is a column of {uri} and one of its folders; rename one of them")
    for name in (*adapter.columns(job.input, schema.names), *job.input.keep, *job.input.columns):
        if schema.names.count(name) > 1:
            raise JobError(f"input.path: {uri} has more than one column {name!r}; give each a name of its own")


def columns_of(job: Job, schema: pa.Schema) -> Columns:
    """Choose the columns of the input; those that the files do not have are their folders', and text.

    Raises JobError for a type that has no JSON form, and for two names that collide.
    """
    send = adapter_of(job.service).columns(job.input, schema.names)
    for name in dict.fromkeys((*send, *job.input.keep, *job.input.columns)):
        if name not in schema.names:
            schema = schema.append(pa.field(name, pa.string()))
    for name, kind in types_of(job.input.columns).items():
        schema = schema.set(schema.get_field_index(name), pa.field(name, kind))
    columns = Columns(schema, send, job.input.keep)
    encoder_of(job, columns)  # it refuses what cannot be sent
    RowEncoder(columns.kept, columns.keep, rename={}, key="input.keep")
    return columns


def encoder_of(job: Job, columns: Columns, adapter: Adapter | None = None) -> Encoder:
    """Return what encodes this job's rows, for the adapter that sends them. Raises JobError for a type without form."""
    return (adapter or adapter_of(job.service)).encoder(job.input, columns.schema, columns.send)


def wanted_of(job: Job, columns: Columns) -> Wanted:
    """Say how this job's files are to be read."""
    types = types_of(job.input.columns)
    return Wanted(job.input, columns.needed, types, job.service.limits.body)


def fixed(job: Job, columns: Mapping[str, str]) -> Job:
    """Return the job as its workers see it: what it sends by default, and types where files have none, as planned."""
    declared = job.input.columns
    types = {**columns, **declared} if job.input.format in TYPELESS else declared
    send = adapter_of(job.service).columns(job.input, tuple(columns))
    return job.model_copy(update={"input": job.input.model_copy(update={"columns": types, "send": send})})
