# ruff: noqa: RUF009  # `flag` declares fields of dataclasses
"""The archive as the command line describes it; see `Destination`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from pleiades.config.flags import BOOLEAN, DIRECTORY, Flag, flag
from pleiades.config.settings import Settings
from pleiades.config.values import Reader, choice, duration, optional, size
from pleiades.core.checkpoint import Checkpoint
from pleiades.core.event import Event
from pleiades.core.sse_id import UNKNOWN_SOURCE
from pleiades.runtime.errors import UsageError
from pleiades.runtime.findings import Finding
from pleiades.runtime.metrics import Metrics
from pleiades.sinks.archive.layout import CODEC_OF, DEAD_LETTERS, FORMATS, NDJSON_ZST, PARQUET
from pleiades.sinks.archive.manifest import MANIFEST
from pleiades.sinks.archive.target import Location, parse_location
from pleiades.sinks.base import CommitPolicy, Sink, SinkContext
from pleiades.sinks.directory import PROBE_PREFIX, DirectoryDestination

if TYPE_CHECKING:
    from pleiades.sinks.archive.finisher import Finisher
    from pleiades.sinks.archive.manifest import Entry
    from pleiades.sinks.archive.raw import RawSegments
    from pleiades.sinks.archive.sink import ArchiveSink
    from pleiades.sinks.archive.uploads import Uploads
    from pleiades.sinks.retry import Once

SEGMENTS = "segments"
MIN_ROTATE_SECONDS, MAX_ROTATE_SECONDS = 1.0, 86_400.0
MIN_ROTATE_BYTES, MAX_ROTATE_BYTES = 64 * 1024, 16 * 1024**3
MAX_EVENTS_IN_COMMIT = 20_000
USUAL_EVENT_BYTES = 250
"""An event of recentchange, compressed."""
_PROBE = Event("probe", UNKNOWN_SOURCE, 0, "", b"", b"probe", "not_json")


def _never(_seconds: float) -> None:
    """Do not wait."""


def _ignore(*_: object) -> None:
    """Observe nothing."""


def _target(text: str) -> Location:
    """Reads the target of uploads; a directory holds in any working directory."""
    location = parse_location(text)
    if location.scheme:
        return location
    try:
        return location._replace(path=str(Path(location.path).absolute()))
    except OSError:
        raise ValueError(f"{text!r} is relative, and the working directory is gone") from None


def _require(module: str, flag_text: str) -> None:
    if find_spec(module) is None:
        raise UsageError(
            f"{flag_text} needs the package {module}, which is not installed: "
            "pip install 'pleiades[archive]'"
        )


class Options(NamedTuple):
    """The other settings of a sink."""

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
    uploads: Uploads | None = None
    """Copies closed segments."""


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

    upload: Location | None = flag(
        "",
        "where closed segments are copied to: s3://bucket/prefix, gs://…, az://…, or a directory; "
        "object stores need the extra `archive`, and take their credentials from the environment",
        optional(Reader("url", _target)),
    )
    keep_local_seconds: float | None = flag(
        "",
        "how long an uploaded segment stays in --archive.dir; empty: for ever",
        optional(duration()),
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

    @classmethod
    def from_flags(cls, given: Mapping[str, Any], position_name: str) -> Self:
        """See `Destination.from_flags`."""
        made = super().from_flags(given, position_name)
        if made.format == PARQUET:
            _require("pyarrow", f"--archive.format={PARQUET}")
        if made.upload is not None and made.upload.scheme:
            _require("obstore", f"--archive.upload={made.upload}")
        if made.keep_local_seconds is not None and made.upload is None:
            raise UsageError(
                "--archive.keepLocal needs --archive.upload: what is not uploaded is never removed"
            )
        return made

    @property
    def directory(self) -> Path:
        """See `DirectoryDestination.directory`."""
        return self.dir.absolute()

    @property
    def commit_policy(self) -> CommitPolicy:
        """See `Destination.commit_policy`."""
        return CommitPolicy(max_events=MAX_EVENTS_IN_COMMIT)

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
            uploads=self._uploads(context),
        )
        retry = Retry(child, metrics.errors, self.directory, self.directory_flag)
        return self.sink(retry, FinisherProcess(), options)

    def _uploads(self, context: SinkContext) -> Uploads | None:
        """The uploads of closed segments; None: there are none."""
        if self.upload is None:
            return None
        from pleiades.sinks.archive.upload import Settings as UploadSettings
        from pleiades.sinks.archive.upload import state_path
        from pleiades.sinks.archive.uploads import Uploads

        manifest = self.manifest(context.settings.replay is not None).name
        settings = UploadSettings(
            str(self.directory),
            manifest,
            str(state_path(self.directory, manifest)),
            str(self.upload),
            self.keep_local_seconds,
        )
        return Uploads(settings, context.metrics.uploads)

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
        from pleiades.sinks.archive.finisher import FinisherProcess
        from pleiades.sinks.retry import Once

        with tempfile.TemporaryDirectory(prefix=PROBE_PREFIX, dir=folder) as place:
            probed = replace(self, dir=Path(place))
            for _ in range(2):
                sink = probed.sink(Once(), FinisherProcess(), Options(1, is_replay=True))
                try:
                    sink.open(resume=True)
                    sink.write([_PROBE])
                    sink.commit(Checkpoint({}, 0, 0))
                    sink.finish()
                finally:
                    sink.close()

    def inspect(self, settings: Settings) -> Iterator[Finding]:
        """See `Destination.inspect`."""
        yield from super().inspect(settings)
        if self.upload is not None:
            from pleiades.sinks.archive.inspect_target import inspect_target

            keeps_local = self.keep_local_seconds is None
            yield from inspect_target(self.upload, self.directory, keeps_local)

    def record_commit(self, metrics: Metrics, published: int, reached_ms: int) -> None:
        """See `Destination.record_commit`."""
        metrics.archive.events.inc(published)
