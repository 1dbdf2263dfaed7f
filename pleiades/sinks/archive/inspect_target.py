"""The target's part of `pleiades check`: can it be listed, and written as uploads need it?"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from pleiades.runtime.findings import Finding, note, ok, problem, warning
from pleiades.sinks.archive.target import (
    OWN_FOLDER,
    Changed,
    Exists,
    Location,
    Target,
    TargetError,
    open_target,
)
from pleiades.sinks.directory import PROBE_PREFIX

MAX_LISTED = 1000


def inspect_target(location: Location, archive: Path, keeps_local: bool) -> Iterator[Finding]:
    """Look at the target of uploads; leaves nothing behind, or says what.

    Args:
        archive: the directory that is uploaded.
        keeps_local: segments stay there for ever, so that uploads lose nothing if the target does.
    """
    if not location.scheme and (wrong := overlapping(Path(location.path), archive)):
        yield problem(wrong)
        return
    if not location.scheme and not Path(location.path).exists():
        # Creating it would leave it behind.
        yield from _not_yet_there(Path(location.path))
        return
    try:
        target = open_target(location)
        try:
            count = sum(1 for _ in islice(target.list(), MAX_LISTED + 1))
            if location.scheme:
                yield from _written(target, f"{OWN_FOLDER}/check-{uuid.uuid4()}")
            else:
                _write_probe(Path(location.path))
        finally:
            target.close()
    except TargetError as error:
        yield problem(
            f"closed segments can't be uploaded to {location}: {error}. A start relays all the same: "
            "segments stay in the archive until they are uploaded"
        )
        return
    there = f"more than {MAX_LISTED}" if count > MAX_LISTED else count
    yield ok(f"closed segments can be uploaded to {location} ({there} objects are there)")
    if not keeps_local:
        yield note("uploaded segments are removed from the archive (--archive.keepLocal)")


def overlapping(target: Path, archive: Path) -> str:
    """The fault of a directory for uploads, in words; empty: none."""
    one, other = target.resolve(), archive.resolve()
    if one == other or one in other.parents or other in one.parents:
        return (
            f"--archive.upload={target} and the archive {archive} lie in one another: uploads would be "
            "no copy. Choose a directory beside it, best on another disk"
        )
    return ""


def _not_yet_there(path: Path) -> Iterator[Finding]:
    above = next(folder for folder in path.resolve().parents if folder.exists())
    if above.is_dir():
        yield ok(f"{path} does not exist yet: the first upload creates it below {above}")
    else:
        yield problem(f"closed segments can't be uploaded to {path}: {above} is no directory")


def _written(target: Target, name: str) -> Iterator[Finding]:
    """Try both conditional writes with an object of a name that nobody else uses."""
    try:
        target.create(name, memoryview(b"1"))
        conditional = _is_refused(target, name)
        read = target.read(name)
        if read is None:
            raise TargetError("a new object can't be read right after it was written")
        version = target.replace(name, b"2", read.version)
        try:
            target.replace(name, b"3", read.version)
        except Changed:
            pass
        else:
            conditional = False
        if read.version == version:
            conditional = False
    finally:
        left = _removed(target, name)
    if not conditional:
        yield warning(
            f"{target.place} overwrites objects although it is asked not to: if two relays upload "
            "there, one can replace the segments and the manifest of the other. Use a store with "
            "conditional writes (If-None-Match, If-Match)"
        )
    if left:
        yield note(
            f"the check leaves {target.place}/{name} behind, because it may not delete it ({left}): "
            "uploads need no right to delete"
        )


def _write_probe(root: Path) -> None:
    try:
        with tempfile.NamedTemporaryFile(dir=root, prefix=PROBE_PREFIX) as probe:
            os.fsync(probe.fileno())
    except OSError as error:
        raise TargetError(f"{root} can't be written: {error.strerror}") from None


def _is_refused(target: Target, name: str) -> bool:
    try:
        target.create(name, memoryview(b"0"))
    except Exists:
        return True
    return False


def _removed(target: Target, name: str) -> str:
    """Remove an object; returns why it stays."""
    try:
        if target.size(name) is not None:
            target.delete(name)
    except TargetError as error:
        return str(error)
    return ""
