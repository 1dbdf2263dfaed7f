"""The program that uploads closed segments: `python -P -m pleiades.sinks.archive.upload_program`.

Standard input: `upload.Settings`, then for each change a line with the bytes up to which the manifest is
valid. Standard output: lines of `upload.Status`. It ends when its input is closed.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import threading
import time
from typing import NoReturn

from setproctitle import setproctitle

from pleiades.core.backoff import Backoff
from pleiades.runtime.startup import STOP_SIGNALS, die_with_parent
from pleiades.sinks.archive.upload import Status, decode_settings
from pleiades.sinks.archive.uploader import Uploader

PAUSES = Backoff(first_seconds=1.0, max_seconds=60.0)
GRACE_SECONDS = 2.0
"""How long an upload may go on after the end of the input."""
LOOK_SECONDS = 30.0
"""The interval at which segments are looked for whose time in the archive is over."""


class _Input(threading.Thread):
    """Reads announcements; at the end of the input, it ends the process before long."""

    def __init__(self) -> None:
        super().__init__(name="input", daemon=True)
        self.length: int | None = None
        self.changed = threading.Condition()
        self.ended = False

    def run(self) -> None:
        """Read to the end."""
        for line in sys.stdin.buffer:
            with self.changed:
                self.length = max(self.length or 0, int(line))
                self.changed.notify()
        with self.changed:
            self.ended = True
            self.changed.notify()
        # An upload that is interrupted is repeated by the next uploader.
        threading.Event().wait(GRACE_SECONDS)
        os._exit(0)

    def wait(self, known: int | None, seconds: float | None) -> int:
        """Wait for another length than the known one, the end, or so long; returns the length."""
        with self.changed:
            self.changed.wait_for(lambda: self.ended or self.length != known, seconds)
            return self.length or 0


def _write(status: Status) -> None:
    try:
        os.write(sys.stdout.fileno(), status.encoded())
    except OSError:
        # Nobody reads any more.
        os._exit(0)


def main() -> NoReturn:
    """Upload until the end of the input."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    die_with_parent()
    setproctitle("pleiades: uploader")
    settings = decode_settings(sys.stdin.buffer.readline())
    announced = _Input()
    announced.start()
    uploader = Uploader(settings, _write)
    gc.freeze()
    uploader.announced = announced.wait(None, None)
    failures = 0
    while not announced.ended:
        if uploader.run_step():
            failures = 0
            uploader.announced = announced.length or 0
            continue
        failures = failures + 1 if uploader.fails else 0
        pause = PAUSES.pause_seconds(failures, random.random()) if failures else LOOK_SECONDS  # noqa: S311
        until = time.monotonic() + pause
        while not announced.ended and (left := until - time.monotonic()) > 0:
            known = uploader.announced
            uploader.announced = announced.wait(known, left)
            if uploader.announced != known:
                if not failures:
                    break
                uploader.count()
    os._exit(0)


if __name__ == "__main__":
    main()
