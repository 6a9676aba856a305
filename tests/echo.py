"""A service that answers each row with the row itself, so that a job's results tell what was sent for every row."""

from __future__ import annotations

import json
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import msgspec
import service
from engine import engine, one_by_one

import jobs


class _Data(msgspec.Struct):
    req_data: list[msgspec.Raw]


class _Body(msgspec.Struct):
    meta: msgspec.Raw
    data: _Data


class Desk(NamedTuple):
    """A folder for a job, and a service that is up: `seen` has its calls."""

    folder: Path
    seen: service.Service

    @property
    def out(self):
        return self.folder / "out"

    def job(self, path, **given):
        """Write a job over a path; `given` are keys of `input`, and `keys` others, dotted with `__`."""
        keys = given.pop("keys", {})
        called = {"url": self.seen.url, "limits": {"rows": 1000}}
        return jobs.job_file(self.folder, "", input={"path": path, **given}, service=called, **keys)

    def run(self, path, **given):
        """Run a job as a command does; returns exit code, stdout and stderr."""
        return jobs.call("run", self.job(path, **given))

    def sent(self):
        """Return what was sent for each row that is scored, as JSON text: source row -> row. One file, that is."""
        return {row["source_row"]: row["prediction"] for row in _results(self.out)}

    def rows(self):
        """Return each scored row as it was sent, read: (the source's name, source row) -> row."""
        return {(Path(row["source"]).name, row["source_row"]): read(row["prediction"]) for row in _results(self.out)}


def read(text):
    """Read JSON, floats as the digits that they have."""
    return json.loads(text, parse_float=Decimal)


def _results(out):
    table = jobs.results(out)
    return table.to_pylist() if table else []


def _echo(call):
    """Answer with the very bytes of the rows."""
    body = msgspec.json.decode(call.body, type=_Body)
    rows = b",".join(map(bytes, body.data.req_data))
    return 200, {}, b'{"meta":%s,"data":{"resp_data":[%s]}}' % (bytes(body.meta), rows)


@contextmanager
def desk(folder):
    """Have an echo for jobs in a folder, and an engine without Beam, which takes half a second for each."""
    with service.recording(_echo) as seen, engine(one_by_one):
        yield Desk(folder, seen)
