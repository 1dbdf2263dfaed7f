"""The process that all children are forked from: it has imported their modules once.

`multiprocessing` starts it, and starts it again after its end. Its children end with it.

Law: it imports the package that this process runs. This process may have found it in the working
directory, from which nothing else is imported, while another version is installed.
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
from pathlib import Path
from typing import NoReturn

import pleiades
from pleiades.runtime.startup import STOP_SIGNALS

START_SECONDS = 30.0  # the longest that a start may take before the forkserver counts as hung

_SAME_PACKAGE = """\
import sys
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("pleiades", {!a})
package = sys.modules["pleiades"] = module_from_spec(spec)
spec.loader.exec_module(package)
"""
"""A module that becomes the package of this file, wherever else a `pleiades` may be found."""


def launch(modules: Iterable[str], folder: str) -> ForkServerContext:
    """Start the forkserver, which imports `modules` while the caller goes on.

    Args:
        folder: private, for its socket and a module. Whoever removes the folder removes these, too.
    """
    _point_to_package(folder)
    # By default the socket lies in a new folder, which a killed parent leaves behind. This path fits
    # into the address of a socket (108 bytes), however long that of the folder is.
    descriptor = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    current_process()._config["tempdir"] = f"/proc/self/fd/{descriptor}"  # type: ignore[attr-defined]  # noqa: SLF001
    main = sys.modules["__main__"]
    if main.__spec__ is None and vars(main).get("__file__", "").endswith("/pleiades"):
        # Otherwise each child would run the console script again, of which it needs nothing.
        main.__spec__ = importlib.util.find_spec("pleiades.__main__")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*modules, "pleiades.runtime.preloaded"])
    # Each start of a child tries again.
    with contextlib.suppress(OSError), _stop_signals_blocked(), _same_package(folder):
        forkserver.ensure_running()
    return context


def start(process: ForkServerProcess, folder: str) -> None:
    """Start a child process.

    Args:
        folder: see `launch`.

    Raises:
        OSError: it could not be started. The next start gets a new forkserver.
    """
    usual = signal.signal(signal.SIGALRM, _give_up)
    signal.setitimer(signal.ITIMER_REAL, START_SECONDS)
    try:
        with _stop_signals_blocked(), _same_package(folder):
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


def _point_to_package(folder: str) -> None:
    package = pleiades.__file__
    # A package in a zip file has no file of its own.
    if package and Path(package).is_file():
        module = Path(folder, "pleiades.py")
        unfinished = module.with_suffix(".new")
        # On a full disk there is no module, instead of half of one, and the installed package counts.
        with contextlib.suppress(OSError):
            unfinished.write_text(_SAME_PACKAGE.format(package))
            unfinished.rename(module)


@contextlib.contextmanager
def _same_package(folder: str) -> Iterator[None]:
    """A forkserver that starts within the block finds `_SAME_PACKAGE` first, and imports nothing from
    its working directory.
    """
    before = {name: os.environ.get(name) for name in ("PYTHONPATH", "PYTHONSAFEPATH")}
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (folder, before["PYTHONPATH"])))
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        for name, text in before.items():
            if text is None:
                del os.environ[name]
            else:
                os.environ[name] = text


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
