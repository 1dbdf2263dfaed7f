"""The checkpoint as a file: read, replaced in one step, set aside when damaged."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from pleiades.core.position import Checkpoint, UnreadableCheckpoint, decode_checkpoint
from pleiades.sinks.disk import open_own, replace_file

log = logging.getLogger(__name__)

MAX_CHECKPOINT_BYTES = 1024 * 1024
"""A larger file is no checkpoint: 1,024 topic-partitions of the longest names fit in half of it."""
MAX_NAME = 100


class Committed(NamedTuple):
    """What of a destination's own files the checkpoint covers."""

    number: int
    """Of the last commit, counted from 1."""
    journal: int
    """Number of the journal's file."""
    length: int
    """Valid bytes of the journal."""


class Stored(NamedTuple):
    """What a checkpoint file holds."""

    checkpoint: Checkpoint
    committed: Committed | None
    """None: it is of a version that had no journal."""

    def encoded(self) -> bytes:
        """The checkpoint's own JSON object, with one field more."""
        fields = orjson.loads(self.checkpoint.encoded())
        if self.committed is not None:
            fields["committed"] = self.committed._asdict()
        return orjson.dumps(fields)


def read_committed(encoded: bytes) -> Committed | None:
    """That field of `Stored.encoded`.

    Raises:
        UnreadableCheckpoint: it is damaged.
    """
    fields: Any = orjson.loads(encoded).get("committed")
    if fields is None:
        return None
    try:
        committed = Committed(fields["number"], fields["journal"], fields["length"])
    except (KeyError, TypeError):
        raise UnreadableCheckpoint("it does not say what is committed") from None
    if not all(type(number) is int and number >= 0 for number in committed):
        raise UnreadableCheckpoint("it does not say what is committed")
    return committed


class CheckpointFile:
    """`<folder>/checkpoint-<name>`: the positions of different streams are never mixed up.

    The name does not end in `.json`, so that a search for events does not find it.
    """

    def __init__(self, folder: Path, name: str, synced: bool) -> None:
        if len(name) > MAX_NAME:
            name = "sha256-" + hashlib.sha256(name.encode()).hexdigest()
        self._folder = folder
        self.name = name
        """What distinguishes this position from others, as part of a file name."""
        self.path = folder / f"checkpoint-{name}"
        self._synced = synced

    def read(self) -> tuple[Stored | None, bool]:
        """What is stored if there is anything, and whether there was something that is damaged.

        Of a damaged one a copy is set aside, so that somebody can look at it. It stays in its place
        until another replaces it: a start that ends before that must find the damage again.

        Raises:
            OSError: it is there and can't be read or copied.
        """
        try:
            stored = self.look()
        except UnreadableCheckpoint as error:
            changed_ns = self.path.stat().st_mtime_ns
            aside = self.path.with_name(f"{self.path.name}.damaged-{changed_ns}")
            self._copy(aside)
            log.warning("the checkpoint is unusable (%s); a copy was set aside as %s", error, aside)
            return None, True
        if stored is None:
            self._mention_others()
        return stored, False

    def look(self) -> Stored | None:
        """What is stored if there is anything; changes nothing.

        Raises:
            UnreadableCheckpoint: it is damaged.
            OSError: it is there and can't be read.
        """
        try:
            descriptor = open_own(self.path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            encoded = file.read(MAX_CHECKPOINT_BYTES + 1)
        if len(encoded) > MAX_CHECKPOINT_BYTES:
            raise UnreadableCheckpoint("it is too large")
        return Stored(decode_checkpoint(encoded), read_committed(encoded))

    def _copy(self, aside: Path) -> None:
        try:
            descriptor = open_own(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            # An earlier start that found the same damage.
            return
        with os.fdopen(descriptor, "wb") as copy, self.path.open("rb") as file:
            shutil.copyfileobj(file, copy)

    def others(self) -> list[str]:
        """Names of the checkpoints that lie beside this one: of other streams, or of a demo."""
        return sorted(
            other.name
            for other in self._folder.glob("checkpoint-*")
            if other != self.path
            and not other.name.endswith(".new")
            and "damaged" not in other.name
        )

    def replace(self, stored: Stored) -> None:
        """Store it in place of what is there.

        Raises:
            OSError: the old one still holds, or both may.
        """
        replace_file(self.path, stored.encoded() + b"\n", self._synced)

    def _mention_others(self) -> None:
        others = self.others()
        if others:
            log.warning(
                "nothing is stored as %s, only %s (of other streams, or of a demo): this run starts "
                "where --since says, and leaves the others as they are",
                self.path.name,
                ", ".join(others[:5]),
            )
