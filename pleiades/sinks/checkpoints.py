"""The checkpoint as a file: read, replaced atomically, copied when damaged."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from pleiades.core.checkpoint import Checkpoint, UnreadableCheckpoint, decode_checkpoint
from pleiades.sinks.disk import open_own, replace_file

log = logging.getLogger(__name__)

MAX_CHECKPOINT_BYTES = 1024 * 1024
"""A larger file is no checkpoint: 1,024 topic-partitions of the longest names fit in half of it."""
MAX_NAME = 100


class Stored(NamedTuple):
    """The content of a checkpoint file: a checkpoint, and which of the destination's files it covers."""

    checkpoint: Checkpoint
    commit: int = 0
    """Number of the last commit, counted from 1."""
    journal: int = 0
    """Number of the journal's file; 0: an older version, without a journal, wrote it."""
    length: int = 0
    """Valid bytes of the journal."""
    own: Any = None
    """The destination's own fields, as JSON has them."""

    def encoded(self) -> bytes:
        """The JSON object of the checkpoint with more fields."""
        fields = orjson.loads(self.checkpoint.encoded())
        if self.journal:
            fields["committed"] = dict(zip(_FIELDS, self[1:4], strict=True))
        if self.own is not None:
            fields["own"] = self.own
        return orjson.dumps(fields)


_FIELDS = ("number", "journal", "length")


def decode_stored(encoded: bytes) -> Stored:
    """Read what `Stored.encoded` wrote.

    Raises:
        UnreadableCheckpoint: it is damaged.
    """
    checkpoint = decode_checkpoint(encoded)
    fields = orjson.loads(encoded)
    committed = fields.get("committed", dict.fromkeys(_FIELDS, 0))
    try:
        numbers = [committed[name] for name in _FIELDS]
    except (KeyError, TypeError):
        numbers = [None]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise UnreadableCheckpoint("it does not say what is committed")
    return Stored(checkpoint, *numbers)._replace(own=fields.get("own"))


class CheckpointFile:
    """`<folder>/checkpoint-<name>`: one per stream, so that their positions never mix.

    The name does not end in `.json`: a search for events must not find it.
    """

    def __init__(self, folder: Path, name: str, synced: bool) -> None:
        if len(name) > MAX_NAME:
            name = "sha256-" + hashlib.sha256(name.encode()).hexdigest()
        self.name = name
        """Distinguishes this position from others, as part of file names."""
        self.path = folder / f"checkpoint-{name}"
        self._synced = synced

    def read(self) -> Stored | None:
        """Read the checkpoint; None: there is none. Changes nothing.

        Raises:
            UnreadableCheckpoint: it is damaged.
            OSError: it can't be read.
        """
        try:
            descriptor = open_own(self.path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            encoded = file.read(MAX_CHECKPOINT_BYTES + 1)
        if len(encoded) > MAX_CHECKPOINT_BYTES:
            raise UnreadableCheckpoint("it is too large")
        return decode_stored(encoded)

    def copy_damaged(self, error: UnreadableCheckpoint) -> None:
        """Copy a damaged checkpoint for somebody to look at.

        It stays in its place until another replaces it: if this start ends before that, the next one
        must find the damage, too.
        """
        copied = self.path.with_name(f"{self.path.name}.damaged-{self.path.lstat().st_mtime_ns}")
        # An earlier start may have copied the same damage.
        with (
            os.fdopen(open_own(self.path, os.O_RDONLY), "rb") as file,
            contextlib.suppress(FileExistsError),
            os.fdopen(open_own(copied, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as copy,
        ):
            shutil.copyfileobj(file, copy)
        log.warning("the checkpoint is unusable (%s); a copy was set aside as %s", error, copied)

    def others(self) -> list[str]:
        """Names of the checkpoints beside this one: of other streams, or of a demo."""
        return sorted(
            other.name
            for other in self.path.parent.glob("checkpoint-*")
            if other != self.path
            and not other.name.endswith(".new")
            and "damaged" not in other.name
        )

    def replace(self, stored: Stored) -> None:
        """Store a checkpoint in place of the present one.

        Raises:
            OSError: either of both may be stored.
        """
        replace_file(self.path, stored.encoded() + b"\n", self._synced)
