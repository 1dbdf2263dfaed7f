"""Tunes memory for batches that come and go a hundred times a second."""

from __future__ import annotations

import contextlib
import ctypes
import gc

# From <malloc.h>; see mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3

KEPT_BYTES = 16 * 1024 * 1024
"""Free memory that the C library keeps; more than any batch takes."""
MAPPED_FROM_BYTES = 8 * 1024 * 1024
"""Smaller blocks are not mapped and unmapped one by one."""
GROWN_BY_BYTES = 1024 * 1024
NEW_OBJECTS = 20_000
"""New containers that start a collection: about a hundred batches. The objects of batches are never in a
cycle; with Python's default of 700 the collector looks at them all the time."""


def tune() -> None:
    """Tune the C library and Python, once the process has imported its modules.

    By default the C library gives each large block back to the kernel at once, and the kernel fills the
    next one with zeros: a tenth of the time that a stage spends on an event.
    """
    # Only glibc has mallopt.
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, MAPPED_FROM_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_M_TOP_PAD, GROWN_BY_BYTES)
    gc.collect()
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS, 10, 10)
