"""How the processes log: to standard error, as text or as one JSON object a line.

Law: a record is one line, whatever it is about: control characters are escaped, so that bytes of the
upstream can't forge a line or steer a terminal.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from datetime import UTC, datetime

import orjson

TEXT = "text"
JSON = "json"
MAX_PRINTABLE = 200

# C0, DEL and C1 controls, the line ends that only Unicode knows, and what turns the reading direction.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_CLEAR_LINE = "\r\x1b[2K"
_COLOURS = {logging.WARNING: "\x1b[33m", logging.ERROR: "\x1b[31m", logging.DEBUG: "\x1b[2m"}
_NO_COLOUR = "\x1b[0m"


def printable(foreign: str | bytes, limit: int = MAX_PRINTABLE) -> str:
    """Foreign text for a log line: on one line, without controls, cut to `limit` characters."""
    text = foreign[: 4 * limit].decode(errors="replace") if isinstance(foreign, bytes) else foreign
    cut = text[:limit] + ("…" if len(text) > limit else "")
    return _escaped(cut)


class Seldom:
    """Holds back a message that hostile input could bring thousands of times a second.

    The metrics count every case; the log tells of the first, and of one in each `seconds` after it.
    """

    def __init__(self, seconds: float = 10.0) -> None:
        self._seconds = seconds
        self._next = 0.0

    def due(self) -> bool:
        """Whether to log now."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True


def _escaped(text: str) -> str:
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _time(record: logging.LogRecord) -> str:
    when = datetime.fromtimestamp(record.created, UTC)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO    reader: connected`; a traceback follows, indented."""

    def __init__(self, process: str, on_terminal: bool, colour: bool) -> None:
        super().__init__()
        self._process = process
        self._before = _CLEAR_LINE if on_terminal else ""
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """One record as text."""
        message = _escaped(record.getMessage())
        line = f"{_time(record)} {record.levelname:7} {self._process}: {message}"
        if record.exc_info:
            trace = self.formatException(record.exc_info)
            line += "".join("\n    " + _escaped(part) for part in trace.split("\n"))
        colour = _COLOURS.get(record.levelno, "") if self._colour else ""
        return f"{self._before}{colour}{line}{_NO_COLOUR if colour else ''}"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, process, logger, message, and exception if there is one."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """One record as JSON."""
        fields = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": _escaped(record.getMessage()),
        }
        if record.exc_info:
            trace = self.formatException(record.exc_info)
            fields["exception"] = "\n".join(map(_escaped, trace.split("\n")))
        return orjson.dumps(fields).decode()


def configure(level: int, log_format: str, process: str) -> None:
    """Send this process's records to standard error.

    Args:
        level: of `logging`; below WARNING, libraries still log from WARNING on.
        log_format: `text` or `json`.
        process: the role that stands in every line.
    """
    # Never raise out of a log call because the terminal or pipe behind it is gone or odd.
    logging.raiseExceptions = False
    on_terminal = sys.stderr.isatty()
    stream = logging.StreamHandler(sys.stderr)
    if log_format == JSON:
        stream.setFormatter(JsonFormatter(process))
    else:
        colour = on_terminal and not _no_colour()
        stream.setFormatter(TextFormatter(process, on_terminal, colour))
    root = logging.getLogger()
    root.handlers[:] = [stream]
    root.setLevel(max(level, logging.WARNING))
    logging.getLogger("pleiades").setLevel(level)
    logging.captureWarnings(True)


def configured() -> bool:
    """Whether `configure` was called: from then on whoever reads errors reads records."""
    return logging.getLogger("pleiades").level != logging.NOTSET


def _no_colour() -> bool:
    # https://no-color.org
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
