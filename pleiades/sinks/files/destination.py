# ruff: noqa: RUF009  # `flag` declares fields of dataclasses
"""The files destination as the command line describes it; see `Destination`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pleiades.config.flags import BOOLEAN, DIRECTORY, Flag, flag
from pleiades.config.settings import Settings
from pleiades.config.values import choice
from pleiades.core.position import Checkpoint
from pleiades.runtime.findings import Finding
from pleiades.runtime.metrics import Metrics
from pleiades.sinks.base import Destination, Sink, SinkContext

log = logging.getLogger(__name__)

T = TypeVar("T")

SYNC_BATCH = "batch"
SYNC_NONE = "none"


@dataclass(frozen=True)
class FilesDestination(Destination):
    """A directory."""

    publish_dir: Path = flag("./events", "where the files go; created if missing", DIRECTORY)
    sync: str = flag(
        SYNC_BATCH,
        "batch: each batch survives a power failure before its position is stored; none: faster, a "
        "power failure may lose what the system had not written",
        choice(SYNC_BATCH, SYNC_NONE),
    )

    prefix = "file."
    enable = Flag(
        "file.enable",
        "false",
        "publish to files, one per event (exactly one publisher must be enabled)",
        BOOLEAN,
        without=("demo",),
        group="publishers",
    )
    skip_existing_refusal = "its files have names that tell what is there, with or without it"

    @property
    def place(self) -> str:
        """See `Destination.place`."""
        # A path's bytes need not be text.
        return f"files in {os.fsencode(self.publish_dir.absolute()).decode(errors='replace')}"

    def make_sink(self, context: SinkContext) -> Sink:
        """See `Destination.make_sink`."""
        from pleiades.sinks.files.sink import FilesSink, Surroundings

        def on_trouble(operation: str, error: OSError, pause_seconds: float) -> None:
            context.metrics.file_errors.inc()
            log.error(
                "can't %s %s: %s. Nothing is skipped: trying again in %.1f s. Make room, or give "
                "the permission back",
                operation,
                self.publish_dir,
                error,
                pause_seconds,
            )

        def aside(operation: str, call: Callable[[], T]) -> T:
            def announce(seconds: float) -> None:
                log.warning(
                    "it takes %.0f s already to %s %s: the disk is slow, or hangs. Nothing is lost: the "
                    "reader waits",
                    seconds,
                    operation,
                    self.publish_dir,
                )

            return context.life.aside(call, announce)

        return FilesSink(
            self.publish_dir,
            self.sync,
            self.position_name,
            context.settings.max_entries,
            Surroundings(context.life.pause, on_trouble, aside),
            context.reached,
            context.settings.replay is not None,
        )

    def record_commit(self, metrics: Metrics, published: int, reached_ms: int) -> None:
        """See `Destination.record_commit`."""
        metrics.file_events.inc(published)

    def inspect(self, settings: Settings) -> Iterator[Finding]:
        """See `Destination.inspect`."""
        from pleiades.sinks.files.inspect import look

        return look(settings, self)

    def stored_checkpoint(self) -> Checkpoint | None:
        """See `Destination.stored_checkpoint`."""
        from pleiades.sinks.files.inspect import stored_checkpoint

        return stored_checkpoint(self)

    def refuse_if_held(self) -> None:
        """See `Destination.refuse_if_held`."""
        from pleiades.sinks.files.sink import refuse_if_held

        refuse_if_held(self.publish_dir)
