"""Makes a process independent of whoever started it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from pleiades.runtime.errors import Fatal

T = TypeVar("T", bound=Any)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
STANDARD_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))
"""With their modes, in the order of their descriptors."""


def take_nothing_over() -> None:
    """Undo what a launcher can leave in this process; call it first, and in the main thread."""
    # With SIGCHLD ignored, nobody would learn how a child ended. A blocked signal stops nothing.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # A closed standard stream would be the number of the next file or socket, and get what is logged.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < len(STANDARD_STREAMS):
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for number, (name, mode) in enumerate(STANDARD_STREAMS):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def on_stop_signals(handler: Callable[[int, FrameType | None], object]) -> None:
    """Have the signals that ask for a stop call `handler`."""
    for number in STOP_SIGNALS:
        # nohup(1) has SIGHUP ignored, and means it. A shell also ignores SIGINT in the background.
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


@contextlib.contextmanager
def in_root_directory() -> Iterator[None]:
    """Make all processes independent of the working directory, which may be removed, may not be entered,
    or may hold a `socket.py`.
    """
    here = None
    with contextlib.suppress(OSError):
        here = os.open(".", os.O_PATH | os.O_CLOEXEC)
    os.chdir("/")
    try:
        yield
    finally:
        if here is not None:
            with contextlib.suppress(OSError):
                os.chdir(here)
            os.close(here)


def absolute(settings: T) -> T:
    """The same settings, with paths that hold in any working directory.

    Raises:
        Fatal: a path is relative, and there is no working directory.
    """
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, Path):
            try:
                changed[field.name] = value.absolute()
            except OSError:
                raise Fatal(
                    f"the working directory is gone, and {str(value)!r} is relative to it. No event was "
                    "read or written. Give an absolute path"
                ) from None
        elif dataclasses.is_dataclass(value):
            changed[field.name] = absolute(value)
    return dataclasses.replace(settings, **changed)
