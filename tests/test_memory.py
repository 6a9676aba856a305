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


def held(how):
    """Return the bytes that a process still has of 100 MB, in blocks of 1 MB that it has freed."""
    done = subprocess.run([sys.executable, "-c", HELD, how], capture_output=True, text=True, timeout=60, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="there is no glibc")
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="there is no /proc")
def test_freed_blocks_are_no_longer_held():
    """With small ones between them, as results are between bodies; left alone, glibc keeps nearly all."""
    assert held("returned") < 20_000_000 < held("kept")
