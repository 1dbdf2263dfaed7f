"""Makes a process independent of whoever started it, except that a child dies with its parent."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import io
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from pleiades.runtime.errors import Fatal
from pleiades.runtime.output import ESCAPED

T = TypeVar("T", bound=Any)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
STANDARD_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))
"""With their modes, in the order of their descriptors."""
USUAL_DESCRIPTORS = 1024
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def take_nothing_over() -> None:
    """Undo what a launcher can leave in this process; call it first, and in the main thread.

    Raises:
        Fatal: a standard stream is closed, and there is no /dev/null.
    """
    # With SIGCHLD ignored, nobody would learn how a child ended. A blocked signal stops nothing.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # A subreaper would get the children of a killed forkserver, and has to bury them.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0)
    # Whatever else it says, the owner may use what this process makes.
    os.umask(os.umask(0o077) & 0o077)
    for number, (name, mode) in enumerate(STANDARD_STREAMS):
        _open_standard_stream(number, name, mode)
    for stream in (sys.stdout, sys.stderr):
        # A path or title may hold any character; the encoding may be ASCII.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ESCAPED)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies: a stopped process can't do it itself.

    The parent is the thread that started this process; see PR_SET_PDEATHSIG in prctl(2).
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _open_standard_stream(number: int, name: str, mode: str) -> None:
    """Open a standard stream that is closed, or the next file would get its number, and the log."""
    try:
        os.fstat(number)
    except OSError:
        try:
            descriptor = os.open(os.devnull, os.O_RDWR)
        except OSError as error:
            raise Fatal(
                f"{name} is closed, and /dev/null can't be opened: {error.strerror}"
            ) from None
        # The lowest number that is free: those before this one are open.
        os.set_inheritable(descriptor, True)
    if getattr(sys, name) is None:
        setattr(sys, name, os.fdopen(number, mode, closefd=False))


def allow_descriptors(count: int) -> None:
    """Raise the limit of open files to the usual one, if it is lower.

    Args:
        count: the number that a process needs.

    Raises:
        Fatal: it may not have so many.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count:
        raise Fatal(
            f"each process may open {hard} files at a time, and needs {count}. Nothing was read "
            "or written. Raise the limit: ulimit -n in a shell, LimitNOFILE= in systemd"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, USUAL_DESCRIPTORS)), hard))


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
