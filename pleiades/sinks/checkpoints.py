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
        self.path = folder / f"checkpoint-{name}"
        self._synced = synced

    def read(self) -> tuple[Checkpoint | None, bool]:
        """The stored checkpoint if there is one, and whether there was one that is damaged.

        Of a damaged one a copy is set aside, so that somebody can look at it. It stays in its place
        until another replaces it: a start that ends before that must find the damage again.

        Raises:
            OSError: it is there and can't be read or copied.
        """
        try:
            checkpoint = self.look()
        except UnreadableCheckpoint as error:
            changed_ns = self.path.stat().st_mtime_ns
            aside = self.path.with_name(f"{self.path.name}.damaged-{changed_ns}")
            shutil.copyfile(self.path, aside)
            log.warning("the checkpoint is unusable (%s); it was set aside as %s", error, aside)
            return None, True
        if checkpoint is None:
            self._mention_others()
        return checkpoint, False

    def look(self) -> Checkpoint | None:
        """The stored checkpoint if there is one; changes nothing.

        Raises:
            UnreadableCheckpoint: it is damaged.
            OSError: it is there and can't be read.
        """
        try:
            with self.path.open("rb") as file:
                encoded = file.read(MAX_CHECKPOINT_BYTES + 1)
        except FileNotFoundError:
            return None
        if len(encoded) > MAX_CHECKPOINT_BYTES:
            raise UnreadableCheckpoint("it is too large")
        return decode_checkpoint(encoded)

    def others(self) -> list[str]:
        """Names of the checkpoints that lie beside this one: of other streams, or of a demo."""
        return sorted(
            other.name
            for other in self._folder.glob("checkpoint-*")
            if "damaged" not in other.name and other != self.path
        )

    def replace(self, checkpoint: Checkpoint) -> None:
        """Store a checkpoint.

        Raises:
            OSError: the old one still holds.
        """
        replace_file(self.path, checkpoint.encoded() + b"\n", self._synced)

    def _mention_others(self) -> None:
        others = self.others()
        if others:
            log.warning(
                "nothing is stored as %s, only %s (of other streams, or of a demo): this run starts "
                "where --since says, and leaves the others as they are",
                self.path.name,
                ", ".join(others[:5]),
            )
