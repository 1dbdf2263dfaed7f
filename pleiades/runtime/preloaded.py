"""Imported last by the forkserver, and by no other process: it makes the process ready to be forked.

The children inherit its memory and the settings of its allocator, which are tuned for batches that come
and go a hundred times a second.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc

from setproctitle import setproctitle

from pleiades.runtime.startup import die_with_parent

MALLOC_OPTIONS = {
    -1: 16 * 1024 * 1024,  # M_TRIM_THRESHOLD: keep so much free memory, more than any batch takes.
    -2: 1024 * 1024,  # M_TOP_PAD: grow in steps of this size.
    -3: 8 * 1024 * 1024,  # M_MMAP_THRESHOLD: do not map and unmap smaller blocks one by one.
}
"""From <malloc.h>; see mallopt(3). By default the C library gives each large block back to the kernel,
which fills the next one with zeros: a tenth of the time that a stage spends on an event."""
NEW_OBJECTS = 20_000
"""New containers that start a collection: about a hundred batches. The objects of batches are never in a
cycle; with Python's default of 700 the collector looks at them all the time."""

setproctitle("pleiades: forkserver")
die_with_parent()
# Only glibc has mallopt.
with contextlib.suppress(AttributeError):
    for option, size in MALLOC_OPTIONS.items():
        ctypes.CDLL(None).mallopt(option, size)
gc.collect()
gc.freeze()
gc.set_threshold(NEW_OBJECTS, 10, 10)
