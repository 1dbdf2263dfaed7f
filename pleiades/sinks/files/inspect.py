"""Looks at a directory as the file sink would find it.

Law: nothing is made, written or kept locked.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from pleiades.config.settings import Settings
from pleiades.core.position import Checkpoint, UnreadableCheckpoint
from pleiades.runtime.errors import EXIT_HELD, Fatal
from pleiades.runtime.findings import Finding, note, ok, problem, warning
from pleiades.sinks.checkpoints import CheckpointFile
from pleiades.sinks.disk import holder_of
from pleiades.sinks.files.destination import FilesDestination
from pleiades.sinks.files.sink import DEAD_LETTERS, LOCK, OWN_FOLDER, STAGING, own_folder
from pleiades.sinks.identities import IdentityLog
from pleiades.sinks.inspection import no_position, stored_position

log = logging.getLogger(__name__)

USUAL_EVENTS_PER_HOUR = 180_000
"""Of recentchange: 50 a second."""
USUAL_EVENT_BYTES = 4096
"""What a file takes at least on most file systems; an event of recentchange has about 1,300 bytes."""


class NoUse(Exception):
    """The directory can't be used, and there is no more to look at."""


def look(settings: Settings, files: FilesDestination) -> Iterator[Finding]:
    """What a start would find."""
    place = files.publish_dir.absolute()
    try:
        there = _nearest(place)
        yield _directory(place, there)
        yield from _room(there)
        if there == place:
            _folders_fit(place)
            yield from _holder(place)
            yield from _position(settings, files, place)
        else:
            yield from no_position(settings, f"in {place}")
    except NoUse as error:
        yield problem(f"{error}. Choose another --file.publishDir or mend it")
    except OSError as error:
        yield problem(
            f"can't look at {error.filename or place}: {error.strerror}. Choose another "
            "--file.publishDir or mend its permissions",
        )


def _nearest(place: Path) -> Path:
    """The directory itself, or the nearest one above it that exists."""
    for path in (place, *place.parents):
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            if path.is_symlink():
                raise NoUse(f"{path} is a link to nowhere") from None
        except NotADirectoryError:
            # What is in the way stands above it.
            continue
        else:
            if not stat.S_ISDIR(mode):
                raise NoUse(f"{path} is in the way: it is no directory")
            return path
    raise AssertionError("there is a root directory")


def _directory(place: Path, there: Path) -> Finding:
    if there != place:
        if not os.access(there, os.W_OK | os.X_OK, effective_ids=True):
            raise NoUse(f"{place} does not exist, and this user may not make it in {there}")
        return note(f"{place} does not exist yet: it would be made in {there}")
    own = place / OWN_FOLDER
    for folder in (place, own, own / STAGING, own / DEAD_LETTERS, place / _folder_of_now()):
        if folder.exists() and not folder.is_dir():
            raise NoUse(f"{folder} is in the way: it is no directory")
        if folder.exists() and not _is_writable(folder):
            raise NoUse(f"this user may not write into {folder}")
    lock = own / LOCK
    if lock.exists() and not os.access(lock, os.R_OK | os.W_OK, effective_ids=True):
        raise NoUse(f"this user may not open {lock}, which keeps a second instance out")
    return ok(f"{place} exists and can be written into")


def _folder_of_now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H")


def _is_writable(folder: Path) -> bool:
    return os.access(folder, os.R_OK | os.W_OK | os.X_OK, effective_ids=True)


def _folders_fit(place: Path) -> None:
    """A file is written in one folder and renamed into another: that needs one file system, and folders
    that are no links.
    """
    own = place / OWN_FOLDER
    for folder in (own, own / STAGING, own / DEAD_LETTERS, place / _folder_of_now()):
        if folder.exists() and folder.stat().st_dev != place.stat().st_dev:
            raise NoUse(
                f"{folder} lies on another file system than {place}: events could not be renamed "
                "into their place"
            )
        if folder.is_symlink():
            raise NoUse(f"{folder} is a link, which is not followed")


def _room(there: Path) -> Iterator[Finding]:
    found = os.statvfs(there)
    free_bytes = found.f_bavail * found.f_frsize
    events = free_bytes // max(USUAL_EVENT_BYTES, found.f_frsize)
    # Some file systems have no fixed number of files, and say 0 of 0.
    files = f"{found.f_favail:,} more files" if found.f_files else "any number of files"
    if found.f_files:
        events = min(events, found.f_favail)
    said = f"{free_bytes / 1e9:,.1f} GB and {files} are free"
    if events < 1:
        yield problem(f"there is no room: {said}. {os.strerror(errno.ENOSPC)}: make room")
        return
    hours = events / USUAL_EVENTS_PER_HOUR
    lasting = f"{hours / 24:,.0f} days" if hours >= 48 else f"{hours:,.1f} hours"  # noqa: PLR2004  # two days
    text = f"{said}: room for about {events:,} events, {lasting} of recentchange"
    yield warning(text + ". Make room") if hours < 1 else ok(text)


def _holder(place: Path) -> Iterator[Finding]:
    holder = holder_of(place / OWN_FOLDER / LOCK)
    if holder is not None:
        yield problem(
            f"{holder} publishes into {place} already: a second instance would be refused. Stop that "
            "one first, or choose another --file.publishDir",
            EXIT_HELD,
        )


def _position(settings: Settings, files: FilesDestination, place: Path) -> Iterator[Finding]:
    stored = CheckpointFile(place / OWN_FOLDER, files.position_name, synced=False)
    try:
        found = stored.look()
    except UnreadableCheckpoint as error:
        yield _damaged(settings, stored, str(error))
        return
    if found is not None:
        stored_ms = stored.path.stat().st_mtime_ns // 1_000_000
        yield from stored_position(settings, found.checkpoint, stored_ms, f"in {stored.path}")
        return
    yield from no_position(settings, f"in {stored.path}")
    others = stored.others()
    if others:
        yield note(
            f"positions of other streams, or of a demo, lie beside it and are left as they are: "
            f"{', '.join(others[:5])}",
        )


def stored_checkpoint(files: FilesDestination) -> Checkpoint | None:
    """See `Destination.stored_checkpoint`."""
    folder = own_folder(files.publish_dir, files.position_name, replays=True)
    try:
        stored = CheckpointFile(folder, files.position_name, synced=True).look()
    except UnreadableCheckpoint as error:
        log.warning(
            "the position in %s is unusable (%s): beginning again; what is there already is dropped by "
            "its name",
            folder,
            error,
        )
        return None
    except OSError as error:
        raise Fatal(
            f"can't read the position in {folder}: {error.strerror}. Nothing was written. Choose "
            "another --file.publishDir or mend its permissions"
        ) from None
    return None if stored is None else stored.checkpoint


def _damaged(settings: Settings, file: CheckpointFile, why: str) -> Finding:
    said = f"the position in {file.path} is unusable ({why})"
    if not settings.resume:
        return warning(f"{said}; --resume=false ignores it anyway")
    if not IdentityLog(file.path.parent, file.name, 0).salvage():
        return warning(
            f"{said}, and the identity log does not say it either: a start begins at --since, and what "
            "came since the last run is missing unless you give --resume=false --since=TIME",
        )
    return warning(
        f"{said}: a start finds it again in the identity log and goes on from there; nothing is lost or "
        "published again",
    )
