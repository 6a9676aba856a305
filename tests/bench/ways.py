"""Measures files beside JSON: requests a second of the ways in, one row each, and memory under many large files.

The same command scores the same small files, in forms and as base64 in JSON, and as many rows of iris, one a request,
against the same server on loopback. Start-up is the same command on a few, and is subtracted; the ways take turns, and
the best round of each counts, since what disturbs one only makes it slower. Each answer is compared with its file.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from outside import HERE, ClientError, Measured, measure, server

BULKSCORE = str(Path(sys.executable).parent / "bulkscore")
FEW = 20
GOAL, PEAK_MB, GROWTH = 0.9, 400, 1.15
ROWS = {"path": "{}.parquet", "send": ["sepal_length", "sepal_width", "petal_length", "petal_width"]}
FILES = {"path": "{}/*", "format": "files"}
WAYS = {
    "rows": (ROWS, {"protocol": "modelarts", "limits": {"rows": 1}}),
    "file": (FILES, {"protocol": "file", "options": {"field": "images"}}),
    "json": (FILES, {"protocol": "json", "options": {"body": {"image": {"$base64": "content"}}, "answer": "@"}}),
}


def files(folder: Path, count: int, size: int) -> Path:
    """Write files that are all different, unless they are there."""
    place = folder / f"{count}"
    if not place.is_dir():
        place.mkdir()
        block = os.urandom(size)
        for number in range(count):
            (place / f"{number}.png").write_bytes(b"%012d" % number + block[12:])
    return place


def run(way: str, folder: Path, url: str, count: int) -> Measured:
    """Score so many rows or files into a fresh output; see that all answers are right."""
    given, service = WAYS[way]
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    job = folder / "job.yaml"
    values = {
        "version": 1,
        "name": "ways",
        "input": given | {"path": str(folder / given["path"].format(count))},
        "service": service | {"url": url},
        "output": {"path": str(out)},
    }
    job.write_text(json.dumps(values))
    done = measure(way, [BULKSCORE, "run", "-q", str(job)], folder, timeout=1200)
    answers = [sys.executable, str(HERE / "ways.py"), "--count", str(out), str(count), "" if way == "rows" else "crc"]
    measure(f"the recount of {way}", answers, folder)
    return done


def recount(out: Path, count: int, kind: str) -> int:
    """See that there are so many answers, each that of its file; in a process of its own, for it imports much."""
    import zlib
    from urllib.parse import urlsplit

    import pyarrow.dataset as ds

    table = ds.dataset(out / "results").to_table(columns=["source", "prediction"]).to_pylist()
    wrong = [
        row["source"]
        for row in table
        if kind
        and json.loads(row["prediction"]) != {"crc": zlib.crc32(Path(urlsplit(row["source"]).path).read_bytes())}
    ]
    if len(table) != count or wrong:
        print(f"{len(table)} answers to {count} rows; wrong: {wrong[:3]}")
    return len(table) != count or bool(wrong)


def rates(folder: Path, url: str, count: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Return requests a second, and CPU milliseconds a request, of each way."""
    for some in (FEW, count):
        files(folder, some, 300)
        measure(
            "rows.py", [sys.executable, str(HERE / "rows.py"), "write", f"{folder}/{some}.parquet", str(some)], folder
        )
    seen: dict[str, list[tuple[Measured, Measured]]] = {way: [] for way in WAYS}
    for turn in range(rounds):
        for way, runs in seen.items():
            print(f"ways: round {turn + 1} of {rounds}: {way}", file=sys.stderr)
            runs.append((run(way, folder, url, FEW), run(way, folder, url, count)))
    return {way: figures(runs, count - FEW) for way, runs in seen.items()}


def figures(runs: list[tuple[Measured, Measured]], count: int) -> tuple[float, float]:
    """Return requests a second, and CPU milliseconds a request, beyond start-up."""
    wall, cpu = (
        min(getattr(many, what) for _, many in runs) - min(getattr(few, what) for few, _ in runs)
        for what in ("wall", "cpu")
    )
    return count / wall, cpu / count * 1000


def peak(way: str, folder: Path, url: str, count: int, size: int) -> float:
    """Return the most memory in MB that large files take."""
    place = files(folder, count, size)
    done = run(way, folder, url, count)
    shutil.rmtree(place)
    print(f"{way}: {count:,} files of {size / 1e6:g} MB: {done.wall:.0f} s, {done.peak_mb:.0f} MB", flush=True)
    return done.peak_mb


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, default=10_000, help="of 1 MB each")
    parser.add_argument("--count", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.count:
        return recount(Path(given.count[0]), int(given.count[1]), given.count[2])
    missed = []
    with tempfile.TemporaryDirectory(prefix="bulkscore-ways-") as name, server() as url:
        folder = Path(name)
        found = rates(folder, url, given.requests, given.rounds)
        for way, (rate, cpu) in found.items():
            print(f"{way}: {rate:,.0f} requests/s, {cpu:.2f} CPU ms a request", flush=True)
        share = found["file"][0] / found["json"][0]
        print(f"files in forms: {share:.0%} of the rate of the same files in JSON", flush=True)
        missed += [f"file: {share:.0%} of the rate of json (goal: {GOAL:.0%})"] if share < GOAL else []
        for way in ("file", "json"):
            few, many = (peak(way, folder, url, some, 10**6) for some in (given.files // 4, given.files))
            if many > min(PEAK_MB, GROWTH * few):
                missed.append(f"{way}: {few:.0f} MB, then {many:.0f} MB (goal: under {PEAK_MB}, and flat)")
    for line in missed:
        print(f"MISSED {line}", file=sys.stderr)
    return bool(missed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ClientError as error:
        sys.exit(f"bench: {error}")
