"""Reports to systemd, if it started the program (sd_notify(3)): ready, alive, stopping.

The loop that watches all processes feeds the watchdog. While it turns, it restarts whatever dies or
hangs; when it does not, only the watchdog helps.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

FED_PER_INTERVAL = 4  # the number of times that the watchdog is fed in each of its intervals


class Notify:
    """systemd names its socket in the environment. It is removed there: children must not use it."""

    def __init__(self) -> None:
        address = os.environ.pop("NOTIFY_SOCKET", "")
        interval_us = os.environ.pop("WATCHDOG_USEC", "")
        addressee = os.environ.pop("WATCHDOG_PID", "")
        # `@` stands for the zero byte of an abstract name (unix(7)).
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._fed_seconds = float("inf")
        if interval_us.isdecimal() and addressee in ("", str(os.getpid())):
            self._fed_seconds = int(interval_us) / 1e6 / FED_PER_INTERVAL
        self._fed = 0.0
        self._ready = False
        self._status = ""

    def turn(self, unready: Callable[[], list[str]]) -> None:
        """Report a turn of the loop; `unready` names what is missing, for `systemctl status`."""
        if not self._address:
            return
        lines = []
        missing = unready()
        status = "; ".join(missing) or "relaying"
        if status != self._status:
            self._status = status
            lines.append(f"STATUS={status}")
        # Sent once: systemd knows no way back.
        if not missing and not self._ready:
            self._ready = True
            lines.append("READY=1")
        now = time.monotonic()
        if now - self._fed >= self._fed_seconds:
            self._fed = now
            lines.append("WATCHDOG=1")
        if lines:
            self._send("\n".join(lines))

    def stopping(self) -> None:
        """Report that a stop has begun."""
        if self._address:
            self._send("STOPPING=1")

    def _send(self, text: str) -> None:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as end:
                end.sendto(text.encode(), self._address)
        except OSError as error:
            log.debug("can't notify systemd: %s", error)
