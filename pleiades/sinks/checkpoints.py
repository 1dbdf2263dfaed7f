"""The checkpoint as a file: read, replaced in one step, set aside when damaged."""

from __future__ import annotations

import hashlib
import logging
import shutil
from pathlib import Path

from pleiades.core.position import Checkpoint, UnreadableCheckpoint, decode_checkpoint
from pleiades.sinks.disk import replace_file

log = logging.getLogger(__name__)

MAX_CHECKPOINT_BYTES = 1024 * 1024
"""A larger file is no checkpoint: 1,024 topic-partitions of the longest names fit in half of it."""
MAX_NAME = 100


class CheckpointFile:
    """`<folder>/checkpoint-<name>`: the positions of different streams are never mixed up.

    The name does not end in `.json`, so that a search for events does not find it.
    """

    def __init__(self, folder: Path, name: str, synced: bool) -> None:
        if len(name) > MAX_NAME:
            name = "sha256-" + hashlib.sha256(name.encode()).hexdigest()
        self._folder = folder
        self._path = folder / f"checkpoint-{name}"
        self._synced = synced

    def read(self) -> tuple[Checkpoint | None, bool]:
        """The stored checkpoint if there is one, and whether there was one that is damaged.

        Of a damaged one a copy is set aside, so that somebody can look at it. It stays in its place
        until another replaces it: a start that ends before that must find the damage again.

        Raises:
            OSError: it is there and can't be read or copied.
        """
        try:
            with self._path.open("rb") as file:
                encoded = file.read(MAX_CHECKPOINT_BYTES + 1)
        except FileNotFoundError:
            self._mention_others()
            return None, False
        try:
            if len(encoded) > MAX_CHECKPOINT_BYTES:
                raise UnreadableCheckpoint("it is too large")
            return decode_checkpoint(encoded), False
        except UnreadableCheckpoint as error:
            changed_ns = self._path.stat().st_mtime_ns
            aside = self._path.with_name(f"{self._path.name}.damaged-{changed_ns}")
            shutil.copyfile(self._path, aside)
            log.warning("the checkpoint is unusable (%s); it was set aside as %s", error, aside)
            return None, True

    def replace(self, checkpoint: Checkpoint) -> None:
        """Store a checkpoint.

        Raises:
            OSError: the old one still holds.
        """
        replace_file(self._path, checkpoint.encoded() + b"\n", self._synced)

    def _mention_others(self) -> None:
        others = sorted(
            other.name for other in self._folder.glob("checkpoint-*") if "damaged" not in other.name
        )
        if others:
            log.warning(
                "nothing is stored as %s, only %s (of other streams, or of a demo): this run starts "
                "where --since says, and leaves the others as they are",
                self._path.name,
                ", ".join(others[:5]),
            )
