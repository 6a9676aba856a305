"""Attempts at an output that is brought into any state, and objects that arrive while a run goes on."""

from __future__ import annotations

import json
import shutil
import uuid
from contextlib import contextmanager
from itertools import combinations, count, pairwise
from typing import NamedTuple
from unittest import mock

import pyarrow as pa
import service
from engine import engine, one_by_one, place
from msgspec import structs

import jobs
from pipeline import plan, write
from pipeline.ledger import Receipts
from pipeline.storage import Draft, Store
from schemas.plan import Order

FOLDERS = ("results", "errors", "receipts")
BROKEN = 1
"""A row that cannot be sent: its range has dead letters, and nothing else where it is alone."""
REMEMBERED = 8
"""So many listings a run may still know of when it decides: of receipts and objects, now and before it scored."""
RUN = "5"
"""The name of what a run writes itself, where it may not be random."""


class Attempt(NamedTuple):
    """Scores the ranges between borders, one after the other; its objects sort by `name`, a hex digit."""

    borders: tuple[int, ...]
    name: str


class Output:
    """An output on disk that can be brought into any state; objects are known by their names."""

    def __init__(self, folder, url, rows):
        self.rows, self.out = rows, folder / "out"
        self._known, self._puts, self._healed = {"_SUCCESS": b""}, {}, set()
        numbers = pa.array([float(row) for row in range(rows)])
        broken = pa.array([float("nan") if row == BROKEN else 1.0 for row in range(rows)])
        table = jobs.flowers(rows).set_column(1, jobs.SEND[0], numbers).set_column(2, jobs.SEND[1], broken)
        jobs.put(folder / "in" / "rows.parquet", table)
        self.path = jobs.job_file(
            folder,
            "",
            input={"path": "in/*.parquet", "send": jobs.SEND, "nan": "reject"},
            service={"url": url, "auth": {"type": "none"}, "tls": {"verify": False}, "limits": {"in_flight": 4}},
            errors={"allow": "100%"},
        )
        found = []
        with engine(lambda job, _, work: found.append((job, work[0]))):  # a run that loses its worker
            self.run()
        [(self._job, self._work)] = found

    def run(self):
        """Run the job."""
        return jobs.score(self.path)

    def puts(self, attempt):
        """Return the names of what an attempt writes, in order; what they hold is known from then on."""
        if attempt not in self._puts:
            self.fill(())
            names = self._puts[attempt] = []
            ranges = [structs.replace(self._work, start=start, stop=stop) for start, stop in pairwise(attempt.borders)]
            with noted(names.append), numbered(attempt.name):
                one_by_one(self._job, Order(str(attempt), probe=False), ranges)
            self.learn(names)
        return self._puts[attempt]

    def learn(self, names):
        """Keep what objects hold that are there."""
        self._known.update((name, (self.out / name).read_bytes()) for name in names if (self.out / name).exists())

    def replay(self, name):
        """Return an engine that writes what workers would write, without their work: a fast one."""
        for borders in combinations(range(self.rows + 1), 2):
            self.puts(Attempt(borders, name))

        def pipeline(job, _, work):
            for one in work:
                for put in self.puts(Attempt((one.start, one.stop), name)):
                    Store(job.output.path).write(put, self._known[put])

        return pipeline

    def fill(self, names):
        """Bring the output into a state: these objects, and no other."""
        for folder in FOLDERS:
            shutil.rmtree(self.out / folder, ignore_errors=True)
            (self.out / folder).mkdir()
        (self.out / "_SUCCESS").unlink(missing_ok=True)
        self.put(names)

    def put(self, names):
        """Let objects arrive."""
        for name in names:
            (self.out / name).parent.mkdir(exist_ok=True)
            (self.out / name).write_bytes(self._known[name])

    def state(self):
        """Return the names of the objects that are there."""
        here = {f"{folder}/{path.name}" for folder in FOLDERS for path in (self.out / folder).glob("*")}
        return frozenset(here | {"_SUCCESS"} if (self.out / "_SUCCESS").exists() else here)

    def heal(self, names):
        """See that the next run comes to the right end from a state, and that `verify` is not mistaken before."""
        if names not in self._healed:
            self._healed.add(names)
            self.fill(names)
            if jobs.proved(self.out) == ():
                self.is_whole()
            summary = self.run()
            found = (summary.exit_code, jobs.proved(self.out), (self.out / "_SUCCESS").exists())
            assert found == (0, (), True), (summary.message, sorted(names))
            self.is_whole()

    def is_whole(self):
        """See that whoever reads all results and dead letters finds each row once, with its own answer."""
        found = jobs.results(self.out).select(["source_row", "prediction"]).to_pylist()
        dead = [letter["source_row"] for letter in jobs.letters(self.out)]
        assert sorted([*(row["source_row"] for row in found), *dead]) == list(range(self.rows))
        assert all(json.loads(row["prediction"])["score"] == row["source_row"] for row in found)
        assert dead == [BROKEN]


@contextmanager
def outputs(rows):
    """An output with so many planned rows, a split for each, and a service that answers each row with its number."""
    with (
        service.recording() as recorded,
        place() as folder,
        engine(one_by_one),
        mock.patch.object(write, "OBJECT_SECONDS", -1.0),
        mock.patch.object(plan, "MIN_SPLIT_ROWS", 1),
        mock.patch.object(
            Receipts.__init__, "__defaults__", (lambda: 0.0,)
        ),  # workers list anew, however fast they are
    ):
        yield Output(folder, recorded.url, rows)


@contextmanager
def numbered(name):
    """Let names be numbers that begin with a digit, in place of random ones."""
    ids = (uuid.UUID(int=number << 80) for number in count(int(name * 8, 16) << 16))
    with mock.patch.object(uuid, "uuid4", ids.__next__):
        yield


@contextmanager
def noted(note, *, deletions=False):
    """Call `note` with each object that is written, and if asked that is deleted, once that is done."""

    def noting(real):
        def change(self, name):
            result = real(self, name)
            if name.startswith((*FOLDERS, "_SUCCESS")):
                note(name)
            return result

        return change

    with (
        mock.patch.object(Draft, "keep", noting(Draft.keep)),
        mock.patch.object(Store, "delete", noting(Store.delete) if deletions else Store.delete),
    ):
        yield


@contextmanager
def arriving(output, late, schedule):
    """Let objects of late attempts arrive while a run goes on: before it lists a folder, up to one that it will see."""
    names, listed = Store.names, []

    def listing(store, folder):
        if folder not in FOLDERS:
            return names(store, folder)
        schedule.at((len(listed), output.state(), frozen(late), tuple(listed[-REMEMBERED:])))
        for waiting in late:
            ends = [0, *(place for place, name in enumerate(waiting, 1) if name.startswith(f"{folder}/"))]
            end = ends[schedule.choose(len(ends))]
            output.put(waiting[:end])
            del waiting[:end]
        listed.append((folder, *names(store, folder)))
        return list(listed[-1][1:])

    with mock.patch.object(Store, "names", listing):
        yield


def frozen(late):
    return tuple(map(tuple, late))
