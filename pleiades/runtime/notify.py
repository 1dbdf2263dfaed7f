"""Tells systemd how the service is (sd_notify(3)): ready, alive, stopping. Elsewhere it does nothing.

The watchdog is fed from the loop that looks after all processes: as long as that turns, whatever dies or
hangs is started again; when it does not, nothing but the watchdog helps.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

FED_PER_INTERVAL = 4
"""So many times in each interval of the watchdog."""


class Notify:
    """The other end is named in the environment, as systemd does it; children do not inherit it."""

    def __init__(self) -> None:
        address = os.environ.pop("NOTIFY_SOCKET", "")
        interval_us = os.environ.pop("WATCHDOG_USEC", "")
        addressee = os.environ.pop("WATCHDOG_PID", "")
        # A name that begins with @ is none of a file (unix(7), abstract).
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._fed_seconds: float | None = None
        if interval_us.isdecimal() and addressee in ("", str(os.getpid())):
            self._fed_seconds = int(interval_us) / 1e6 / FED_PER_INTERVAL
        self._fed = 0.0
        self._ready = False
        self._status = ""

    def turn(self, unready: Callable[[], list[str]]) -> None:
        """The loop has turned.

        Args:
            unready: tells what is still missing; a line of it is what `systemctl status` shows.
        """
        if not self._address:
            return
        lines = []
        missing = unready()
        status = "; ".join(missing) or "relaying"
        if status != self._status:
            self._status = status
            lines.append(f"STATUS={status}")
        # Said once: systemd knows no way back.
        if not missing and not self._ready:
            self._ready = True
            lines.append("READY=1")
        now = time.monotonic()
        if self._fed_seconds is not None and now - self._fed >= self._fed_seconds:
            self._fed = now
            lines.append("WATCHDOG=1")
        self._send(lines)

    def stopping(self) -> None:
        """A stop has begun."""
        self._send(["STOPPING=1"])

    def _send(self, lines: list[str]) -> None:
        if not self._address or not lines:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as end:
                end.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            log.debug("can't tell systemd: %s", error)
