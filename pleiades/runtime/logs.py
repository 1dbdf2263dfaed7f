"""Logging of all processes: to standard error, as text or as one JSON object per line.

Law: a record is one line. Control characters are escaped, so that bytes from upstream can neither forge
a line nor control a terminal.
"""

from __future__ import annotations

import logging
import os
import re
import time

import orjson

from pleiades.core.units import iso_time
from pleiades.runtime.output import Output, standard_error

TEXT = "text"
JSON = "json"
MAX_PRINTABLE = 200
CLEAR_LINE = "\r\x1b[2K"

# C0, DEL and C1 controls, line ends that only Unicode has, marks that change the reading direction, and
# halves of surrogate pairs.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_COLOURS = {logging.WARNING: "\x1b[33m", logging.ERROR: "\x1b[31m", logging.DEBUG: "\x1b[2m"}
_NO_COLOUR = "\x1b[0m"


def printable(foreign: str | bytes, limit: int = MAX_PRINTABLE) -> str:
    """Foreign text for a log line: on one line, without controls, cut to `limit` characters."""
    text = foreign[: 4 * limit].decode(errors="replace") if isinstance(foreign, bytes) else foreign
    return _escaped(text[:limit] + ("…" if len(text) > limit else ""))


class Throttle:
    """Limits a message that hostile input could cause thousands of times a second.

    Metrics count every case. The log gets the first one, and then one in `seconds`.
    """

    def __init__(self, seconds: float = 10.0) -> None:
        self._seconds = seconds
        self._next = 0.0

    def due(self) -> bool:
        """Return whether to log now."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True


def _escaped(text: str) -> str:
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, process, logger, message, and exception if there is one."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def _fields(self, record: logging.LogRecord) -> dict[str, str]:
        fields = {
            "time": iso_time(int(record.created * 1000)),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": _escaped(record.getMessage()),
        }
        if record.exc_info:
            trace = self.formatException(record.exc_info).split("\n")
            fields["exception"] = "\n".join(map(_escaped, trace))
        return fields

    def format(self, record: logging.LogRecord) -> str:
        """One record as a line."""
        return orjson.dumps(self._fields(record)).decode()


class TextFormatter(JsonFormatter):
    """`2026-01-31T12:00:00.000Z INFO    reader: connected`; a traceback follows, indented."""

    def __init__(self, process: str, on_terminal: bool, colour: bool) -> None:
        super().__init__(process)
        self._before = CLEAR_LINE if on_terminal else ""
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """One record as a line."""
        fields = self._fields(record)
        line = f"{fields['time']} {record.levelname:7} {self._process}: {fields['message']}"
        if trace := fields.get("exception"):
            line += "\n    " + trace.replace("\n", "\n    ")
        colour = _COLOURS.get(record.levelno, "") if self._colour else ""
        return f"{self._before}{colour}{line}{_NO_COLOUR if colour else ''}"


class OutputHandler(logging.Handler):
    """Writes records without waiting for whoever reads them."""

    def __init__(self, output: Output) -> None:
        super().__init__()
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        try:
            line = self.format(record)
        except Exception:  # a wrong argument must not end the caller
            self.handleError(record)
        else:
            self._output.write(f"{line}\n")

    def flush(self) -> None:
        """See `logging.Handler`; called at the end of the process."""
        self._output.flush()


def configure(level: int, log_format: str, process: str) -> None:
    """Send this process's records to standard error.

    Args:
        level: of `logging`; below WARNING, libraries still log from WARNING on.
        log_format: `TEXT` or `JSON`.
        process: the role, which stands in every line.
    """
    logging.raiseExceptions = False
    output = standard_error()
    on_terminal = output.isatty()
    # https://no-color.org
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    text = TextFormatter(process, on_terminal, on_terminal and not plain)
    handler = OutputHandler(output)
    handler.setFormatter(JsonFormatter(process) if log_format == JSON else text)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.WARNING))
    logging.getLogger("pleiades").setLevel(level)
    logging.captureWarnings(True)


def configured() -> bool:
    """Return whether `configure` was called: from then on, errors are records too."""
    return logging.getLogger("pleiades").level != logging.NOTSET
