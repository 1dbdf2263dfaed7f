"""All errors, and the exit statuses.

A `Transient` error is retried in place with backoff. A `Fatal` error ends the program with its exit
status, because a retry is of no use. A bad event is no error but an event with a reason.
`GenerationLost` ends the process, and the parent restarts the pipeline; so it does after any other
exception, which is a bug.
"""

from __future__ import annotations

EXIT_STOPPED = 0  # on request
EXIT_FAILED = 1  # a final error without a status of its own, or exhausted restarts
EXIT_USAGE = 2  # the command line, environment or configuration file is wrong
EXIT_REFUSED = 3  # the upstream refused the request (400, 403, 404)
EXIT_HELD = 4  # another instance holds the destination
EXIT_INTERRUPTED = 5  # a replay was stopped before its end; the same command continues it
EXIT_INCOMPLETE = 6  # the upstream no longer has the whole range of a replay


class PleiadesError(Exception):
    """An operator reads its text: what happened, what it means for the events, what to do."""


class Transient(PleiadesError):
    """Worth a retry in the same process.

    Attributes:
        kind: a short constant name for metrics and logs, e.g. `throttled`.
        retry_after_seconds: the shortest pause that the other side asked for.
    """

    def __init__(self, message: str, kind: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.retry_after_seconds = retry_after_seconds


class Fatal(PleiadesError):
    """A retry is of no use; the program ends with `exit_status`."""

    exit_status = EXIT_FAILED


class UsageError(Fatal):
    """A flag, an environment variable or a key of the configuration file is wrong."""

    exit_status = EXIT_USAGE


class RefusedByUpstream(Fatal):
    """The upstream will never serve this request."""

    exit_status = EXIT_REFUSED


class DestinationHeld(Fatal):
    """Another instance writes to the same destination."""

    exit_status = EXIT_HELD


class HistoryMissing(Fatal):
    """The upstream no longer has all events that were asked for."""

    exit_status = EXIT_INCOMPLETE


class MetricsUnavailable(Fatal):
    """/metrics can't be served at the configured address."""


class GenerationLost(PleiadesError):
    """This process can't go on, but a new one can: the pipeline restarts, without a traceback."""


class Stopped(PleiadesError):
    """A stop was requested during a wait, and ends it. Not an error."""
