"""Scores a large JSONL file, plain and cut into splits by lines, and proves the output: seconds and peak memory.

The file has 2 GB (10,000,000 rows, most of each a text that is not sent) unless said otherwise. Memory must not grow
with it: a quarter of the rows is scored first. Then the output is verified, which is as many rows to recount. Fails
when a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from outside import ClientError, Measured, measure, server

BULKSCORE = str(Path(sys.executable).parent / "bulkscore")
ROW_BYTES = 200
PEAK_MB, GROWTH = 400, 1.15  # goals: memory, and of the whole file's to that of a quarter of it
JOB = """\
version: 1
name: large
input:
  path: "{rows}"
  keep: [id]
  send: [sepal_length, sepal_width, petal_length, petal_width]
service:
  url: "{url}"
  auth: {{type: none}}
  limits: {{rows: 1000}}
output:
  path: "{out}"
"""


def write(path: Path, rows: int) -> None:
    """Write rows that are all different, in blocks of 1,000 that are made of one by putting in its number."""
    block = [
        {"id": 0, "sepal_length": 4.3 + n % 36 / 10, "sepal_width": 2 + n % 24 / 10, "petal_length": 1 + n % 59 / 10}
        | {"petal_width": 0.1 + n % 24 / 10, "note": ""}
        for n in range(1000)
    ]
    lines = [json.dumps(row)[len('{"id": 0') :] for row in block]
    lines = [line.replace('"note": ""', f'"note": "{"x" * (ROW_BYTES - len(line) - 18)}"') for line in lines]
    with path.open("w") as file:
        for start in range(0, rows, 1000):
            file.writelines(f'{{"id": {start + n:>9}{line}\n' for n, line in enumerate(lines))


def score(folder: Path, url: str, rows: int) -> tuple[Measured, Measured, float]:
    """Score so many rows and verify them; return both, and the file's size in GB."""
    file, job = folder / f"{rows}.jsonl", folder / f"{rows}.yaml"
    write(file, rows)
    job.write_text(JOB.format(rows=file, url=url, out=folder / f"out-{rows}"))
    scored = measure("run", [BULKSCORE, "run", "-q", str(job)], folder, timeout=1200)
    proved = measure("verify", [BULKSCORE, "verify", str(job)], folder, timeout=1200)
    size = file.stat().st_size / 1e9
    file.unlink()
    return scored, proved, size


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bulkscore-large-") as folder, server() as url:
        peaks = []
        for rows in (given.rows // 4, given.rows):
            scored, proved, size = score(Path(folder), url, rows)
            print(
                f"{rows:>12,} rows of JSONL, {size:.2f} GB: run {scored.wall:.0f} s, {scored.cpu:.0f} CPU s, "
                f"{scored.peak_mb:.0f} MB; verify {proved.wall:.0f} s, {proved.cpu:.0f} CPU s, {proved.peak_mb:.0f} MB",
                flush=True,
            )
            peaks.append((scored.peak_mb, proved.peak_mb))
    missed = [
        f"{what}: {least:.0f} MB, then {most:.0f} MB (goal: under {PEAK_MB}, and flat)"
        for what, least, most in zip(("run", "verify"), *peaks, strict=True)
        if most > PEAK_MB or (what == "run" and most > GROWTH * least)
    ]
    for line in missed:
        print(f"MISSED {line}", file=sys.stderr)
    return bool(missed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ClientError as error:
        sys.exit(f"bench: {error}")
