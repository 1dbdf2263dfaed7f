"""Names of files.

Law: only characters of `[A-Za-z0-9._-]` reach a path, a name never begins with a dot, and it depends
on nothing that a second delivery of the same event could bring differently.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from pleiades.core.wire import UNKNOWN_SOURCE, Event

# What `event_name` makes, nothing else: other people's files are no events.
_FOLDER = re.compile(r"\d{4}-\d\d-\d\dT\d\d")
_NAME = re.compile(r"(\d{8}T\d{6})\.(\d{3})Z-(.+)\.json")
_STAGED = re.compile(r"\d{8}\.(.+)\.part")


def event_name(event: Event) -> tuple[str, str]:
    """The folder and the file name of an event, e.g. `2026-01-31T12` and
    `20260131T120000.123Z-<identity>.json` (ISO 8601 basic: a colon is no character for a file name).

    The time is the event's Kafka timestamp (its id's, less the millisecond that EventStreams adds);
    `meta.dt` where the id does not tell which topic the event came from, for the other entries of
    the id differ from one delivery to the next.
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


def staged_name(place: int, name: str) -> str:
    """What a file is called until its commit: it sorts by its place in the commit, and no search for
    `*.json` finds half an event.
    """
    return f"{place:08}.{name}.part"


def name_in(staged: str) -> str | None:
    """The name in a staged one; None if it is none."""
    match = _STAGED.fullmatch(staged)
    return match[1] if match else None


def folder_of(name: str) -> str | None:
    """The folder of a file that `event_name` named; None if it did not."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    date = match[1]
    return f"{date[:4]}-{date[4:6]}-{date[6:11]}"


def is_event_folder(name: str) -> bool:
    """Whether a folder is one of `event_name`'s."""
    return _FOLDER.fullmatch(name) is not None


def time_in(name: str) -> int | None:
    """The time in a file's name, ms since 1970; None if it is no name of an event."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    try:
        when = datetime.fromisoformat(match[1] + "+00:00")
    except ValueError:
        return None
    return int(when.timestamp()) * 1000 + int(match[2])


def identity_in(name: str) -> str | None:
    """The identity in a file's name; None if it is no name of an event."""
    match = _NAME.fullmatch(name)
    return match[3] if match else None


def identities_since(publish_dir: Path, since_ms: int) -> Iterator[str]:
    """The identities in the names of all events that are dated at or after a time, by the hour."""
    first = _second(since_ms // 1000)[0]
    with os.scandir(publish_dir) as entries:
        folders = [entry.path for entry in entries if is_event_folder(entry.name)]
    for folder in sorted(folders):
        if folder.rpartition("/")[2] < first:
            continue
        # A user has removed it meanwhile, or put something else there.
        with (
            contextlib.suppress(FileNotFoundError, NotADirectoryError),
            os.scandir(folder) as files,
        ):
            for file in files:
                identity = identity_in(file.name)
                if identity is not None:
                    yield identity
