"""Looks at a directory as the sink would find it.

Law: a temporary folder is made, used and removed. Nothing else is made, written or kept locked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pleiades.config.settings import Settings
from pleiades.core.checkpoint import UnreadableCheckpoint
from pleiades.runtime.errors import DestinationHeld
from pleiades.runtime.findings import Finding, Kind, note, ok, problem, warning
from pleiades.sinks.checkpoints import CheckpointFile
from pleiades.sinks.directory import LOCK, DirectoryDestination
from pleiades.sinks.identities import IdentityLog
from pleiades.sinks.inspection import no_position, stored_position
from pleiades.sinks.retry import refusal

USUAL_EVENTS_PER_HOUR = 180_000
"""The rate of recentchange: 50 a second."""


class Unusable(Exception):
    """The directory can't be used, and there is no more to look at."""


def look(settings: Settings, destination: DirectoryDestination) -> Iterator[Finding]:
    """Yield the findings about what a start would find."""
    place = destination.directory
    try:
        there = _nearest(place)
        room = _room(there, destination)
        if there == place:
            _refuse_unusable(destination)
            if room.kind is not Kind.PROBLEM:
                _probe(
                    destination,
                    destination.own_folder if destination.own_folder.is_dir() else place,
                )
                yield ok(f"{place} exists and can be written into")
        else:
            if not os.access(there, os.W_OK | os.X_OK, effective_ids=True):
                raise Unusable(f"{place} does not exist, and this user may not make it in {there}")
            if room.kind is not Kind.PROBLEM:
                _probe(destination, there)
            yield note(f"{place} does not exist yet: it would be made in {there}")
        yield room
        try:
            destination.refuse_if_held()
        except DestinationHeld as error:
            yield problem(str(error), error.exit_status)
        yield from _position(settings, destination)
    except Unusable as error:
        yield problem(f"{error}. Choose another {destination.directory_flag} or mend it")
    except OSError as error:
        yield problem(
            f"can't look at {error.filename or place}: {error.strerror}. Choose another "
            f"{destination.directory_flag} or mend its permissions"
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


def _refuse_unusable(destination: DirectoryDestination) -> None:
    """Files are written in one folder and renamed into another: on one file system, and no links."""
    place, own = destination.directory, destination.own_folder
    folders = [*destination.folders(is_replay=False), *destination.published_folders()]
    for folder in (place, *folders):
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


def _probe(destination: DirectoryDestination, folder: Path) -> None:
    try:
        destination.probe(folder)
    except OSError as error:
        raise Unusable(f"can't publish into {folder}: {refusal(error, folder)}") from None


def _room(there: Path, destination: DirectoryDestination) -> Finding:
    found = os.statvfs(there)
    free_bytes = found.f_bavail * found.f_frsize
    # A file takes whole blocks.
    block_bytes = found.f_frsize * destination.files_per_event
    events = free_bytes // max(destination.bytes_per_event, block_bytes)
    free_files = "any number of files"
    # Some file systems have no fixed number of files, and say 0 of 0.
    if found.f_files:
        free_files = f"{found.f_favail:,} more files"
        if destination.files_per_event:
            events = min(events, found.f_favail)
    free = f"{free_bytes / 1e9:,.1f} GB and {free_files} are free"
    if events < 1:
        return problem(f"there is no room: {free}. Make room")
    hours = events / USUAL_EVENTS_PER_HOUR
    lasting = f"{hours / 24:,.0f} days" if hours >= 48 else f"{hours:,.1f} hours"  # noqa: PLR2004  # two days
    text = f"{free}: room for about {events:,} events, {lasting} of recentchange"
    return warning(f"{text}. Make room") if hours < 1 else ok(text)


def _position(settings: Settings, destination: DirectoryDestination) -> Iterator[Finding]:
    stored = CheckpointFile(destination.own_folder, destination.position_name, synced=False)
    try:
        found = stored.read()
    except UnreadableCheckpoint as error:
        yield warning(
            f"the position in {stored.path} is unusable ({error}){_meaning(settings, stored)}"
        )
        return
    if found is not None:
        IdentityLog(destination.own_folder, stored.name, 0).refuse_link(found.journal)
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
