"""Measures the planning of very many small files: seconds and peak memory of `bulkscore plan`, a line for each form.

Files lie in folders of 1,000. Whole files (`format: files`) are only listed; rows of Parquet, CSV and JSONL files are
counted, so each of these is opened. Fails when a goal is missed.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from outside import ClientError, measure

BULKSCORE = str(Path(sys.executable).parent / "bulkscore")
FOLDER = 1000  # files of a folder
SECONDS, PEAK_MB, GOAL_FILES = 60, 1000, 1_000_000  # the goal, and the number of files that it speaks of
JOB = """\
version: 1
name: planning
input:
  path: "{folder}/**/*.{form}"
  format: {form}
  send: [{send}]
service:
  url: "http://127.0.0.1:9/v1/infers/none"
output:
  path: "{out}"
"""


def parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"id": [1, 2, 3], "x": [0.1, 0.2, 0.3]}), sink)
    return sink.getvalue()


CONTENTS = {
    "files": b"0123456789",
    "parquet": parquet(),
    "csv": b"id,x\n1,0.1\n2,0.2\n3,0.3\n",
    "jsonl": b'{"id": 1, "x": 0.1}\n{"id": 2, "x": 0.2}\n{"id": 3, "x": 0.3}\n',
}


def make(folder: Path, form: str, count: int) -> None:
    for number in range(count):
        if number % FOLDER == 0:
            below = folder / f"{number // FOLDER:06d}"
            below.mkdir(parents=True)
        (below / f"{number:09d}.{form}").write_bytes(CONTENTS[form])


def plan(form: str, count: int, above: str | None) -> bool:
    """Plan so many files, print what it took, and say whether that is as good as it must be."""
    with tempfile.TemporaryDirectory(prefix="bulkscore-planning-", dir=above) as name:
        folder = Path(name)
        make(folder / "in", form, count)
        job = folder / "job.yaml"
        send = "uri" if form == "files" else "x"
        job.write_text(JOB.format(folder=folder / "in", form=form, send=send, out=folder / "out"))
        taken = measure(f"plan of {form}", [BULKSCORE, "plan", str(job)], folder, timeout=3600)
    if f"{count} files ({count} new)" not in taken.said:
        raise ClientError(f"{form}: not all of {count} files were planned: {taken.said}")
    met = form != "files" or count > GOAL_FILES or (taken.wall <= SECONDS and taken.peak_mb <= PEAK_MB)
    goal = f" (goal: at most {SECONDS} s and {PEAK_MB} MB)" if form == "files" else ""
    figures = f"{taken.wall:.1f} s, {taken.cpu:.1f} s of CPU, peak {taken.peak_mb:.0f} MB"
    sys.stdout.write(f"{'ok    ' if met else 'MISSED'} {form:8} {count:>10,} files planned in {figures}{goal}\n")
    sys.stdout.flush()
    return met


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=GOAL_FILES, help="whole files (default: %(default)s)")
    parser.add_argument("--small", type=int, default=20_000, help="files of each other form (default: %(default)s)")
    parser.add_argument("--only", default=",".join(CONTENTS), help="some of %(default)s")
    parser.add_argument("--folder", help="where to write them; default: the temporary folder")
    given = parser.parse_args()
    given.only = given.only.split(",")
    if {*given.only} - {*CONTENTS} or min(given.files, given.small) < 1:
        parser.error(f"--files and --small from 1, --only some of {', '.join(CONTENTS)}")
    return given


def main() -> int:
    given = options()
    try:
        met = [plan(form, given.files if form == "files" else given.small, given.folder) for form in given.only]
    except ClientError as failure:
        sys.stderr.write(f"bench: {failure}\n")
        return 1
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
