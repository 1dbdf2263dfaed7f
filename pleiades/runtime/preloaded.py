"""Imported last by the forkserver, and by no other process: it makes the process ready to be forked.

The children inherit its memory and the settings of its allocator.
"""

from __future__ import annotations

from setproctitle import setproctitle

from pleiades.runtime import memory
from pleiades.runtime.child import die_with_parent

setproctitle("pleiades: forkserver")
die_with_parent()
memory.tune()
