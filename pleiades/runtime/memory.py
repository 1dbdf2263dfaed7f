"""How a stage's process keeps memory: for batches that come and go a hundred times a second."""

from __future__ import annotations

import contextlib
import ctypes
import gc

# From <malloc.h>, mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3

KEPT_BYTES = 16 * 1024 * 1024
"""What the C library keeps at most of what is free at its end; more than any batch takes."""
MAPPED_FROM_BYTES = 8 * 1024 * 1024
"""Smaller blocks are not mapped and unmapped one by one."""
GROWN_BY_BYTES = 1024 * 1024
NEW_OBJECTS = 20_000
"""So many new containers start a collection: about a hundred batches. Of those that batches are made of
none is ever in a cycle, and Python's 700 have it look at them all the time."""


def tune() -> None:
    """Set the C library's and Python's memory up, once the process has imported what it needs.

    By default the C library gives each large block back to the kernel at once and gets the next one
    filled with zeros, page by page: a tenth of the time a stage needs for an event.
    """
    # Other C libraries than glibc have no mallopt, and other ways.
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, MAPPED_FROM_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_M_TOP_PAD, GROWN_BY_BYTES)
    gc.collect()
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS, 10, 10)
