"""Two attempts at the same rows, in any interleaving with each other and with a run that tidies up behind them.

Attempts only add objects under names of their own, so two of them commute; what matters is what a run sees of them when
it lists a folder. Therefore what is late arrives just before a listing that can tell: all interleavings are one of those.
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from contextlib import contextmanager, suppress
from itertools import combinations, count, pairwise, product
from typing import NamedTuple
from unittest import mock

import pyarrow as pa
import pytest
import service
from engine import engine, examples, one_by_one, place
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

import jobs
from pipeline import plan, write
from pipeline.ledger import Receipts
from pipeline.storage import Draft, Store

FOLDERS = ("results", "errors", "receipts")
REMEMBERED = 8
BROKEN = 1
"""A row that cannot be sent: its range has dead letters, and none but those if it is alone."""


class Attempt(NamedTuple):
    """Scores the ranges between borders, one after the other; the names of some sort first."""

    borders: tuple[int, ...]
    first: bool = False


@contextmanager
def numbered(prefix):
    """Let attempts have names that begin so, in place of random ones."""
    numbers = count()
    ids = mock.patch.object(uuid, "uuid4", lambda: uuid.UUID(int=(int(prefix * 8, 16) << 96) + (next(numbers) << 80)))
    with ids:
        yield


class Output:
    """An output on disk that can be brought into any state; objects are known by their names."""

    def __init__(self, folder, url, rows):
        self.rows, self.out = rows, folder / "out"
        self.known, self.seen = {"_SUCCESS": b""}, set()
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
            self.run(rows)
        [(self.job, self.work)] = found
        self.written = {}

    def puts(self, attempt):
        """Return the objects that an attempt writes, in order; what they hold is known from then on."""
        if attempt not in self.written:
            self.fill(())
            names = []
            ranges = [structs.replace(self.work, start=start, stop=stop) for start, stop in pairwise(attempt.borders)]
            with noted(names), numbered("3" if attempt.first else "7"):
                one_by_one(self.job, str(attempt), ranges)
            self.remember(names)
            self.written[attempt] = names
        return self.written[attempt]

    def remember(self, names):
        self.known.update((name, (self.out / name).read_bytes()) for name in names if (self.out / name).exists())

    def fill(self, names):
        """Bring the output into a state: these objects, and no other."""
        for folder in FOLDERS:
            shutil.rmtree(self.out / folder, ignore_errors=True)
            (self.out / folder).mkdir()
        (self.out / "_SUCCESS").unlink(missing_ok=True)
        for name in names:
            (self.out / name).write_bytes(self.known[name])

    def state(self):
        """Return the names of the objects that are there."""
        here = {f"{folder}/{path.name}" for folder in FOLDERS for path in (self.out / folder).iterdir()}
        return frozenset(here | ({"_SUCCESS"} if (self.out / "_SUCCESS").exists() else set()))

    def run(self, rows):
        """Run the job, so many rows a request."""
        return jobs.score(self.path, service__limits__rows=str(rows))

    def heal(self, names):
        """From this state the next run must come to the right end; and before, `verify` must not be mistaken."""
        if names in self.seen:
            return
        self.seen.add(names)
        self.fill(names)
        if jobs.proved(self.out) == ():
            self.is_whole()
        summary = self.run(2)
        assert (summary.exit_code, summary.left, jobs.proved(self.out)) == (0, 0, ()), (sorted(names), summary)
        assert (self.out / "_SUCCESS").exists()
        self.is_whole()

    def is_whole(self):
        """Whoever reads all results and dead letters finds each row once, with its own answer."""
        found = jobs.results(self.out).select(["source_row", "prediction"]).to_pylist()
        dead = [letter["source_row"] for letter in jobs.letters(self.out)]
        assert sorted([*(row["source_row"] for row in found), *dead]) == list(range(self.rows))
        assert all(json.loads(row["prediction"])["score"] == row["source_row"] for row in found)
        assert dead == [BROKEN]


@contextmanager
def noted(names):
    """Note the objects that are written, in order."""
    keep = Draft.keep

    def noting(draft, name):
        stored = keep(draft, name)
        if name.startswith(FOLDERS):
            names.append(name)
        return stored

    with mock.patch.object(Draft, "keep", noting):
        yield


@contextmanager
def arriving(output, late, choose, states):
    """Let objects arrive while a run goes on, before it lists a folder; note each state that there is meanwhile."""
    names_, keep, delete = Store.names, Draft.keep, Store.delete
    listed = []

    def listing(store, folder):
        if folder in FOLDERS:
            choose.at((len(listed), output.state(), tuple(map(tuple, late)), tuple(listed[-REMEMBERED:])))
            for waiting in late:
                ends = [at + 1 for at, name in enumerate(waiting) if name.startswith(f"{folder}/")]
                arrived = [0, *ends][choose(len(ends) + 1)]
                for name in waiting[:arrived]:
                    (output.out / name).write_bytes(output.known[name])
                del waiting[:arrived]
        found = names_(store, folder)
        listed.append((folder, tuple(found)))
        return found

    def changing(real):
        def change(self, name):
            result = real(self, name)
            states.append((output.state(), tuple(map(tuple, late))))
            return result

        return change

    with (
        mock.patch.object(Store, "names", listing),
        mock.patch.object(Draft, "keep", changing(keep)),
        mock.patch.object(Store, "delete", changing(delete)),
    ):
        yield


def converges(output, early, late, choose):
    """Let the `early` attempt end where it will and a run go on while the `late` ones arrive; then all must heal."""
    waiting = [list(output.puts(one)) for one in late]
    puts = output.puts(early)
    output.fill(puts[: choose(len(puts) + 1)])
    states = [(output.state(), tuple(map(tuple, waiting)))]
    written = []
    with arriving(output, waiting, choose, states), noted(written), numbered("5"):
        summary = output.run(1)
    output.remember(written)
    for names, others in states:
        for arrived in product(*([one[:end] for end in range(len(one) + 1)] for one in others)):
            output.heal(names.union(*arrived))
    return summary


class KnownError(BaseException):
    """A run is where another one was before it: what can come from here has been seen, or will be."""


class Every:
    """Plays a scenario once for each sequence of choices that it can make, but not twice from one situation."""

    def __init__(self):
        self._trail, self._made, self._known = [], [], set()

    def play(self, scenario):
        while True:
            self._made = []
            with suppress(KnownError):
                scenario(self)
            while self._made and self._made[-1][0] + 1 == self._made[-1][1]:
                self._made.pop()
            if not self._made:
                return
            chosen, options = self._made.pop()
            self._trail = [*self._made, (chosen + 1, options)]

    def at(self, situation):
        if len(self._made) >= len(self._trail):
            if situation in self._known:
                raise KnownError
            self._known.add(situation)

    def __call__(self, options):
        place = len(self._made)
        self._made.append(self._trail[place] if place < len(self._trail) else (0, options))
        return self._made[-1][0]


@contextmanager
def outputs(rows):
    """An output with so many planned rows, a split for each, and a service that answers each row with its number."""
    with (
        service.recording() as recorded,
        place() as folder,
        engine(one_by_one),
        mock.patch.object(write, "OBJECT_SECONDS", -1.0),
        mock.patch.object(plan, "MIN_SPLIT_ROWS", 1),
        mock.patch.object(Receipts.__init__, "__defaults__", (lambda: 0.0,)),  # a worker lists anew each time
    ):
        yield Output(folder, recorded.url, rows)


def ways(start, rows):
    """Return all ways to cut the rows from `start` into ranges, as borders."""
    between = range(start + 1, rows)
    return [(start, *cuts, rows) for number in range(len(between) + 1) for cuts in combinations(between, number)]


def pairs(rows):
    """Return all pairs of attempts: one from the beginning, one that finds some rows done, or none; either's names first."""
    return [
        (Attempt(one, first), Attempt(other, not first))
        for start in range(rows)
        for one, other in product(ways(0, rows), ways(start, rows))
        for first in (True, False)
    ]


def test_wherever_two_attempts_end_the_next_run_leaves_each_row_once():
    """Attempts at three rows, cut in all ways and crashed at any step."""
    with outputs(rows=3) as output:
        for pair in pairs(3):
            for ends in product(*(range(len(output.puts(one)) + 1) for one in pair)):
                output.heal(frozenset().union(*(output.puts(one)[:end] for one, end in zip(pair, ends, strict=True))))


def test_whenever_late_objects_arrive_the_next_run_leaves_each_row_once():
    """Attempts at two rows: one has ended anywhere, the other one goes on during a run, which itself may crash."""
    with outputs(rows=2) as output:
        for early, late in pairs(2):
            t = __import__("time").time()
            n = [0]

            def f(choose):
                n[0] += 1
                converges(output, early, [late], choose)

            Every().play(f)
            print(early, late, n, len(output.seen), __import__("time").time() - t)
