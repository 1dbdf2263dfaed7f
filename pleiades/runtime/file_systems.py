"""Calls that a file system lacks: their errors, and the file system that a path lies on."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from pathlib import Path

REFUSALS = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM})
"""The file system or the kernel does not have the call: a retry would not help."""


def file_system_of(path: Path | str) -> str:
    """The type of the file system that a path lies on, and its mount point: `nfs4, mounted at /srv`."""
    place = os.path.realpath(path)
    found, best = "unknown", ""
    mounts = b""
    with contextlib.suppress(OSError):
        mounts = Path("/proc/self/mountinfo").read_bytes()
    for mount in os.fsdecode(mounts).splitlines():
        # See proc(5): the mount point is the fifth field, the type is the first after the hyphen.
        before, _, after = mount.partition(" - ")
        point = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), before.split(" ")[4])
        is_above = place == point or place.startswith(f"{point.rstrip('/')}/")
        # Of two mounts at one place, the later one is visible.
        if is_above and len(point) >= len(best):
            found, best = f"{after.split(' ')[0]}, mounted at {point}", point
    return found
