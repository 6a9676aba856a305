"""The fuzzer itself: it fails where a property does, and ends in time where none does."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
FUZZ = Path(__file__).with_name("fuzz.py")
CONFTEST = """
from hypothesis import settings
settings.register_profile("fuzz", max_examples=50, deadline=None)
"""
PROPERTY = """
from hypothesis import given, strategies as st

@given(st.integers(0, 1000))
def test_numbers(number):
    assert number < {bound}
"""


def fuzz(folder, *, bound, seconds):
    """Fuzz one planted property; return the exit code and what was told."""
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_planted.py").write_text(PROPERTY.format(bound=bound))
    line = [sys.executable, FUZZ, f"--seconds={seconds}", "--seed=7", folder / "test_planted.py"]
    done = subprocess.run(line, check=False, capture_output=True, text=True, cwd=folder, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_the_fuzzer_fails_where_a_property_does_and_says_how_to_see_it_again(tmp_path):
    """It stops at the first finding, and the command that it names finds it again."""
    code, told = fuzz(tmp_path, bound=10, seconds=50)
    assert code == 1
    assert told.startswith("seed 7  test_planted  ")
    assert "FAILED" in told.splitlines()[0]
    again = told.splitlines()[-1].removeprefix("to see it again: ")
    assert "--hypothesis-seed=7" in again
    seen = subprocess.run(again, shell=True, check=False, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert seen.returncode == 1
    assert "number=10" in seen.stdout


def test_the_fuzzer_goes_on_with_other_seeds_until_the_time_is_over(tmp_path):
    """A line for each round, with its seed and its examples; the last round may be cut short."""
    began = time.monotonic()
    code, told = fuzz(tmp_path, bound=1001, seconds=12)
    assert code == 0
    assert time.monotonic() - began < 30
    first, *others = told.splitlines()
    assert re.fullmatch(r"seed 7  test_planted  50 examples  \d+ s  passed", first)
    assert [line.split()[:3] for line in others] == [
        ["seed", str(8 + number), "test_planted"] for number in range(len(others))
    ]


def test_the_fuzzer_ends_in_time_even_within_a_round(tmp_path):
    """A round that would take longer is cut short, which is no finding."""
    code, told = fuzz(tmp_path, bound=1001, seconds=0.1)
    assert code == 0
    assert re.fullmatch(r"seed 7  test_planted  \d+ examples  \d+ s  cut short, the time is over\n", told)
