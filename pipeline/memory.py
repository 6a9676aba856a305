"""How memory that was given back is kept."""

from __future__ import annotations

import ctypes
from typing import Final

import pyarrow as pa

LARGE: Final = 128 << 10
"""Bytes from which on a block is mapped by itself, and goes back to the system when it is freed."""

_MMAP_THRESHOLD: Final = -3  # malloc.h's number


def return_large_blocks(*, of_arrow: bool = False) -> None:
    """Have large blocks go back to the system, for good; where there is no glibc, nothing is done.

    Glibc begins so, but learns from the first large body that is freed to keep those that follow, in a heap for each
    thread: many bodies of 1 MB at once then leave holes of hundreds of megabytes. Arrow has an allocator of its own,
    which keeps some 70 MB where rows are files; `of_arrow` makes it take from glibc, at more CPU for each block.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, LARGE)
        if of_arrow:
            pa.set_memory_pool(pa.system_memory_pool())
