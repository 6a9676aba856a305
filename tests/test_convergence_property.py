"""Kills, new files, lost files and reruns, in any order, end like one clean run over the same files."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from typing import NamedTuple
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import service
from engine import Killed, again, dying, engine, examples, one_by_one, place, twice
from hypothesis import event, given
from hypothesis import strategies as st
from pyarrow import csv

import jobs
from pipeline import plan, write

BROKEN_EVERY = 5
ENGINES = {"one": one_by_one, "again": again, "two": twice}
EVERY_REQUEST = (
    "import pipeline.plan, pipeline.write; pipeline.plan.MIN_SPLIT_ROWS = 3; pipeline.write.OBJECT_SECONDS = -1.0\n"
    "from pipeline.cli import main; main()"
)


class Add(NamedTuple):
    """A new input file with so many rows."""

    rows: int


class Remove(NamedTuple):
    """A file of which all rows are done goes: which one, of those there are."""

    which: int


class Run(NamedTuple):
    """A run that dies after so many writes, or does not; with so many rows a request, by so many attempts at once."""

    writes: int | None
    rows: int
    attempts: str
    restart: bool


PLAIN = Run(None, 10, "one", restart=False)
STEPS = st.one_of(
    st.builds(Add, st.integers(0, 8)),
    st.builds(Remove, st.integers(0, 3)),
    st.builds(
        Run,
        writes=st.none() | st.integers(0, 60),
        rows=st.integers(1, 4),
        attempts=st.sampled_from(sorted(ENGINES)),
        restart=st.sampled_from([False, False, False, False, True]),
    ),
)


@pytest.fixture(scope="module")
def recorded():
    """One service for all examples."""
    with service.recording() as found:
        yield found


class World:
    """An input that changes, an output that runs fill, and what must be true of it at any time."""

    def __init__(self, folder, recorded, form):
        self.folder, self.recorded, self.form = folder, recorded, form
        self.out, self.gone = folder / "out", folder / "gone"
        self.gone.mkdir()
        self.files, self.places = 0, []

    def job(self, output="out", **limits):
        """Write the job; dead letters are no failure of it."""
        given = {"send": jobs.SEND, "keep": ["id"], "nan": "reject", "columns": dict.fromkeys(jobs.SEND, "double")}
        tls = {"verify": False}  # nor need it be read whom to trust
        return jobs.job_file(
            self.folder,
            "",
            input={"path": f"in/*.{self.form}", **given},
            service={"url": self.recorded.url, "auth": {"type": "none"}, "tls": tls, "limits": limits},
            output={"path": output},
            errors={"allow": "100%"},
        )

    def add(self, step):
        """Write a file; a row's `sepal_length` is its number over all files, and some rows cannot be sent."""
        path = self.folder / "in" / f"{self.files:03d}.{self.form}"
        path.parent.mkdir(exist_ok=True)
        numbers = range(len(self.places), len(self.places) + step.rows)
        values = {"id": [f"iris-{number}" for number in numbers], jobs.SEND[0]: [float(number) for number in numbers]}
        values |= {
            name: [float("nan") if number % BROKEN_EVERY == 0 else 1.0 for number in numbers] for name in jobs.SEND[1:]
        }
        WRITERS[self.form](pa.table(values), path)
        self.places += [(path.as_uri(), row) for row in range(step.rows)]
        self.files += 1

    def remove(self, step):
        """Take a done file away, if there is one: a receipt tells that it has no more rows than those that are done."""
        done = self.done()
        paths = [path for path in self.inputs() if set() != self.rows_of(path) <= done and self.is_ended(path)]
        if paths:
            path = paths[step.which % len(paths)]
            path.rename(self.gone / path.name)

    def run(self, step):
        """Run, perhaps not to the end; no row that was done is asked for again."""
        if not self.inputs() and not self.out.exists():
            return
        restart = step.restart and not list(self.gone.iterdir())  # it would forget what is gone
        known = set() if restart else self.done()
        before = len(self.recorded.calls)
        death = nullcontext() if step.writes is None else dying(step.writes)
        with engine(ENGINES[step.attempts]), death:
            try:
                summary = jobs.score(self.job(rows=step.rows), restart=restart)
            except Killed:
                event("killed")
            else:
                assert (summary.exit_code, summary.left) == (0, 0), summary
        asked = self.asked(before)
        assert known.isdisjoint(asked), "asked again, though there was a receipt"
        assert step.attempts == "two" or len(set(asked)) == len(asked), "asked twice"

    def asked(self, before):
        """Return the places of the rows that were asked for since there were so many calls."""
        return [self.places[row] for call in self.recorded.calls[before:] for row in call.places]

    def inputs(self):
        """List the files that are there."""
        return sorted((self.folder / "in").iterdir())

    def rows_of(self, path):
        """Return the places of a file's rows."""
        return {place for place in self.places if place[0] == path.as_uri()}

    def is_ended(self, path):
        """Whether a receipt tells of a file's end: a kill may leave a CSV file receipts of all rows but that."""
        plans = (json.loads(plan.read_bytes()) for plan in (self.out / "plan").glob("*.json"))
        numbers = {one["number"] for plan in plans for one in plan["sources"] if one["uri"] == path.as_uri()}
        return any(one.get("end") and one["source"] in numbers for one in jobs.receipts(self.out).values())

    def done(self):
        """Return the places of the rows of which a receipt tells whose objects are there."""
        found = set()
        for receipt in jobs.receipts(self.out).values():
            objects = [self.out / one["name"] for one in (receipt.get("results"), receipt.get("errors")) if one]
            if all(path.is_file() for path in objects):
                found.update(*map(told, objects))
        return found

    def settle(self):
        """Run once more, and compare with a clean run over all files there ever were."""
        self.run(PLAIN)
        found = everything(self.out)
        assert jobs.proved(self.out) == ()
        assert (self.out / "_SUCCESS").exists()
        assert not [name for name in jobs.files(self.out) if ".part-" in name]
        before = len(self.recorded.calls)
        self.run(PLAIN)
        assert len(self.recorded.calls) == before
        for path in self.gone.iterdir():
            path.rename(self.folder / "in" / path.name)
        with engine(one_by_one):
            assert jobs.score(self.job("clean", rows=10)).exit_code == 0
        assert found == everything(self.folder / "clean")
        assert [row[:2] for row in found] == sorted(self.places)


def put_lines(table, path):
    """Write JSON lines; what is no number there is a text, which does not fit."""
    lines = [json.dumps(row).replace("NaN", '"NaN"') for row in table.to_pylist()]
    path.write_text("".join(f"{line}\n" for line in lines))


WRITERS = {"parquet": pq.write_table, "csv": csv.write_csv, "jsonl": put_lines}


def told(path):
    """Return (source, row in it) of each row in an object."""
    if path.suffix == ".parquet":
        rows = pq.read_table(path).select(["source", "source_row"]).to_pylist()
    else:
        rows = map(json.loads, path.read_bytes().splitlines())
    return {(row["source"], row["source_row"]) for row in rows}


def everything(out):
    """Return what no run may change of every result and dead letter, by place."""
    rows = [tuple(row.values()) for row in jobs.lasting(out)] if jobs.files(out / "results") else []
    lasting = ("source", "source_row", "row_uuid", "kind", "message", "row", "keep")
    rows += [tuple(letter[key] for key in lasting) for letter in jobs.letters(out)]
    return sorted(rows, key=lambda row: row[:2])


@contextmanager
def worlds(recorded, form):
    """An input of four rows, without an output yet; receipts come after every request."""
    recorded.calls.clear()
    with (
        place() as folder,
        mock.patch.object(write, "OBJECT_SECONDS", -1.0),
        mock.patch.object(plan, "MIN_SPLIT_ROWS", 3),
    ):
        world = World(folder, recorded, form)
        world.add(Add(4))
        yield world


@examples(0.3)
@given(st.sampled_from(sorted(WRITERS)), st.lists(STEPS, max_size=10))
def test_any_kills_new_files_and_reruns_end_like_one_clean_run(recorded, form, steps):
    """The same rows with the same answers, each once, nothing asked again that had a receipt, and nothing left over."""
    with worlds(recorded, form) as world:
        for step in steps:
            {Add: world.add, Remove: world.remove, Run: world.run}[type(step)](step)
        world.settle()


@examples(0.03)
@given(st.sampled_from(sorted(WRITERS)), st.lists(st.integers(1, 9), min_size=1, max_size=3))
def test_runs_that_are_killed_for_good_end_like_one_clean_run(recorded, form, deaths):
    """A process gets SIGKILL when so many requests came; what it wrote before that is not asked for again."""
    with worlds(recorded, form) as world:
        world.add(Add(12))
        for death in deaths:
            known, before = world.done(), len(recorded.calls)
            with dead_at(recorded, before + death) as kill:
                line = [sys.executable, "-c", EVERY_REQUEST, "run", world.job(rows=1, in_flight=1)]
                pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
                with subprocess.Popen(line, **pipes) as running:
                    kill.append(running.kill)
                    complaint = running.communicate(timeout=60)[1]
            assert running.returncode in {0, -signal.SIGKILL}, complaint
            assert known.isdisjoint(world.asked(before))
        world.settle()


@contextmanager
def dead_at(recorded, calls):
    """Call what is in the list that this gives, once there are so many requests; they are answered all the same."""
    kill = []

    def answer(call):
        if len(recorded.calls) >= calls:
            kill[0]()
        return service.score(call)

    recorded.answer = answer
    try:
        yield kill
    finally:
        recorded.answer = service.score
