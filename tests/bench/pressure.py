"""Measures bulkscore under pressure with nothing configured: share of the ideal rate, time in the service, memory.

A figure of a rate begins with the first request that reaches the service, so that the start of the process is excluded
and that of the window is not. A client that is not done after `--seconds` is stopped. Prints one table, and fails when
a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from functools import partial
from math import ceil, inf, log2
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench import BULKSCORE, rows_file, script, wrong_answers
from outside import ClientError, measure, peak_mb, running, server, stats

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

    Log = list[tuple[float, float, int]]  # of each request: when it came, when it was answered, the status
    Phases = list[tuple[float, int]]  # seconds since the first request, and the slots from then on

SECONDS = 60.0
SLOTS, LATENCY = 64, 0.2
DEADLINE = 40.0  # seconds: `limits.timeout`, where nothing is configured
SETTLING = 5.0  # seconds after a change that do not count
WARMING = 10.0  # seconds after which few requests may be refused
RATE = 100  # requests a second, where more are refused
CHUNK, POISON = 1000, 8  # rows a request, and rows among all that are refused
INTERRUPTED = 130  # the exit code of a run that an interrupt ended
START_SECONDS, END_SECONDS = 60.0, 60.0  # until the first request, and from the interrupt to the end
JOB = """\
version: 1
name: pressure
input: {{path: "{rows}", {input}}}
service: {{url: "{url}", auth: {{type: none}}, limits: {{{limits}}}}}
output: {{path: "{out}"}}
errors: {{allow: {allow}}}
"""


class Figure(NamedTuple):
    what: str
    got: float
    least: float = -inf
    most: float = inf
    form: str = "{:.3g}"

    @property
    def met(self) -> bool:
        return self.least <= self.got <= self.most

    @property
    def goal(self) -> str:
        """What the goal is, in words; `-` where there is none."""
        bounds = [("at least", self.least)] * (self.least > -inf) + [("at most", self.most)] * (self.most < inf)
        return ", ".join(f"{word} {self.form.format(bound)}" for word, bound in bounds) or "-"


class Seen(NamedTuple):
    log: Log
    peak_in_service: int
    early_mb: float  # peak memory of the client when two thirds of its time were over
    peak_mb: float


def share(log: Log, phases: Phases, seconds: float) -> float:
    """Return how many requests succeeded, as a share of those for which the slots had time."""
    ends = [at for at, _ in phases[1:]] + [seconds]
    ideal = sum(slots * (end - at) for (at, slots), end in zip(phases, ends, strict=True)) / LATENCY
    return sum(status == 200 and left <= seconds for _, left, status in log) / ideal


def slowest(log: Log, phases: Phases, seconds: float) -> float:
    """Return the 99th percentile of the time in the service, in unloaded times, outside the time after a change."""
    starts = [0.0] + [at + SETTLING for at, _ in phases[1:]]
    spans = list(zip(starts, [at for at, _ in phases[1:]] + [seconds], strict=True))
    times = sorted(left - came for came, left, ok in log if ok == 200 and any(a <= came < b for a, b in spans))
    return times[int(0.99 * len(times))] / LATENCY if times else inf


def late(log: Log) -> int:
    return sum(status == 504 or left - came > DEADLINE for came, left, status in log)


def refused(log: Log) -> float:
    """Return the share of the requests that were refused for their number, once there was time to find out."""
    judged = [status for came, _, status in log if came >= WARMING]
    return judged.count(429) / len(judged) if judged else 0.0


def job(folder: Path, url: str, rows: Path, out: Path, limits: str = "rows: 1", **keys: str) -> list[str]:
    path = folder / "job.yaml"
    given = {"input": "keep: [id]", "allow": "0"} | keys
    path.write_text(JOB.format(url=url, rows=rows, out=out, limits=limits, **given))
    return [BULKSCORE, "run", "--json", "-q", str(path)]


def await_first(process: subprocess.Popen, url: str, folder: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while not stats(url)["log"]:
        if process.poll() is not None or time.monotonic() > end:
            said = (folder / "log").read_text().strip()[-1000:]
            raise ClientError(f"no request within {START_SECONDS:.0f} s: {' '.join(process.args)}\n{said}")
        time.sleep(0.1)


def drive(command: list[str], folder: Path, url: str, seconds: float, *, drains: bool) -> Seen:
    """Let a client ask for so long, then end it: with an interrupt, if it drains at one. Raises ClientError."""
    with running(command, folder) as process:
        await_first(process, url, folder)
        time.sleep(seconds * 2 / 3)  # by then the window has grown
        early = peak_mb(process)
        time.sleep(seconds / 3)
        told = stats(url)
        return Seen(told["log"], told["peak_in_service"], early, interrupted(process) if drains else peak_mb(process))


def interrupted(process: subprocess.Popen) -> float:
    """Interrupt a run, wait for its end, and return the peak memory. Raises ClientError where it does not end well."""
    os.kill(process.pid, signal.SIGINT)  # not send_signal, which waits for one that has ended, and loses its figures
    end = time.monotonic() + END_SECONDS
    while time.monotonic() < end:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode not in {0, INTERRUPTED}:
                raise ClientError(f"{' '.join(process.args)}: exit {process.returncode}")
            return usage.ru_maxrss * 1024 / 1e6
        time.sleep(0.1)
    raise ClientError(f"{' '.join(process.args)}: still there {END_SECONDS:.0f} s after an interrupt")


def fresh(folder: Path, name: str) -> Path:
    """Return a new folder in which a client works."""
    path = folder / name
    path.mkdir()
    return path


def blind(folder: Path, seconds: float, client: str) -> list[Figure]:
    """64 slots of 200 ms, and nobody says so."""
    phases = [(0.0, SLOTS)]
    place, rows = fresh(folder, client), rows_file(folder, int(seconds * SLOTS / LATENCY))
    with server("--slots", str(SLOTS), script="gateway.py") as url:
        ours = client == "bulkscore"
        rival = [*script(f"rival_{client}.py")(rows, url, place), "1"]  # one row a request
        seen = drive(job(place, url, rows, place / "out") if ours else rival, place, url, seconds, drains=ours)
    goals = (0.9, 3.0) if ours else (-inf, inf)
    return [
        Figure("share of the ideal rate", share(seen.log, phases, seconds), least=goals[0], form="{:.1%}"),
        Figure("p99 in the service, unloaded times", slowest(seen.log, phases, seconds), most=goals[1]),
    ]


def steered(folder: Path, seconds: float, phases: Phases, *options: str) -> list[Figure]:
    """A service that changes, or does not bear a queue."""
    place, rows = fresh(folder, "client"), rows_file(folder, int(seconds * SLOTS / LATENCY))
    slots = ",".join([str(phases[0][1]), *(f"{at}:{slots}" for at, slots in phases[1:])])
    with server("--slots", slots, *options, script="gateway.py") as url:
        seen = drive(job(place, url, rows, place / "out"), place, url, seconds, drains=True)
    return [
        Figure("share of the ideal rate", share(seen.log, phases, seconds), least=0.85, form="{:.1%}"),
        Figure("p99 in the service, unloaded times", slowest(seen.log, phases, seconds), most=3.0),
        Figure("requests over their deadline", late(seen.log), most=0),
    ]


def changing(folder: Path, seconds: float) -> list[Figure]:
    return steered(folder, seconds, [(0.0, SLOTS), (seconds / 3, SLOTS // 4), (2 * seconds / 3, SLOTS)])


def collapsing(folder: Path, seconds: float) -> list[Figure]:
    return steered(folder, seconds, [(0.0, SLOTS)], "--collapses")


def overload(folder: Path, seconds: float, *options: str) -> list[Figure]:
    """More than a rate is refused with 429."""
    place, rows = fresh(folder, "client"), rows_file(folder, int(seconds * RATE * 0.9))
    with server("--rate", str(RATE), *options, script="gateway.py") as url:
        command = job(place, url, rows, place / "out")
        measure("bulkscore", command, place, timeout=3 * seconds + START_SECONDS)
        log = stats(url)["log"]
    lost = wrong_answers("bulkscore", rows, place / "out" / "results")
    used = sum(status == 200 for *_, status in log) / RATE / max(left for _, left, _ in log)
    return [
        Figure("rows lost, doubled or out of order", lost, most=0),
        Figure(f"requests refused after {WARMING:.0f} s", refused(log), most=0.02, form="{:.1%}"),
        Figure("share of the rate", used, form="{:.1%}"),
    ]


def memory(seen: Seen) -> list[Figure]:
    return [
        Figure("peak memory, MB", seen.peak_mb, most=400),
        Figure("peak memory, to that after two thirds of the time", seen.peak_mb / max(seen.early_mb, 1.0), most=1.15),
    ]


def many(folder: Path, seconds: float) -> list[Figure]:
    """512 in flight: 2 seconds each, and room for more; longer, for results are held until their receipt, a minute."""
    seconds *= 2.5
    place, rows = fresh(folder, "client"), rows_file(folder, int(seconds * 512 / 2))
    with server("--slots", "1024", "--latency", "2", script="gateway.py") as url:
        seen = drive(job(place, url, rows, place / "out"), place, url, seconds, drains=True)
    return [Figure("most requests in the service", seen.peak_in_service, least=480), *memory(seen)]


def large_bodies(folder: Path, seconds: float) -> list[Figure]:
    """Three files of 2.9 MB in a request are 11.6 MB of base64."""
    place = fresh(folder, "client")
    (place / "photo").write_bytes(os.urandom(2_900_000))
    (place / "list.manifest").write_text("photo\n" * int(1000 * seconds))
    with server("--slots", str(SLOTS), "--files", script="gateway.py") as url:
        command = job(
            place,
            url,
            place / "list.manifest",
            place / "out",
            "timeout: 40s",
            input="format: manifest, send: [content]",
        )
        seen = drive(command, place, url, seconds, drains=True)
    answered = sum(status == 200 for *_, status in seen.log) / seconds
    return [Figure("requests a second", answered), *memory(seen)]


def large_replies(folder: Path, seconds: float) -> list[Figure]:
    """1 MB for each row."""
    place, rows = fresh(folder, "client"), rows_file(folder, int(seconds * SLOTS / LATENCY))
    with server("--slots", str(SLOTS), "--reply", "1000000", script="gateway.py") as url:
        seen = drive(job(place, url, rows, place / "out"), place, url, seconds, drains=True)
    answered = sum(status == 200 for *_, status in seen.log) / seconds
    return [Figure("requests a second", answered), *memory(seen)]


def poison(folder: Path, _: float) -> list[Figure]:
    """Rows that are refused, each among 1,000 in a request, against the same job without them."""
    rows, bad = folder / "poison.jsonl", [2500 + 2 * CHUNK * n for n in range(POISON)]
    names = "sepal_width", "petal_length", "petal_width"
    lines = ({"id": n, "sepal_length": float(n)} | dict.fromkeys(names, 1.5) for n in range(bad[-1] + CHUNK))
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked, dead = [], []
    for planted in [], map(str, bad):
        place = fresh(folder, f"client-{len(asked)}")
        with server("--latency", "0.01", "--poison", *planted, script="gateway.py") as url:
            command = job(place, url, rows, place / "out", f"rows: {CHUNK}", allow=str(POISON))
            told = measure("bulkscore", command, place, timeout=SECONDS).said
            asked.append(int(stats(url)["requests"]))
        dead.append(json.loads(told[told.index("{") :])["dead"])
    return [
        Figure("extra requests for each poison row", (asked[1] - asked[0]) / POISON, most=2 * ceil(log2(CHUNK))),
        Figure("rows that are dead letters and should not, or not and should", abs(dead[1] - POISON) + dead[0], most=0),
    ]


SCENARIOS: dict[str, tuple[str, Callable[[Path, float], list[Figure]]]] = {
    "blind": ("64 slots x 200 ms", partial(blind, client="bulkscore")),
    "aiohttp": ("the same: asyncio + aiohttp, 32 in flight", partial(blind, client="aiohttp")),
    "runinference": ("the same: Beam RunInference + requests", partial(blind, client="runinference")),
    "changing": ("64, then 16, then 64 slots", changing),
    "collapsing": ("collapses when 128 wait", collapsing),
    "429": ("429 above 100/s", overload),
    "retry-after": ("429 above 100/s, Retry-After: 1", lambda *given: overload(*given, "--retry-after", "1")),
    "in-flight": ("2 s each, room for 1,024", many),
    "bodies": ("bodies of 12 MB", large_bodies),
    "replies": ("replies of 1 MB", large_replies),
    "poison": ("8 poison rows, each among 1,000", poison),
}


def table(figures: dict[str, list[Figure]]) -> Iterator[str]:
    rows = [("", "", "figure", "is", "goal")]
    for name, some in figures.items():
        for title, one in zip([SCENARIOS[name][0]] + [""] * len(some), some, strict=False):
            verdict = "" if one.goal == "-" else "ok" if one.met else "MISSED"
            rows.append((verdict, title, one.what, one.form.format(one.got), one.goal))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default=",".join(SCENARIOS), help="some of %(default)s")
    parser.add_argument(
        "--quick", action="store_true", help="a quarter of the time: shows that all works, not how well"
    )
    given = parser.parse_args()
    given.only = given.only.split(",")
    if unknown := {*given.only} - {*SCENARIOS}:
        parser.error(f"--only {', '.join(unknown)}: allowed: {', '.join(SCENARIOS)}")
    return given


def main() -> int:
    given, load = options(), os.getloadavg()[0]
    seconds = SECONDS / 4 if given.quick else SECONDS
    figures: dict[str, list[Figure]] = {}
    failures = []
    for name in given.only:
        sys.stderr.write(f"bench: {name}: {SCENARIOS[name][0]}\n")
        try:
            with tempfile.TemporaryDirectory(prefix="bulkscore-pressure-") as folder:
                figures[name] = SCENARIOS[name][1](Path(folder), seconds)
        except ClientError as failure:
            failures.append(f"{name}: {failure}")
    busy = [f"This machine was busy (load {load:.1f}) at the start: mistrust the rates."] if load > 1 else []
    sys.stdout.write("\n".join([*table(figures), *busy, *failures]) + "\n")
    missed = [f"{SCENARIOS[name][0]}: {one.what}" for name, some in figures.items() for one in some if not one.met]
    for line in [f"goal missed: {one}" for one in missed] + [text.partition("\n")[0] for text in failures]:
        sys.stderr.write(f"bench: {line}\n")
    return 1 if missed or failures else 0


if __name__ == "__main__":
    sys.exit(main())
