"""Enforces file permissions for root too."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_VERSION_3 = 0x20080522
_DAC_OVERRIDE, _DAC_READ_SEARCH = 1, 2
_PR_CAPBSET_DROP = 24
_OVERRIDES = 1 << _DAC_OVERRIDE | 1 << _DAC_READ_SEARCH


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("thread", ctypes.c_int))


class _Capabilities(ctypes.Structure):
    """Capabilities below 32 first, then the others; see capset(2)."""

    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
        ("others", ctypes.c_uint32 * 3),
    )


def drop_overrides() -> Callable[[], None]:
    """Bind this thread and its children by file permissions; returns a function that undoes this."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, capabilities = _Header(_VERSION_3, 0), _Capabilities()

    def call(function: str) -> None:
        if getattr(libc, function)(ctypes.byref(header), ctypes.byref(capabilities)):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), function)

    def restore() -> None:
        capabilities.effective = before
        call("capset")

    call("capget")
    before = capabilities.effective
    capabilities.effective = before & ~_OVERRIDES
    call("capset")
    return restore


def drop_overrides_for_good() -> None:
    """Bind this process by file permissions, also after an execve(2), which gives root all privileges
    that are in the bounding set."""
    drop_overrides()
    for capability in (_DAC_OVERRIDE, _DAC_READ_SEARCH):
        ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, capability)


@contextmanager
def permissions_hold() -> Iterator[None]:
    """Bind this thread by file permissions within the block, even as root."""
    restore = drop_overrides()
    try:
        yield
    finally:
        restore()
