"""Measures bulkscore beside what people use today, in one go, and fails when a goal is missed (`make bench`).

Each client is a process of its own that scores the same generated rows, 1,000 a request, against the same server on
loopback. Start-up is the same command on one request's worth of rows, and is subtracted. The clients take turns, so
that a slow minute of the machine hits them all. Figures are medians; memory and wrong answers are the worst seen.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from outside import HERE, ClientError, measure, server, stats

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Command = Callable[[Path, str, Path], list[str]]  # of the rows' file, the URL and the output folder
    Figures = dict[str, dict[str, float]]

PYTHON = sys.executable
BULKSCORE = str(Path(PYTHON).parent / "bulkscore")
BATCH = 1000
LEAST = 100_000  # rows of a large run: with fewer, what is left beyond start-up is noise
JOB = """\
version: 1
name: bench
input:
  path: "{rows}"
  keep: [id]
service:
  url: "{url}"
  protocol: modelarts
  auth: {{type: none}}
  limits: {{rows: 1000}}
output:
  path: "{out}"
  format: parquet
"""


@dataclass(frozen=True)
class Client:
    title: str
    command: Command
    results: str | None = "."  # where below the output folder its answers are; None: it drops them
    least: int = 0  # rows; a client too fast for its start-up's noise is measured on more
    most: int = sys.maxsize  # rows; a slow one on fewer, and its figures are scaled


@dataclass(frozen=True)
class Run:
    rows: int
    cpu: float
    wall: float
    peak_mb: float
    server_cpu: float
    asked: int  # rows, counted by the server
    wrong: int


def script(name: str) -> Command:
    return lambda rows, url, out: [PYTHON, str(HERE / name), str(rows), url, str(out)]


def job(rows: Path, url: str, out: Path) -> str:
    path = out.with_suffix(".yaml")
    path.write_text(JOB.format(rows=rows, url=url, out=out))
    return str(path)


def floor(rows: Path, url: str, _: Path) -> list[str]:
    return [PYTHON, str(HERE / "floor.py"), url, rows.stem]


CLIENTS = {
    "floor": Client("floor: ready-made bodies, answers dropped", floor, results=None, least=1_000_000),
    "bulkscore": Client("bulkscore run", lambda *where: [BULKSCORE, "run", job(*where)], results="results"),
    "aiohttp": Client("asyncio + aiohttp + json, JSON Lines", script("rival_aiohttp.py")),
    "runinference": Client("Beam RunInference + requests, Parquet", script("rival_runinference.py"), most=200_000),
}
GOALS = (  # figure, of whom, at most, what it is
    ("cpu", "bulkscore", 4.0, "CPU seconds per million rows beyond start-up"),
    ("peak_mb", "bulkscore", 400, "peak memory, MB"),
    ("wrong", "bulkscore", 0, "answers wrong, missing, doubled or out of order"),
    ("asked_again", "bulkscore", 0, "rows asked more than once"),
    ("check", "check", 0.5, "seconds of `bulkscore check`"),
    ("imports", "check", 0, "modules of Beam and pyarrow imported by `bulkscore check`"),
    ("server_busy", "bulkscore", 0.5, "share of its time the server was busy, so not the bottleneck"),
    ("of_floor", "bulkscore", 0.34, "rate as a share of the floor's, so the server has room"),
)


def rows_file(folder: Path, rows: int) -> Path:
    path = folder / f"{rows}.parquet"
    if not path.exists():
        measure("rows.py", [PYTHON, str(HERE / "rows.py"), "write", str(path), str(rows)], folder)
    return path


def wrong_answers(name: str, rows: Path, results: Path) -> int:
    """Recount the answers; return how many rows have none, several, one out of order, or one that is not theirs."""
    if not results.is_dir():
        raise ClientError(f"{name} failed: exit 0 on {rows.stem} rows, but no folder {results.name} in its output")
    command = [PYTHON, str(HERE / "rows.py"), "count", str(rows), str(results)]
    found = json.loads(measure(f"the recount of {name}", command, rows.parent).said)
    wrong = sum(found.values()) - found["answers"]
    if wrong:
        sys.stderr.write(f"bench: {name} on {rows.stem} rows: wrong answers: {json.dumps(found)}\n")
    return wrong


def run(name: str, rows: int, folder: Path, url: str) -> Run:
    """Let one client score `rows` rows into a fresh folder, recount what it wrote, and remove it."""
    client, source, out = CLIENTS[name], rows_file(folder, rows), folder / f"out-{name}"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    before = stats(url)
    got = measure(name, client.command(source, url, out), folder, timeout=300 * max(1, rows / 1e6))
    after = stats(url)
    wrong = wrong_answers(name, source, out / client.results) if client.results else 0
    asked = int(after["rows"] - before["rows"])
    return Run(rows, got.cpu, got.wall, got.peak_mb, after["cpu"] - before["cpu"], asked, wrong)


def take_turns(names: list[str], rows: int, rounds: int, folder: Path, url: str) -> tuple[dict, list[str]]:
    """Return the (start-up, full) runs of each client, and what failed; a client that failed is out."""
    pairs: dict[str, list[tuple[Run, ...]]] = {name: [] for name in names}
    failures: list[str] = []
    for turn in range(rounds):
        for name in list(pairs):
            sys.stderr.write(f"bench: round {turn + 1} of {rounds}: {name}\n")
            full = min(max(rows, CLIENTS[name].least), CLIENTS[name].most)
            try:
                pairs[name].append(tuple(run(name, n, folder, url) for n in (BATCH, full)))
            except ClientError as failure:
                failures.append(str(failure))
                del pairs[name]
    return pairs, failures


def summary(pairs: list[tuple[Run, Run]]) -> dict[str, float]:
    """Return one client's figures; CPU, wall and the server's time are per million rows beyond start-up."""
    starts, fulls = zip(*pairs, strict=True)
    millions = (fulls[0].rows - BATCH) / 1e6

    def beyond(field: str) -> float:
        return (median(getattr(r, field) for r in fulls) - median(getattr(r, field) for r in starts)) / millions

    return {
        "rows": fulls[0].rows,
        "cpu": beyond("cpu"),
        "wall": beyond("wall"),
        "start_cpu": median(r.cpu for r in starts),
        "start_wall": median(r.wall for r in starts),
        "peak_mb": max(r.peak_mb for r in fulls),
        "server_busy": beyond("server_cpu") / beyond("wall"),
        "wrong": max(r.wrong for r in starts + fulls),
        "asked_again": max(r.asked - r.rows for r in starts + fulls),
    }


def check(folder: Path, url: str) -> dict[str, float]:
    """Return the median wall time of ten `bulkscore check`, and how many modules of Beam and pyarrow it imports."""
    command = [BULKSCORE, "check", job(rows_file(folder, BATCH), url, folder / "out-check")]
    walls = [measure("bulkscore check", command, folder, timeout=60).wall for _ in range(10)]
    trace = measure("bulkscore check", [PYTHON, "-X", "importtime", *command], folder, timeout=60).said
    roots = [line.rpartition("|")[2].strip().partition(".")[0] for line in trace.splitlines()]
    return {"check": median(walls), "imports": sum(root in {"apache_beam", "pyarrow"} for root in roots)}


def table(figures: Figures) -> Iterator[str]:
    heads = "rows", "CPU s", "ratio", "wall s", "rows/s", "start CPU s", "start wall s", "peak MB", "server busy"
    yield f"{'':42}" + "".join(f"{head:>13}" for head in heads)
    ours = figures.get("bulkscore", {}).get("cpu")
    for name, f in ((name, figures[name]) for name in CLIENTS if name in figures):
        ratio = f"{f['cpu'] / ours:.2f}" if ours else "-"
        cells = [f"{f['rows']:,}", f"{f['cpu']:.2f}", ratio, f"{f['wall']:.2f}", f"{1e6 / f['wall']:,.0f}"]
        cells += [f"{f['start_cpu']:.2f}", f"{f['start_wall']:.2f}", f"{f['peak_mb']:.0f}", f"{f['server_busy']:.0%}"]
        yield f"{CLIENTS[name].title:42}" + "".join(f"{cell:>13}" for cell in cells)
    yield "CPU s, wall s: per million rows beyond start-up (fewer rows are scaled); ratio: of CPU s to bulkscore's"


def judged(figures: Figures) -> tuple[list[str], list[str]]:
    """Return a line for each goal that was measured, and those of the goals missed."""
    goals = [(what, most, figures[whose][key]) for key, whose, most, what in GOALS if key in figures.get(whose, {})]
    lines = [(f"bulkscore: {what}: {got:.3g} (goal: at most {most:g})", 0 <= got <= most) for what, most, got in goals]
    return [f"{'ok    ' if met else 'MISSED'} {line}" for line, met in lines], [line for line, met in lines if not met]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the large run, a multiple of 1,000")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join([*CLIENTS, "check"]), help="some of %(default)s")
    parser.add_argument("--json", type=Path, help="file for every run, the medians and the machine")
    given = parser.parse_args()
    given.only = given.only.split(",")
    if given.rounds < 1 or given.rows < LEAST or given.rows % BATCH or {*given.only} - {*CLIENTS, "check"}:
        parser.error(f"--rounds from 1, --rows a multiple of {BATCH} from {LEAST}, --only {[*CLIENTS, 'check']}")
    return given


def main() -> int:
    given, load = options(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="bulkscore-bench-") as folder, server() as url:
        names = [name for name in CLIENTS if name in given.only]
        pairs, failures = take_turns(names, given.rows, given.rounds, Path(folder), url)
        figures = {name: summary(runs) for name, runs in pairs.items()}
        try:
            figures |= {"check": check(Path(folder), url)} if "check" in given.only else {}
        except ClientError as failure:
            failures.append(str(failure))
    if {"bulkscore", "floor"} <= {*figures}:
        figures["bulkscore"]["of_floor"] = figures["floor"]["wall"] / figures["bulkscore"]["wall"]
    verdicts, missed = judged(figures)
    busy = [f"This machine was busy (load {load:.1f}) at the start: mistrust wall times."] if load > 1 else []
    sys.stdout.write("\n".join([*table(figures), *busy, "", *verdicts, *failures]) + "\n")
    if given.json:
        packages = ("bulkscore", "apache-beam", "pyarrow", "aiohttp", "requests")
        machine = {"cores": os.cpu_count(), "load": load, "python": platform.python_version()}
        machine |= {package: importlib.metadata.version(package) for package in packages}
        runs = {name: [[asdict(one) for one in pair] for pair in some] for name, some in pairs.items()}
        report = {"machine": machine, "figures": figures, "missed": missed, "failed": failures, "runs": runs}
        given.json.write_text(json.dumps(report, indent=1) + "\n")
    for line in [f"goal missed: {line}" for line in missed] + [text.partition("\n")[0] for text in failures]:
        sys.stderr.write(f"bench: {line}\n")
    return 1 if missed or failures else 0


if __name__ == "__main__":
    sys.exit(main())
