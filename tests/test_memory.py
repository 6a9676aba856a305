"""Large blocks go back to the system."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

HELD = """
import sys
from pathlib import Path
from pipeline.memory import return_large_blocks
if sys.argv[1] == "returned":
    return_large_blocks()
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
bytearray(20_000_000)                         # what is freed first is what glibc learns from
before, blocks, small = resident(), [], []
for _ in range(100):
    blocks.append(bytes(b"x" * 1_000_000))
    small.append(b"x" * 2_000)                # between them is what stays
blocks.clear()
print(resident() - before)
"""

ARROW_HELD = """
import sys
from pathlib import Path
import pyarrow as pa
from pipeline.memory import return_large_blocks
if sys.argv[1] == "returned":
    return_large_blocks(of_arrow=True)
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
def piece():
    return pa.array([bytes(1_000_000)] * 4)
piece()
before, pieces = resident(), [piece() for _ in range(25)]
pieces.clear()
print(resident() - before)
"""


def held(how, script=HELD):
    """Return the bytes that a process still has of 100 MB, in blocks of 1 MB or more that it has freed."""
    done = subprocess.run([sys.executable, "-c", script, how], capture_output=True, text=True, timeout=60, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="there is no glibc")
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="there is no /proc")
def test_freed_blocks_are_no_longer_held():
    """With small ones between them, as results are between bodies; left alone, glibc keeps nearly all."""
    assert held("returned") < 20_000_000 < held("kept")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="there is no glibc")
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="there is no /proc")
def test_freed_arrow_memory_is_no_longer_held():
    """Such as whole files that were read; left alone, Arrow's allocator keeps nearly all."""
    assert held("returned", ARROW_HELD) < 20_000_000 < held("kept", ARROW_HELD)
