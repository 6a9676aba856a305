"""Kills, new files, lost files and reruns, in any order, end like one clean run over the same files."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import NamedTuple
from unittest import mock

import pyarrow as pa
import pytest
import service
from engine import Killed, dying, engine, examples, one_by_one, place, twice
from hypothesis import given, note
from hypothesis import strategies as st

import jobs
from pipeline import plan, write

NAN_EVERY = 5
ENGINES = {"one": one_by_one, "two": twice}
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

    def __init__(self, folder, recorded):
        self.folder, self.recorded = folder, recorded
        self.out, self.gone = folder / "out", folder / "gone"
        self.gone.mkdir()
        self.rows = self.files = 0

    def job(self, output="out", **limits):
        """Write the job; dead letters are no failure of it."""
        return jobs.job_file(
            self.folder,
            "",
            input={"path": "in/*.parquet", "send": jobs.SEND, "keep": ["id"], "nan": "reject"},
            service={"url": self.recorded.url, "auth": {"type": "none"}, "tls": {"verify": False}, "limits": limits},
            output={"path": output},
            errors={"allow": "100%"},
        )

    def add(self, step):
        """Write a file; a row's `sepal_length` is its number over all files, and some rows cannot be sent."""
        numbers = range(self.rows, self.rows + step.rows)
        table = jobs.flowers(step.rows, self.rows).set_column(1, jobs.SEND[0], pa.array(map(float, numbers)))
        broken = pa.array([float("nan") if number % NAN_EVERY == 0 else 1.0 for number in numbers], pa.float64())
        jobs.put(self.folder / "in" / f"{self.files:03d}.parquet", table.set_column(2, jobs.SEND[1], broken))
        self.rows += step.rows
        self.files += 1

    def remove(self, step):
        """Take a done file away, if there is one."""
        done = self.done()
        paths = [path for path in self.inputs() if done.get(path.as_uri(), set()) == rows_of(path) != set()]
        if paths:
            path = paths[step.which % len(paths)]
            path.rename(self.gone / path.name)

    def run(self, step):
        """Run, perhaps not to the end; no row that was done is asked for again."""
        restart = step.restart and not list(self.gone.iterdir())
        if not self.inputs() and not self.done():
            return
        known = set() if restart else set().union(*self.done().values())
        before = len(self.recorded.calls)
        death = nullcontext() if step.writes is None else dying(step.writes)
        with engine(ENGINES[step.attempts]), death:
            try:
                summary = jobs.score(self.job(rows=step.rows), restart=restart)
            except Killed:
                note("killed")
            else:
                assert (summary.exit_code, summary.left) == (0, 0), summary
        asked = {row for call in self.recorded.calls[before:] for row in call.places}
        assert not asked & known, "asked again, though there was a receipt"

    def inputs(self):
        return sorted((self.folder / "in").glob("*.parquet"))

    def done(self):
        """Return the numbers of the rows of which a receipt tells, by source."""
        found = {}
        for receipt in jobs.receipts(self.out).values():
            objects = [self.out / one["name"] for one in (receipt.get("results"), receipt.get("errors")) if one]
            if all(path.is_file() for path in objects):
                for path in objects:
                    for source, number in told(path):
                        found.setdefault(source, set()).add(number)
        return found

    def settle(self):
        """Run once more, and compare with a clean run over all files there ever were."""
        self.run(Run(None, 10, "one", restart=False))
        found = everything(self.out)
        assert jobs.proved(self.out) == ()
        assert (self.out / "_SUCCESS").exists()
        assert not [name for name in jobs.files(self.out) if ".part-" in name]
        before = len(self.recorded.calls)
        self.run(Run(None, 10, "one", restart=False))
        assert len(self.recorded.calls) == before
        for path in self.gone.iterdir():
            path.rename(self.folder / "in" / path.name)
        with engine(one_by_one):
            assert jobs.score(self.job("clean", rows=10)).exit_code == 0
        assert found == everything(self.folder / "clean")
        assert len(found) == self.rows


def rows_of(path):
    """Return the numbers of a file's rows."""
    return {int(name.removeprefix("iris-")) for name in jobs.pq.read_table(path)["id"].to_pylist()}


def told(path):
    """Return (source, row's number) of each row in an object."""
    if path.suffix == ".parquet":
        rows = jobs.pq.read_table(path).select(["source", "id"]).to_pylist()
    else:
        rows = [{"source": one["source"], **one["keep"]} for one in map(json.loads, path.read_bytes().splitlines())]
    return [(row["source"], int(row["id"].removeprefix("iris-"))) for row in rows]


def everything(out):
    """Return what no run may change of every result and dead letter, by place."""
    rows = [tuple(row.values()) for row in jobs.lasting(out)] if jobs.files(out / "results") else []
    lasting = ("source", "source_row", "row_uuid", "kind", "message", "row", "keep")
    rows += [
        tuple(str(letter[key]) if key == "row" else letter[key] for key in lasting) for letter in jobs.letters(out)
    ]
    return sorted(rows, key=lambda row: row[:2])


@examples(0.3)
@given(st.lists(STEPS, max_size=10))
def test_any_kills_new_files_and_reruns_end_like_one_clean_run(recorded, steps):
    """The same rows with the same answers, each once, nothing asked again that had a receipt, and nothing left over."""
    with (
        place() as folder,
        mock.patch.object(write, "OBJECT_SECONDS", -1.0),
        mock.patch.object(plan, "MIN_SPLIT_ROWS", 3),
    ):
        world = World(folder, recorded)
        world.add(Add(4))
        for step in steps:
            {Add: world.add, Remove: world.remove, Run: world.run}[type(step)](step)
        world.settle()
