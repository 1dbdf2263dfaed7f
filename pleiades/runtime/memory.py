"""Tunes memory for batches that come and go a hundred times a second."""

from __future__ import annotations

import contextlib
import ctypes
import gc

MALLOC_OPTIONS = {
    -1: 16 * 1024 * 1024,  # M_TRIM_THRESHOLD: keep so much free memory, more than any batch takes.
    -2: 1024 * 1024,  # M_TOP_PAD: grow in steps of this size.
    -3: 8 * 1024 * 1024,  # M_MMAP_THRESHOLD: do not map and unmap smaller blocks one by one.
}
"""From <malloc.h>; see mallopt(3)."""
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
        for option, value in MALLOC_OPTIONS.items():
            ctypes.CDLL(None).mallopt(option, value)
    gc.collect()
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS, 10, 10)
