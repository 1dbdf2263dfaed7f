"""Makes a process independent of whoever started it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def take_nothing_over() -> None:
    """Undo what a launcher can leave in this process; call it first, and in the main thread."""
    # With SIGCHLD ignored, nobody would learn how a child ended. A blocked signal stops nothing.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # A closed standard stream would be the number of the next file or socket, and get what is logged.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def on_stop_signals(handler: Callable[[int, FrameType | None], object]) -> None:
    """Have the signals that ask for a stop call `handler`."""
    for number in STOP_SIGNALS:
        # nohup(1) has SIGHUP ignored, and means it. A shell also ignores SIGINT in the background.
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def leave_working_directory() -> None:
    """Settings are absolute by now. A directory that is removed, or that holds a `socket.py`, must not
    matter to this process or those that it starts.
    """
    os.chdir("/")
