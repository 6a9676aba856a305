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
import time
from pathlib import Path

from outside import HERE, ClientError, Measured, measure, peak_mb, running, server, stats

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


def job(way: str, folder: Path, url: str, count: int) -> list[str]:
    """Return the command that scores so many rows or files into a fresh output."""
    given, service = WAYS[way]
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    path = folder / "job.yaml"
    values = {
        "version": 1,
        "name": "ways",
        "input": given | {"path": str(folder / given["path"].format(count))},
        "service": service | {"url": url},
        "output": {"path": str(out)},
    }
    path.write_text(json.dumps(values))
    return [BULKSCORE, "run", "-q", str(path)]


def run(way: str, folder: Path, url: str, count: int) -> Measured:
    """Score so many; see that all answers are right."""
    done = measure(way, job(way, folder, url, count), folder, timeout=1200)
    see(way, folder, count)
    return done


def see(way: str, folder: Path, count: int) -> None:
    """See that all answers are right, in another process. Raises ClientError."""
    kind = "" if way == "rows" else "crc"
    line = [sys.executable, str(HERE / "ways.py"), "--count", str(folder / "out"), str(count), kind]
    measure(f"the recount of {way}", line, folder)


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


def peak(way: str, folder: Path, url: str, count: int, size: int) -> tuple[float, float]:
    """Return the most memory in MB that large files take: until half of them are answered, and to the end."""
    place, before, started = files(folder, count, size), stats(url)["requests"], time.monotonic()
    with running(job(way, folder, url, count), folder) as process:
        while stats(url)["requests"] < before + count / 2 and peak_mb(process):
            time.sleep(0.5)
        early = peak_mb(process)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ClientError(f"{way}: exit {process.returncode}\n{(folder / 'log').read_text()[-1000:]}")
    see(way, folder, count)
    shutil.rmtree(place)
    most, took = usage.ru_maxrss * 1024 / 1e6, time.monotonic() - started
    print(f"{way}: {count:,} files of {size / 1e6:g} MB: {took:.0f} s, {early:.0f}, then {most:.0f} MB", flush=True)
    return early, most


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=10_000)
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
            early, most = peak(way, folder, url, given.files, 10**6)
            if most > min(PEAK_MB, GROWTH * early):
                missed.append(f"{way}: {early:.0f} MB, then {most:.0f} MB (goal: under {PEAK_MB}, and flat)")
    for line in missed:
        print(f"MISSED {line}", file=sys.stderr)
    return bool(missed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ClientError as error:
        sys.exit(f"bench: {error}")
