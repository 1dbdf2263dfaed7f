"""Looks at a directory as the files sink would find it.

Law: a temporary folder is made, used and removed. Nothing else is made, written or kept locked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from pleiades.config.settings import Settings
from pleiades.core.checkpoint import UnreadableCheckpoint
from pleiades.runtime.errors import DestinationHeld
from pleiades.runtime.findings import Finding, Kind, note, ok, problem, warning
from pleiades.sinks.checkpoints import CheckpointFile
from pleiades.sinks.files.destination import DEAD_LETTERS, LOCK, STAGING, FilesDestination
from pleiades.sinks.files.retry import refusal
from pleiades.sinks.identities import IdentityLog
from pleiades.sinks.inspection import no_position, stored_position

USUAL_EVENTS_PER_HOUR = 180_000
"""The rate of recentchange: 50 a second."""
USUAL_EVENT_BYTES = 4096
"""The least that a file takes on most file systems; an event of recentchange has about 1,300 bytes."""


class Unusable(Exception):
    """The directory can't be used, and there is no more to look at."""


def look(settings: Settings, files: FilesDestination) -> Iterator[Finding]:
    """Yield the findings about what a start would find."""
    place = files.publish_dir.absolute()
    try:
        there = _nearest(place)
        room = _room(there)
        if there == place:
            _refuse_unusable(files)
            if room.kind is not Kind.PROBLEM:
                _probe(files, files.own_folder if files.own_folder.is_dir() else place)
                yield ok(f"{place} exists and can be written into")
        else:
            if not os.access(there, os.W_OK | os.X_OK, effective_ids=True):
                raise Unusable(f"{place} does not exist, and this user may not make it in {there}")
            if room.kind is not Kind.PROBLEM:
                _probe(files, there)
            yield note(f"{place} does not exist yet: it would be made in {there}")
        yield room
        try:
            files.refuse_if_held()
        except DestinationHeld as error:
            yield problem(str(error), error.exit_status)
        yield from _position(settings, files)
    except Unusable as error:
        yield problem(f"{error}. Choose another --file.publishDir or mend it")
    except OSError as error:
        yield problem(
            f"can't look at {error.filename or place}: {error.strerror}. Choose another "
            "--file.publishDir or mend its permissions"
        )


def _nearest(place: Path) -> Path:
    """The directory itself, or the nearest one above it that exists."""
    for path in (place, *place.parents):
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            if path.is_symlink():
                raise Unusable(f"{path} is a link to nowhere") from None
        else:
            if not path.is_dir():
                raise Unusable(f"{path} is in the way: it is no directory")
            return path
    raise AssertionError("there is a root directory")


def _refuse_unusable(files: FilesDestination) -> None:
    """Files are written in one folder and renamed into another: on one file system, and no links."""
    place, own = files.publish_dir.absolute(), files.own_folder
    hour = place / datetime.now(UTC).strftime("%Y-%m-%dT%H")
    for folder in (place, own, own / STAGING, own / DEAD_LETTERS, hour):
        if folder.exists():
            if not folder.is_dir():
                raise Unusable(f"{folder} is in the way: it is no directory")
            if not os.access(folder, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
                raise Unusable(f"this user may not write into {folder}")
            if folder.stat().st_dev != place.stat().st_dev:
                raise Unusable(
                    f"{folder} lies on another file system than {place}: events could not be renamed "
                    "into their place"
                )
        if folder != place and folder.is_symlink():
            raise Unusable(f"{folder} is a link, which is not followed")
    lock = own / LOCK
    if lock.exists() and not os.access(lock, os.R_OK | os.W_OK, effective_ids=True):
        raise Unusable(f"this user may not open {lock}, which keeps a second instance out")


def _probe(files: FilesDestination, folder: Path) -> None:
    try:
        files.probe(folder)
    except OSError as error:
        raise Unusable(f"can't publish into {folder}: {refusal(error, folder)}") from None


def _room(there: Path) -> Finding:
    found = os.statvfs(there)
    free_bytes = found.f_bavail * found.f_frsize
    events = free_bytes // max(USUAL_EVENT_BYTES, found.f_frsize)
    free_files = "any number of files"
    # Some file systems have no fixed number of files, and say 0 of 0.
    if found.f_files:
        free_files = f"{found.f_favail:,} more files"
        events = min(events, found.f_favail)
    free = f"{free_bytes / 1e9:,.1f} GB and {free_files} are free"
    if events < 1:
        return problem(f"there is no room: {free}. Make room")
    hours = events / USUAL_EVENTS_PER_HOUR
    lasting = f"{hours / 24:,.0f} days" if hours >= 48 else f"{hours:,.1f} hours"  # noqa: PLR2004  # two days
    text = f"{free}: room for about {events:,} events, {lasting} of recentchange"
    return warning(f"{text}. Make room") if hours < 1 else ok(text)


def _position(settings: Settings, files: FilesDestination) -> Iterator[Finding]:
    stored = CheckpointFile(files.own_folder, files.position_name, synced=False)
    try:
        found = stored.read()
    except UnreadableCheckpoint as error:
        yield warning(
            f"the position in {stored.path} is unusable ({error}){_meaning(settings, stored)}"
        )
        return
    if found is not None:
        IdentityLog(files.own_folder, stored.name, 0).refuse_link(found.journal)
        stored_ms = stored.path.lstat().st_mtime_ns // 1_000_000
        yield from stored_position(settings, found.checkpoint, stored_ms, f"in {stored.path}")
        return
    yield from no_position(settings, f"in {stored.path}")
    if others := stored.others():
        yield note(
            "positions of other streams, or of a demo, lie beside it and are left as they are: "
            f"{', '.join(others[:5])}"
        )


def _meaning(settings: Settings, damaged: CheckpointFile) -> str:
    """The effect of a damaged checkpoint on a start."""
    if not settings.resume:
        return "; --resume=false ignores it anyway"
    if IdentityLog(damaged.path.parent, damaged.name, 0).salvage():
        return (
            ": a start finds it again in the identity log and goes on from there; no event is lost or "
            "published again"
        )
    return (
        ", and the identity log does not have it either: a start begins at --since, and what came since "
        "the last run is missing unless you give --resume=false --since=TIME"
    )
