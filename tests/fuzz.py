"""Try the properties again and again, each round with a seed of its own, until the time is over or one fails."""

from __future__ import annotations

import argparse
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from itertools import count, cycle
from pathlib import Path

TESTS = Path(__file__).parent
PROPERTIES = sorted(
    path.name for pattern in ("test_*_property.py", "test_fuzz_*.py", "test_kills.py") for path in TESTS.glob(pattern)
)
HANGING = 1800
"""Seconds after which a test is taken to hang, which is a finding too."""

ENDING = 15
"""Seconds that a round has to tidy up when the time is over."""

EXAMPLES = re.compile(r"(\d+) passing")


def command(test, seed):
    """Return what runs the properties of one file, and reproduces what they find."""
    options = ["-q", "-x", "-m", "hypothesis", "-p", "no:cacheprovider", f"--timeout={HANGING}"]
    fuzzing = ["--hypothesis-profile=fuzz", f"--hypothesis-seed={seed}", "--hypothesis-show-statistics"]
    return [sys.executable, "-m", "pytest", os.path.relpath(test), *options, *fuzzing]


def fuzz(tests, seconds, seed):
    """Run round after round; return the exit code: 0 when the time is over without a finding."""
    ends = time.monotonic() + seconds
    for test, number in zip(cycle(tests), count(seed)):
        began = time.monotonic()
        line = command(test, number)
        code, told = run(line, ends - began)
        examples = sum(map(int, EXAMPLES.findall(told)))
        outcome = {0: "passed", None: "cut short, the time is over"}.get(code, "FAILED")
        took = time.monotonic() - began
        print(f"seed {number}  {Path(test).stem}  {examples} examples  {took:.0f} s  {outcome}", flush=True)
        if code:
            print(f"{told}\nto see it again: {shlex.join(line)}", flush=True)
            return 1
        if code is None or time.monotonic() >= ends:
            return 0
    return 2


def run(line, seconds):
    """Run a command with all it starts; return its exit code, None where it was cut short, and what it told."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(line, **pipes, text=True, errors="replace", start_new_session=True) as running:
        try:
            told, _ = running.communicate(timeout=max(0.1, seconds))
        except subprocess.TimeoutExpired:
            return None, end(running)
        except KeyboardInterrupt:
            end(running)
            raise
    return running.returncode, told


def end(running):
    """Interrupt a command with all it started, so that it tidies up; return what it told."""
    os.killpg(running.pid, signal.SIGINT)
    try:
        return running.communicate(timeout=ENDING)[0]
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)
        return running.communicate()[0]


def main():
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32), help="of the first round")
    parser.add_argument("tests", nargs="*", default=[TESTS / name for name in PROPERTIES], help="files of properties")
    given = parser.parse_args()
    return fuzz(given.tests, given.seconds, given.seed)


if __name__ == "__main__":
    sys.exit(main())
