"""The process that all children are forked from: it has imported their modules once.

`multiprocessing` starts it, and starts it again after its end. Its children end with it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from multiprocessing import current_process, forkserver, resource_tracker
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import NoReturn

from pleiades.runtime.startup import STOP_SIGNALS

START_SECONDS = 30.0  # the longest that a start may take before the forkserver counts as hung


def launch(modules: Iterable[str], folder: str) -> ForkServerContext:
    """Start the forkserver, which imports `modules` while the caller goes on.

    Args:
        folder: where its socket lies. Whoever removes the folder removes that too.
    """
    # By default it lies in a new folder, which a killed parent leaves behind. This path fits into the
    # address of a socket (108 bytes), however long that of the folder is.
    descriptor = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    current_process()._config["tempdir"] = f"/proc/self/fd/{descriptor}"  # type: ignore[attr-defined]  # noqa: SLF001
    main = sys.modules["__main__"]
    if main.__spec__ is None and vars(main).get("__file__", "").endswith("/pleiades"):
        # Otherwise each child would run the console script again, of which it needs nothing.
        main.__spec__ = importlib.util.find_spec("pleiades.__main__")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*modules, "pleiades.runtime.preloaded"])
    # Each start of a child tries again.
    with contextlib.suppress(OSError), _stop_signals_blocked():
        forkserver.ensure_running()
    return context


def start(process: ForkServerProcess) -> None:
    """Start a child process.

    Raises:
        OSError: it could not be started. The next start gets a new forkserver.
    """
    usual = signal.signal(signal.SIGALRM, _give_up)
    signal.setitimer(signal.ITIMER_REAL, START_SECONDS)
    try:
        with _stop_signals_blocked():
            process.start()
    except EOFError:
        kill()
        raise ConnectionError("the forkserver died") from None
    except OSError:
        kill()
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, usual)


def pid() -> int | None:
    """Its process id."""
    found: int | None = getattr(forkserver, "_forkserver")._forkserver_pid  # noqa: B009, SLF001
    return found


def kill() -> None:
    """End it and all its children; the next start gets a new one."""
    if (running := pid()) is not None:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(running, signal.SIGKILL)
            # `multiprocessing` must find it dead, and reaps it.
            os.waitid(os.P_PID, running, os.WEXITED | os.WNOWAIT)


@contextlib.contextmanager
def _stop_signals_blocked() -> Iterator[None]:
    """A stop signal for the whole process group must not end a process that can't handle it yet. The
    forkserver never can; each child unblocks these signals when it can.
    """
    try:
        # The start of the resource tracker unblocks them, up to Python 3.12.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def _give_up(*_: object) -> NoReturn:
    raise TimeoutError(f"the forkserver has not answered for {START_SECONDS:.0f} s")
