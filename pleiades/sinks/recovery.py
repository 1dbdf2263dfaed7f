"""Finds the position again from the published files, when the checkpoint is damaged.

Only a time is found, not a position: a topic whose events are not among the newest would be left out
of the position, and what is left out upstream does not send. A time is asked of all topics. It lies
far enough back, and the names on disk drop what is repeated.
"""

from __future__ import annotations

import heapq
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import orjson

from pleiades.core.position import Checkpoint
from pleiades.sinks.names import is_event_folder, time_in

log = logging.getLogger(__name__)

MAX_FOLDERS = 48
MAX_FILES = 10_000


def recovered_checkpoint(publish_dir: Path, window_ms: int) -> Checkpoint | None:
    """A checkpoint that asks from before everything that may be unpublished; None: no events.

    The newest files are looked at, in the folders that changed last: in a replay a topic may be hours
    behind another. The smallest of the topics' newest times counts.
    """
    newest: dict[str, int] = {}
    for milliseconds, path in _newest_files(publish_dir):
        topic = _topic_of(path)
        newest[topic] = max(milliseconds, newest.get(topic, 0))
    if not newest:
        return None
    return Checkpoint({}, max(min(newest.values()) - window_ms, 0), 0)


def _newest_files(publish_dir: Path) -> Iterator[tuple[int, Path]]:
    with os.scandir(publish_dir) as entries:
        folders = [(entry.stat().st_mtime_ns, entry.name) for entry in entries if _is_folder(entry)]
    left = MAX_FILES
    for _, folder in heapq.nlargest(MAX_FOLDERS, folders):
        with os.scandir(publish_dir / folder) as entries:
            timed = ((time_in(entry.name), entry.name) for entry in entries)
            found = heapq.nlargest(left, ((time, name) for time, name in timed if time is not None))
        for milliseconds, name in found:
            yield milliseconds, publish_dir / folder / name
        left -= len(found)
        if left <= 0:
            return


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return is_event_folder(entry.name) and entry.is_dir()


def _topic_of(path: Path) -> str:
    try:
        topic = orjson.loads(path.read_bytes())["meta"]["topic"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.debug("no topic in %s: %s", path, error)
        return ""
    return topic if type(topic) is str else ""
