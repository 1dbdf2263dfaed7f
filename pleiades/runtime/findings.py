"""What `pleiades check` finds: one value a line, and what each means for the exit status.

Law: a finding is one line without controls, whatever it quotes, and holds no secret.
"""

from __future__ import annotations

import enum
import logging
from dataclasses import dataclass

import orjson

from pleiades.runtime import logs
from pleiades.runtime.errors import EXIT_FAILED, EXIT_STOPPED, Fatal

MAX_TEXT = 2000


class Kind(enum.StrEnum):
    """How much a finding matters."""

    OK = "ok"
    NOTE = "note"
    """Good to know; all is well."""
    WARNING = "warning"
    """`ingest` would start, and may lose or repeat events in a case that the text names."""
    PROBLEM = "problem"
    """`ingest` would not start, or wait for somebody to mend it."""


LEVELS = {Kind.WARNING: logging.WARNING, Kind.PROBLEM: logging.ERROR}
"""How `-q` weighs a kind; the others are information."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found."""

    part: str
    """What was looked at: `configuration`, `upstream`, `destination` or `metrics`."""
    kind: Kind
    text: str
    exit_status: int = EXIT_STOPPED
    """Of a problem: what `ingest` ends with, or would if it did not wait."""

    @property
    def level(self) -> int:
        """Its weight among the levels of `logging`."""
        return LEVELS.get(self.kind, logging.INFO)

    def line(self, log_format: str) -> str:
        """As text or as a JSON object."""
        text = logs.printable(self.text, MAX_TEXT)
        if log_format == logs.JSON:
            return orjson.dumps({"part": self.part, "kind": self.kind, "text": text}).decode()
        return f"{self.kind:7} {self.part:13} {text}"


def ok(part: str, text: str) -> Finding:
    """All is well."""
    return Finding(part, Kind.OK, text)


def note(part: str, text: str) -> Finding:
    """See `Kind.NOTE`."""
    return Finding(part, Kind.NOTE, text)


def warning(part: str, text: str) -> Finding:
    """See `Kind.WARNING`."""
    return Finding(part, Kind.WARNING, text)


def problem(part: str, text: str, exit_status: int = EXIT_FAILED) -> Finding:
    """See `Kind.PROBLEM`."""
    return Finding(part, Kind.PROBLEM, text, exit_status)


def of(part: str, error: Fatal) -> Finding:
    """The problem that ends `ingest` with this error."""
    return problem(part, str(error), error.exit_status)
