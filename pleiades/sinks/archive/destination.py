# ruff: noqa: RUF009  # `flag` declares fields of dataclasses
"""The archive as the command line describes it; see `Destination`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pleiades.config.flags import BOOLEAN, DIRECTORY, Flag, flag
from pleiades.config.values import choice, duration, size
from pleiades.core.checkpoint import Checkpoint
from pleiades.core.event import Event
from pleiades.core.sse_id import UNKNOWN_SOURCE
from pleiades.runtime.metrics import Metrics
from pleiades.sinks.archive.layout import (
    DEAD_LETTERS,
    FORMATS,
    NDJSON,
    NDJSON_GZ,
    NDJSON_ZST,
    PARQUET,
)
from pleiades.sinks.archive.manifest import MANIFEST
from pleiades.sinks.base import CommitPolicy, Sink, SinkContext
from pleiades.sinks.directory import PROBE_PREFIX, DirectoryDestination

if TYPE_CHECKING:
    from pleiades.sinks.archive.finisher import Finisher
    from pleiades.sinks.archive.manifest import Entry
    from pleiades.sinks.archive.raw import RawSegments
    from pleiades.sinks.archive.sink import ArchiveSink
    from pleiades.sinks.retry import Once

SEGMENTS = "segments"
MIN_ROTATE_SECONDS, MAX_ROTATE_SECONDS = 1.0, 86_400.0
MIN_ROTATE_BYTES, MAX_ROTATE_BYTES = 64 * 1024, 16 * 1024**3
COMMIT_SECONDS = 1.0
"""Less often than other destinations: small frames compress badly, and each commit syncs files."""
MAX_EVENTS_IN_COMMIT = 20_000
USUAL_EVENT_BYTES = 250
"""An event of recentchange, compressed."""
CODEC_OF = {NDJSON_ZST: "zst", NDJSON_GZ: "gz", NDJSON: "", PARQUET: "zst"}
"""The codec of the raw files for each format; see `codecs`."""
_PROBE = Event("probe", UNKNOWN_SOURCE, 0, "", b"", b"probe", "not_json")


def _never(_seconds: float) -> None:
    """Do not wait."""


def _ignore(*_: object) -> None:
    """Observe nothing."""


class Options(NamedTuple):
    """What else a sink needs to know."""

    max_entries: int
    """This many published events are remembered at most."""
    is_replay: bool = False
    """It publishes beside an ingest, and closes its segments at its end."""
    reached: bool = False
    """An earlier process of this program had the directory open: wait for it, do not make it."""
    probes: bool = False
    """Try the file system's calls before the first event."""
    pause: Callable[[float], None] = _never
    """Waits so many seconds, unless the program stops."""
    observe: Callable[[RawSegments, list[Entry]], None] = _ignore
    """Gets the segments after each step, and the entries of those that were closed."""


@dataclass(frozen=True)
class ArchiveDestination(DirectoryDestination):
    """Compressed segments in a directory."""

    dir: Path = flag("./archive", "where the segments go; created if missing", DIRECTORY)
    rotate_seconds: float = flag(
        "1h",
        "longest time, by the events' Kafka timestamps, in one segment; a quiet stream's segment is "
        "closed after the same time by the clock",
        duration(MIN_ROTATE_SECONDS, MAX_ROTATE_SECONDS),
    )
    rotate_bytes: int = flag(
        "512MB",
        "a segment with so much text, uncompressed, is closed",
        size(MIN_ROTATE_BYTES, MAX_ROTATE_BYTES),
    )
    format: str = flag(
        NDJSON_ZST,
        "format of closed segments; parquet needs the extra `archive`",
        choice(*FORMATS),
    )
    compact: bool = flag(
        "true", "compress a segment again when it is closed: small commits compress badly", BOOLEAN
    )

    prefix = "archive."
    enable = Flag(
        "archive.enable",
        "false",
        "publish to compressed segments of many events",
        BOOLEAN,
        without=("demo",),
        group="archive",
    )
    modules = ("pleiades.sinks.archive.sink",)
    skip_existing_refusal = (
        "its segments may be moved away at any time, so they do not tell what was published; choose "
        "a range that it lacks, or another --archive.dir"
    )
    directory_flag = "--archive.dir"
    contents = "segments"
    bytes_per_event = USUAL_EVENT_BYTES
    files_per_event = 0

    @property
    def directory(self) -> Path:
        """See `DirectoryDestination.directory`."""
        return self.dir.absolute()

    @property
    def commit_policy(self) -> CommitPolicy:
        """See `Destination.commit_policy`."""
        return CommitPolicy(COMMIT_SECONDS, MAX_EVENTS_IN_COMMIT)

    @property
    def codec(self) -> str:
        """The codec of the raw files."""
        return CODEC_OF[self.format]

    def folders(self, is_replay: bool) -> list[Path]:
        """See `DirectoryDestination.folders`."""
        return [*super().folders(is_replay), self.position_folder(is_replay) / SEGMENTS]

    def published_folders(self) -> list[Path]:
        """See `DirectoryDestination.published_folders`."""
        return [self.directory / DEAD_LETTERS]

    def manifest(self, is_replay: bool) -> Path:
        """The manifest that this run appends to. Each replay has its own, beside an ingest's."""
        name = f"manifest-{self.position_name}.ndjson" if is_replay else MANIFEST
        return self.directory / name

    def make_sink(self, context: SinkContext) -> Sink:
        """See `Destination.make_sink`."""
        from pleiades.sinks.archive.finisher import FinisherProcess
        from pleiades.sinks.retry import Retry

        metrics, child = context.metrics.archive, context.child

        def observe(raw: RawSegments, closed: list[Entry]) -> None:
            opened = [each.segment for each in raw]
            metrics.open_bytes.set(sum(segment.length for segment in opened))
            since_ms = min((segment.opened_ms for segment in opened), default=0)
            metrics.open_since.set(since_ms / 1000)
            metrics.closed.inc(len(closed))

        options = Options(
            context.settings.max_entries,
            is_replay=context.settings.replay is not None,
            reached=context.reached,
            probes=not context.reached,
            pause=child.pause,
            observe=observe,
        )
        retry = Retry(child, metrics.errors, self.directory, self.directory_flag)
        return self.sink(retry, FinisherProcess(), options)

    def sink(
        self,
        retry: Once,
        finisher: Finisher,
        options: Options,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> ArchiveSink:
        """Put a sink together.

        Args:
            now_ms: the wall clock, ms since 1970.
        """
        from pleiades.sinks.archive.closing import Closer
        from pleiades.sinks.archive.naming import Manifest
        from pleiades.sinks.archive.raw import RawSegments
        from pleiades.sinks.archive.sink import ArchiveSink

        is_replay = options.is_replay
        folder = self.position_folder(is_replay) / SEGMENTS
        rotate_ms = int(self.rotate_seconds * 1000)
        raw = RawSegments(
            folder, self.position_name, self.codec, rotate_ms, self.rotate_bytes, now_ms
        )
        tag = f"{self.position_name}-" if is_replay else ""
        closer = Closer(self, raw, finisher, Manifest(self.manifest(is_replay)), tag)
        return ArchiveSink(self, retry, raw, closer, options)

    def probe(self, folder: Path, is_replay: bool = False) -> None:
        """See `DirectoryDestination.probe`."""
        from pleiades.sinks.archive.finisher import InlineFinisher
        from pleiades.sinks.retry import Once

        with tempfile.TemporaryDirectory(prefix=PROBE_PREFIX, dir=folder) as place:
            probed = replace(self, dir=Path(place))
            for _ in range(2):
                sink = probed.sink(Once(), InlineFinisher(), Options(1, is_replay=True))
                try:
                    sink.open(resume=True)
                    sink.write([_PROBE])
                    sink.commit(Checkpoint({}, 0, 0))
                    sink.finish()
                finally:
                    sink.close()

    def record_commit(self, metrics: Metrics, published: int, reached_ms: int) -> None:
        """See `Destination.record_commit`."""
        metrics.archive.events.inc(published)
