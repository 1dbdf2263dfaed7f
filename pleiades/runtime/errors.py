"""The one tree of errors, and the exit statuses.

Three kinds: `Transient` is tried again in place with backoff; `Fatal` ends the program with the
status it carries, because another try is of no use; a bad event is no exception at all but a
`DeadLetter` value. `GenerationLost` ends the process only: the parent starts afresh. So it does after
anything else that is raised, which is a bug.
"""

from __future__ import annotations

EXIT_STOPPED = 0
"""Stopped on request."""
EXIT_FAILED = 1
"""Anything final that has no status of its own; restarts exhausted."""
EXIT_USAGE = 2
"""The command line, environment or configuration file is wrong."""
EXIT_REFUSED = 3
"""The upstream refused the request (400, 403, 404)."""
EXIT_HELD = 4
"""Another instance holds the destination."""
EXIT_INTERRUPTED = 5
"""A replay was stopped before its end; started again it goes on."""
EXIT_INCOMPLETE = 6
"""A replay whose range the upstream no longer has in whole."""


class PleiadesError(Exception):
    """What an operator reads: what happened, what it means for the events, what to do."""


class Transient(PleiadesError):
    """Worth another try in the same process.

    Attributes:
        kind: a short constant name for metrics and logs, e.g. `throttled`.
        retry_after_seconds: the earliest moment for the next try that the other side asked for.
    """

    def __init__(self, message: str, kind: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.retry_after_seconds = retry_after_seconds


class Fatal(PleiadesError):
    """Another try is of no use; the program ends with `exit_status`."""

    exit_status = EXIT_FAILED


class UsageError(Fatal):
    """A flag, an environment variable or a key of the configuration file is wrong."""

    exit_status = EXIT_USAGE


class RefusedByUpstream(Fatal):
    """The upstream answered that this request will never be served."""

    exit_status = EXIT_REFUSED


class DestinationHeld(Fatal):
    """Another instance writes to the same destination."""

    exit_status = EXIT_HELD


class HistoryMissing(Fatal):
    """The upstream no longer has all that was asked for."""

    exit_status = EXIT_INCOMPLETE


class MetricsUnavailable(Fatal):
    """/metrics can't be served where it was asked for."""


class GenerationLost(PleiadesError):
    """This process can't go on, but a new one can: the pipeline starts again, without a traceback."""


class Stopped(PleiadesError):
    """A stop was requested while waiting. Not an error: it only ends the wait."""
