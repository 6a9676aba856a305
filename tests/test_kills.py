"""`kill -9` at any moment, of the run, of a worker, or of all at once: one clean run later nothing tells of it.

Which moments is a matter of a seed. `make fuzz` draws many; a test run has few, always the same.
"""

from __future__ import annotations

import os
import signal
import time
from itertools import count
from pathlib import Path
from random import Random

import pyarrow as pa
import pytest
import service
from engine import examples, place
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import jobs
from pipeline.beam import SMALL_SPLITS_AT_ONCE

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="needs /proc")

FILES, ROWS = 60, 4
TOTAL = FILES * ROWS
IN_FLIGHT, SECONDS = 4, 0.02
START_SECONDS = 3.0  # of interpreters and what they import, about
KILLS = 10 if settings.get_current_profile_name() == "fuzz" else 4


def slowly(call):
    """Answer each row with its own number, after a while."""
    time.sleep(SECONDS)
    return service.score(call)


def alive(group):
    """Return the living processes of a group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its = path.read_bytes().rpartition(b")")[2].split()[:3]
        except OSError:
            continue
        if int(its) == group and state not in b"ZX":
            found.append(int(path.parent.name))
    return found


class Story:
    """One job that is killed again and again; what the service saw is held against what had been committed."""

    def __init__(self, folder, served, workers, random):
        self.folder, self.served, self.workers, self.random = folder, served, workers, random
        self.kills = self.again = 0
        self.numbers = count()
        for number in range(FILES):
            rows = pa.array([float(number * ROWS + row) for row in range(ROWS)])
            table = pa.table({"id": rows, **dict.fromkeys(jobs.SEND, rows)})
            jobs.put(folder / "in" / f"{number:02d}.parquet", table)
        self.begin()
        began = time.monotonic()
        assert jobs.score(self.path, runner__workers="1").exit_code == 0
        self.usual = START_SECONDS + time.monotonic() - began
        self.expected = jobs.lasting(self.out)
        self.begin()

    def begin(self):
        """Begin with a new output."""
        name = f"out{next(self.numbers)}"
        keys = {"service__url": self.served.url, "service__auth": {"type": "none"}, "output__path": name}
        limits = {"rows": 1, "in_flight": IN_FLIGHT}
        self.path = jobs.job_file(self.folder, "", service__limits=limits, runner__workers=self.workers, **keys)
        self.out = self.folder / name
        self.committed, self.struck = [], 0
        self.served.calls.clear()

    def run(self):
        return jobs.process("run", self.path, "-q", start_new_session=True)

    def tell(self):
        """Kill as often as is told, then run once more, and look at what came out."""
        while self.kills < KILLS:
            with self.run() as running:
                while self.kills < KILLS and self.wait(running):
                    self.strike(running)
                if running.poll() == -signal.SIGKILL:
                    continue
                _, told = running.communicate(timeout=100)
            # three workers in a row may have been hit before they had committed anything
            assert running.returncode == 0 or (running.returncode == 6 and self.struck >= 3), told
            if running.returncode == 0 and self.kills < KILLS:
                self.check()
                self.begin()
        assert jobs.score(self.path).exit_code == 0
        self.check()

    def wait(self, running):
        """Wait for a random moment of the run's life; whether it is alive then."""
        count, most = self.random.choice([(time.monotonic, self.usual), (self.requests, TOTAL / 4), (self.receipts, 9)])
        enough = count() + self.random.uniform(0, most)
        jobs.until(lambda: count() > enough or running.poll() is not None)
        time.sleep(self.random.uniform(0, SECONDS))  # not always just when something has come
        return running.poll() is None

    def requests(self):
        return len(self.served.calls)

    def receipts(self):
        return len(list((self.out / "receipts").glob("*.json")))

    def strike(self, running):
        """Kill one, several or all; note what is committed by then."""
        crew = jobs.workers(running.pid)
        victim = self.random.choice(["run", "all", "worker", "worker", "workers"] if self.workers > 1 else ["run"])
        if victim == "all":
            os.killpg(running.pid, signal.SIGKILL)
        elif victim == "run" or not crew:
            running.kill()
        else:
            for pid in crew if victim == "workers" else [self.random.choice(crew)]:
                os.kill(pid, signal.SIGKILL)
        if victim in {"run", "all"} or not crew:
            running.wait(timeout=60)
            jobs.until(lambda: not alive(running.pid))  # nobody outlives the run
        self.kills += 1
        self.struck += 1
        found = jobs.receipts(self.out).values()
        done = {one["source"] * ROWS + row for one in found for row in range(one["from"], one["to"])}
        self.committed.append((done, time.monotonic()))

    def check(self):
        """Nothing is lost, nothing doubled, nothing that was committed asked again, and little else."""
        assert jobs.proved(self.out) == ()
        assert jobs.lasting(self.out) == self.expected
        assert not [name for name in jobs.files(self.out) if ".part-" in name]
        for done, when in self.committed:
            assert not done & {row for call in self.served.calls if call.arrived > when for row in call.places}
        asked = [row for call in self.served.calls for row in call.places]
        assert max(map(asked.count, set(asked))) <= 1 + self.struck
        assert len(asked) - TOTAL <= self.struck * self.workers * SMALL_SPLITS_AT_ONCE * ROWS
        self.again += len(asked) - TOTAL


@pytest.mark.timeout(600)
@pytest.mark.parametrize("workers", [1, 2])
@settings(examples(0.01), phases=[Phase.generate])  # a story takes its time: none is told again to make it shorter
@given(seed=st.integers(0, 2**32 - 1))
def test_any_kills_end_like_one_clean_run(workers, seed):
    """Equal results, verified; what had a receipt is never asked again, and of the rest only what was under way."""
    with place() as folder, service.recording(slowly) as served:
        story = Story(folder, served, workers, Random(seed))
        story.tell()
    print(f"{workers} workers, seed {seed}: {story.kills} kills, {story.again} of {TOTAL} rows asked again")
