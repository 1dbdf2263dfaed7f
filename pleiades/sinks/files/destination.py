# ruff: noqa: RUF009  # `flag` declares fields of dataclasses
"""The files destination as the command line describes it; see `Destination`."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pleiades.config.flags import BOOLEAN, DIRECTORY, Flag, flag
from pleiades.config.settings import Settings
from pleiades.config.values import choice
from pleiades.core.checkpoint import Checkpoint, UnreadableCheckpoint
from pleiades.core.event import Event
from pleiades.core.sse_id import UNKNOWN_SOURCE
from pleiades.runtime.errors import Fatal
from pleiades.runtime.findings import Finding
from pleiades.runtime.metrics import Metrics
from pleiades.sinks.base import Destination, Sink, SinkContext
from pleiades.sinks.checkpoints import CheckpointFile
from pleiades.sinks.disk import Lock, refuse_links

log = logging.getLogger(__name__)

SYNC_BATCH = "batch"
SYNC_NONE = "none"

OWN_FOLDER = ".pleiades"
STAGING = "staging"
DEAD_LETTERS = "dead-letters"
REPLAYS = "replays"
LOCK = "lock"

_PROBE_PREFIX = ".pleiades-probe-"
# Its name is as long as that of an event can be, and no search for events finds it.
_PROBE = Event("probe".ljust(150, "-"), UNKNOWN_SOURCE, 0, "", b"[]", b"probe", "not_json")


@dataclass(frozen=True)
class FilesDestination(Destination):
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

    @property
    def place(self) -> str:
        """See `Destination.place`."""
        # A path's bytes need not be text.
        return f"files in {os.fsencode(self.publish_dir.absolute()).decode(errors='replace')}"

    @property
    def own_folder(self) -> Path:
        """The folder of the relay's own files."""
        return self.publish_dir.absolute() / OWN_FOLDER

    def position_folder(self, is_replay: bool) -> Path:
        """The folder of lock, position and identity log. Each replay has its own, beside an ingest's."""
        return self.own_folder / REPLAYS / self.position_name if is_replay else self.own_folder

    def folders(self, is_replay: bool) -> list[Path]:
        """All folders of the relay's own, each after the one that it lies in."""
        position = self.position_folder(is_replay)
        above = [position.parent, position] if is_replay else []
        return [self.own_folder, *above, self.own_folder / DEAD_LETTERS, position / STAGING]

    def lock(self, is_replay: bool = False, must_exist: bool = False) -> Lock:
        """The lock that keeps a second instance out."""
        path = self.position_folder(is_replay) / LOCK
        return Lock(path, self.publish_dir.absolute(), must_exist)

    def make_sink(self, context: SinkContext) -> Sink:
        """See `Destination.make_sink`."""
        from pleiades.sinks.files.retry import Retry
        from pleiades.sinks.files.sink import FilesSink

        is_replay = context.settings.replay is not None
        max_entries = context.settings.max_entries
        retry = Retry(context.child, context.metrics, self.publish_dir.absolute())
        return FilesSink(
            self, retry, max_entries, is_replay, context.reached, probes=not context.reached
        )

    def probe(self, folder: Path, is_replay: bool = False) -> None:
        """Publish in a temporary folder, by the calls of a relay and of its restart, and move a file
        between the folders that exist. A file system refuses for ever what it refuses now.

        Raises:
            OSError: it refuses a call that has no substitute, or there is no room.
        """
        from pleiades.sinks.files.retry import Once
        from pleiades.sinks.files.sink import FilesSink

        with tempfile.TemporaryDirectory(prefix=_PROBE_PREFIX, dir=folder) as place:
            sink = FilesSink(replace(self, publish_dir=Path(place)), Once(), max_entries=1)
            for _ in range(2):
                try:
                    sink.open(resume=True)
                    sink.write([_PROBE])
                    sink.commit(Checkpoint({}, 0, 0))
                finally:
                    sink.close()
        staging = self.position_folder(is_replay) / STAGING
        for target in (self.publish_dir.absolute(), self.own_folder / DEAD_LETTERS):
            if staging.is_dir() and target.is_dir():
                # They may be mounts: then no file can be renamed from one into the other.
                with tempfile.NamedTemporaryFile(prefix=_PROBE_PREFIX, dir=staging) as file:
                    moved = target / Path(file.name).name
                    Path(file.name).rename(moved).rename(file.name)

    def record_commit(self, metrics: Metrics, published: int, reached_ms: int) -> None:
        """See `Destination.record_commit`."""
        metrics.file_events.inc(published)

    def inspect(self, settings: Settings) -> Iterator[Finding]:
        """See `Destination.inspect`."""
        from pleiades.sinks.files.inspect import look

        return look(settings, self)

    def stored_checkpoint(self, is_replay: bool = True) -> Checkpoint | None:
        """See `Destination.stored_checkpoint`."""
        folder = self.position_folder(is_replay=is_replay)
        try:
            refuse_links(self.folders(is_replay=is_replay))
            stored = CheckpointFile(folder, self.position_name, synced=True).read()
        except UnreadableCheckpoint as error:
            log.warning(
                "the position in %s is unusable (%s): the replay begins again; events whose files are "
                "still there are not published twice",
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

    def refuse_if_held(self) -> None:
        """See `Destination.refuse_if_held`."""
        self.lock().refuse_if_held()
