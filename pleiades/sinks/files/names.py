"""Names of files.

Law: only characters of `[A-Za-z0-9._-]` reach a path, a name never begins with a dot, and every delivery
of an event gives it the same name.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from pleiades.core.event import Event
from pleiades.core.sse_id import UNKNOWN_SOURCE

# Exactly the names that `event_name` makes: files of others are no events.
_FOLDER = re.compile(r"\d{4}-\d\d-\d\dT\d\d")
_NAME = re.compile(r"(\d{4})(\d\d)(\d\dT\d\d)\d{4}\.\d{3}Z-(.+)\.json")


def event_name(event: Event) -> tuple[str, str]:
    """The folder and the file name of an event, e.g. `2026-01-31T12` and
    `20260131T120000.123Z-<identity>.json` (ISO 8601 basic: file names have no colons).

    The time is the event's Kafka timestamp: that of its id, less the millisecond that EventStreams adds.
    If the id does not tell the topic it is `meta.dt`, because other entries of the id differ from one
    delivery to the next.
    """
    known = event.source != UNKNOWN_SOURCE
    milliseconds = max(event.timestamp_ms - 1, 0) if known else event.dt_ms
    seconds, fraction = divmod(milliseconds, 1000)
    folder, second = _second(seconds)
    return folder, f"{second}.{fraction:03}Z-{event.identity}.json"


@lru_cache(maxsize=4096)
def _second(seconds: int) -> tuple[str, str]:
    """The folder, and the begin of a name, of all events of a second since 1970."""
    when = datetime.fromtimestamp(seconds, UTC)
    day = f"{when.year:04}-{when.month:02}-{when.day:02}"
    time = f"{when.hour:02}{when.minute:02}{when.second:02}"
    return f"{day}T{when.hour:02}", f"{day.replace('-', '')}T{time}"


def dead_letter_name(letter: Event) -> str:
    """The file name of a dead letter: its digest."""
    return f"{letter.identity}.raw"


def folder_of(name: str) -> str | None:
    """The folder of a file that `event_name` named; None: it named no such file."""
    match = _NAME.fullmatch(name)
    return "-".join(match.group(1, 2, 3)) if match else None


def identity_in(name: str) -> str | None:
    """The identity in the name of an event; None: it is none."""
    match = _NAME.fullmatch(name)
    return match[4] if match else None


def is_event_folder(name: str) -> bool:
    """True if a folder is one of `event_name`'s."""
    return _FOLDER.fullmatch(name) is not None


def identities_since(publish_dir: Path, since_ms: int) -> Iterator[str]:
    """The identities in the names of all events from the hour of a time on, by the hour."""
    first = _second(since_ms // 1000)[0]
    with os.scandir(publish_dir) as entries:
        folders = sorted(
            entry.name for entry in entries if is_event_folder(entry.name) and entry.name >= first
        )
    for folder in folders:
        # A user may remove a folder at any time, or give such a name to something else.
        with (
            contextlib.suppress(FileNotFoundError, NotADirectoryError),
            os.scandir(publish_dir / folder) as files,
        ):
            for file in files:
                identity = identity_in(file.name)
                if identity is not None:
                    yield identity
