"""Finds the position again from the published files, when the checkpoint is damaged.

Only a time is found, not a position: a topic whose events are not among the newest would be left
out of the position, and what is left out upstream does not send. A time is asked of all topics. It
lies far enough back, and the names on disk drop what is repeated.
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

MAX_FOLDERS = 12
MAX_FILES = 10_000


def recovered_checkpoint(publish_dir: Path, window_ms: int) -> Checkpoint | None:
    """A checkpoint that asks from before everything that may be unpublished; None: no events.

    The files that were *written* last are looked at, for in a replay one topic may be hours behind
    another. The smallest of the topics' newest times counts.
    """
    newest: dict[str, int] = {}
    for path in _last_written(publish_dir):
        topic = _topic_of(path)
        newest[topic] = max(time_in(path.name) or 0, newest.get(topic, 0))
    if not newest:
        return None
    begin_ms = max(min(newest.values()) - window_ms, 0)
    # With a clock: something had come, so --since does not count any more.
    return Checkpoint({}, begin_ms, begin_ms)


def _last_written(publish_dir: Path) -> list[Path]:
    with os.scandir(publish_dir) as entries:
        folders = [
            (entry.stat().st_mtime_ns, entry.path)
            for entry in entries
            if is_event_folder(entry.name) and entry.is_dir()
        ]
    files = (file for _, folder in heapq.nlargest(MAX_FOLDERS, folders) for file in _files(folder))
    return [Path(path) for _, path in heapq.nlargest(MAX_FILES, files)]


def _files(folder: str) -> Iterator[tuple[int, str]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if time_in(entry.name) is not None:
                yield entry.stat().st_mtime_ns, entry.path


def _topic_of(path: Path) -> str:
    try:
        topic = orjson.loads(path.read_bytes())["meta"]["topic"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.debug("no topic in %s: %s", path, error)
        return ""
    return topic if type(topic) is str else ""
