"""Retries of what a directory refuses: a full disk is no reason to skip an event."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from prometheus_client import Counter

from pleiades.core.backoff import Backoff
from pleiades.runtime.child import ChildContext
from pleiades.runtime.errors import DestinationHeld, Fatal
from pleiades.runtime.file_systems import file_system_of

log = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_BACKOFF = Backoff(first_seconds=0.1, max_seconds=5.0)
LOCK_WAIT_SECONDS = 4.0
"""A start waits this long for the lock: children of a SIGKILLed parent leave within two seconds."""
LOCK_POLL_SECONDS = 0.1

# These may be cured while the relay runs. At the start they point to a mistake on the command line, or
# to a file system that does not have a call.
FATAL_AT_START = (
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.ENOLCK,
    errno.EXDEV,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EINVAL,
)


def refusal(error: OSError, directory: Path) -> str:
    """The refused call, and the file system that refused it."""
    paths = [str(path) for path in (error.filename, error.filename2) if path is not None]
    where = f"{' to '.join(paths)}: " if paths else ""
    return f"{where}{error.strerror} (file system: {file_system_of(directory)})"


class Once:
    """Makes an attempt and does not repeat it."""

    def __call__(
        self,
        operation: str,
        attempt: Callable[[], T],
        prepare: Callable[[], None],
        is_start: bool = False,
    ) -> T:
        """Return the attempt's result.

        Args:
            operation: describes it in messages.
            prepare: is called before each further attempt: it repairs what it can.
        """
        return attempt()


class Retry(Once):
    """Repeats an attempt until it succeeds, each in a thread: a disk may block for any time.

    Args:
        errors: counts failed attempts.
        directory: the destination.
        flag: chooses it.
    """

    def __init__(self, child: ChildContext, errors: Counter, directory: Path, flag: str) -> None:
        self._child = child
        self._errors = errors
        self._directory = directory
        self._flag = flag

    def __call__(
        self,
        operation: str,
        attempt: Callable[[], T],
        prepare: Callable[[], None],
        is_start: bool = False,
    ) -> T:
        """See `Once`.

        Raises:
            Fatal: at the start, an error that points to a mistake on the command line.
            DestinationHeld: another instance holds the directory, after `LOCK_WAIT_SECONDS`.
            Stopped: a stop was requested.
        """

        def attempt_again() -> T:
            prepare()
            return attempt()

        def announce(seconds: float) -> None:
            log.warning(
                "it takes %.0f s already to %s %s: the disk is slow, or hangs. No event is lost: the "
                "relay waits, and reads no further",
                seconds,
                operation,
                self._directory,
            )

        deadline = time.monotonic() + LOCK_WAIT_SECONDS
        call, failures, was_ready = attempt, 0, self._child.ready
        while True:
            try:
                result = self._child.run_in_thread(call, announce)
            except DestinationHeld:
                if time.monotonic() >= deadline:
                    raise
                pause_seconds = LOCK_POLL_SECONDS
            except OSError as error:
                if is_start and error.errno in FATAL_AT_START:
                    raise Fatal(
                        f"can't {operation} {self._directory}: {refusal(error, self._directory)}. "
                        f"Nothing was published. Choose another {self._flag}, or mend its "
                        "permissions or its mount"
                    ) from None
                failures += 1
                pause_seconds = RETRY_BACKOFF.pause_seconds(failures, jitter=1.0)
                self._errors.inc()
                self._child.report_problem(f"can't {operation} {self._directory}: {error.strerror}")
                self._child.ready = False
                log.error(
                    "can't %s %s: %s. Nothing is skipped: trying again in %.1f s. Make room, or give "
                    "the permission back",
                    operation,
                    self._directory,
                    error,
                    pause_seconds,
                )
            else:
                seconds = self._child.clear_problem()
                if seconds is not None:
                    log.info("can %s %s again, after %.0f s", operation, self._directory, seconds)
                    self._child.ready = was_ready
                return result
            self._child.pause(pause_seconds)
            call = attempt_again
