# ruff: noqa: RUF009  # `flag` declares fields of dataclasses
"""The files destination as the command line describes it; see `Destination`."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pleiades.config.flags import BOOLEAN, DIRECTORY, Flag, flag
from pleiades.config.values import choice
from pleiades.core.checkpoint import Checkpoint
from pleiades.core.event import Event
from pleiades.core.sse_id import UNKNOWN_SOURCE
from pleiades.runtime.metrics import Metrics
from pleiades.sinks.base import Sink, SinkContext
from pleiades.sinks.directory import PROBE_PREFIX, DirectoryDestination

SYNC_BATCH = "batch"
SYNC_NONE = "none"

STAGING = "staging"
DEAD_LETTERS = "dead-letters"

# Its name is as long as that of an event can be, and no search for events finds it.
_PROBE = Event("probe".ljust(150, "-"), UNKNOWN_SOURCE, 0, "", b"[]", b"probe", "not_json")


@dataclass(frozen=True)
class FilesDestination(DirectoryDestination):
    """A directory."""

    publish_dir: Path = flag(
        "./events",
        "where the files go; created if missing",
        DIRECTORY,
        # Made-up events are not mixed with real ones.
        defaults={"demo": "./demo-events"},
    )
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
    modules = ("pleiades.sinks.files.sink",)
    skip_existing_refusal = "its files have names that tell what is there, with or without it"

    directory_flag = "--file.publishDir"
    contents = "files"
    bytes_per_event = 4096
    files_per_event = 1

    @property
    def directory(self) -> Path:
        """See `DirectoryDestination.directory`."""
        return self.publish_dir.absolute()

    def folders(self, is_replay: bool) -> list[Path]:
        """See `DirectoryDestination.folders`."""
        staging = self.position_folder(is_replay) / STAGING
        return [*super().folders(is_replay), self.own_folder / DEAD_LETTERS, staging]

    def published_folders(self) -> list[Path]:
        """See `DirectoryDestination.published_folders`."""
        hour = datetime.now(UTC).strftime("%Y-%m-%dT%H")
        return [self.own_folder / DEAD_LETTERS, self.directory / hour]

    def make_sink(self, context: SinkContext) -> Sink:
        """See `Destination.make_sink`."""
        from pleiades.sinks.files.sink import FilesSink
        from pleiades.sinks.retry import Retry

        is_replay = context.settings.replay is not None
        max_entries = context.settings.max_entries
        errors = context.metrics.file_errors
        retry = Retry(context.child, errors, self.directory, self.directory_flag)
        return FilesSink(
            self, retry, max_entries, is_replay, context.reached, probes=not context.reached
        )

    def probe(self, folder: Path, is_replay: bool = False) -> None:
        """See `DirectoryDestination.probe`."""
        from pleiades.sinks.files.sink import FilesSink
        from pleiades.sinks.retry import Once

        with tempfile.TemporaryDirectory(prefix=PROBE_PREFIX, dir=folder) as place:
            sink = FilesSink(replace(self, publish_dir=Path(place)), Once(), max_entries=1)
            for _ in range(2):
                try:
                    sink.open(resume=True)
                    sink.write([_PROBE])
                    sink.commit(Checkpoint({}, 0, 0))
                finally:
                    sink.close()
        staging = self.position_folder(is_replay) / STAGING
        for target in (self.directory, self.own_folder / DEAD_LETTERS):
            if staging.is_dir() and target.is_dir():
                # They may be mounts: then no file can be renamed from one into the other.
                with tempfile.NamedTemporaryFile(prefix=PROBE_PREFIX, dir=staging) as file:
                    moved = target / Path(file.name).name
                    Path(file.name).rename(moved).rename(file.name)

    def record_commit(self, metrics: Metrics, published: int, reached_ms: int) -> None:
        """See `Destination.record_commit`."""
        metrics.file_events.inc(published)
