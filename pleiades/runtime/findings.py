"""Findings of `pleiades check`."""

from __future__ import annotations

import enum
import time
from functools import partial
from typing import NamedTuple

from pleiades.runtime.errors import EXIT_FAILED, EXIT_STOPPED


class Kind(enum.StrEnum):
    """The severity of a finding."""

    OK = "ok"
    NOTE = "note"
    """Good to know; all is well."""
    WARNING = "warning"
    """`ingest` would start, and may lose or repeat events in a case that the text names."""
    PROBLEM = "problem"
    """`ingest` would not start, or wait for somebody to mend it."""


class Finding(NamedTuple):
    """One line of a check. It may quote anything but secrets."""

    kind: Kind
    text: str
    exit_status: int = EXIT_STOPPED
    """For a problem, the status that `ingest` ends with, or would end with if it did not wait."""


ok, note, warning = (partial(Finding, kind) for kind in (Kind.OK, Kind.NOTE, Kind.WARNING))


def problem(text: str, exit_status: int = EXIT_FAILED) -> Finding:
    """See `Kind.PROBLEM`."""
    return Finding(Kind.PROBLEM, text, exit_status)


def now_ms() -> int:
    """This machine's clock."""
    return time.time_ns() // 1_000_000
