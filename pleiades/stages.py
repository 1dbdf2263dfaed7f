"""What each process runs, and from where.

Imports stand in the functions: the parent starts all of these and runs none, and to import all that one
of them needs takes as long as the rest of its start. So each process imports what is its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from pleiades.core.position import Checkpoint
from pleiades.core.range import Part
from pleiades.core.wire import Batch, End, Frames
from pleiades.runtime.channel import POLL_SECONDS, Channel
from pleiades.runtime.child import Life
from pleiades.runtime.metrics import Metrics
from pleiades.runtime.settings import FilesSettings, KafkaSettings, Settings
from pleiades.sinks.base import Sink

log = logging.getLogger(__name__)

T = TypeVar("T")


def reader(
    life: Life,
    metrics: Metrics,
    settings: Settings,
    resume: Channel[Checkpoint],
    parsers: list[Channel[Frames | End]],
) -> None:
    """Reads the stream, or a range of its history."""
    if settings.replay is None:
        from pleiades.reader import Reader

        Reader(life, metrics, settings, resume, parsers).run()
    else:
        from pleiades.lanes.reader import RangeReader

        RangeReader(life, metrics, settings, settings.replay, resume, parsers).run()


def parser(
    life: Life,
    metrics: Metrics,
    keep_canaries: bool,
    frames: Channel[Frames | End],
    batches: Channel[Batch | End],
    part: Part | None,
) -> None:
    """Makes events of frames."""
    from pleiades.parser import run

    run(life, metrics, keep_canaries, frames, batches, part)


def publisher(
    life: Life,
    metrics: Metrics,
    settings: Settings,
    reached: bool,
    last: Checkpoint | None,
    resume: Channel[Checkpoint],
    parsers: list[Channel[Batch | End]],
) -> None:
    """Publishes events.

    `reached`: an earlier one of this program had the destination open; `last`: what it committed last.
    """
    from pleiades.publisher import Publisher

    sink = _sink_of(settings, reached, life, metrics)
    Publisher(life, metrics, settings, sink, resume, parsers, last).run()


def _sink_of(settings: Settings, reached: bool, life: Life, metrics: Metrics) -> Sink:
    if settings.kafka is not None:
        return _kafka(settings.kafka, settings, reached, life, metrics)
    if settings.files is not None:
        return _files(settings.files, settings, reached, life, metrics)
    if settings.replay is None or not settings.replay.dry_run:
        raise AssertionError("settings_from sees to it that there is a publisher")
    return _counting(life)


def _kafka(
    kafka: KafkaSettings, settings: Settings, reached: bool, life: Life, metrics: Metrics
) -> Sink:
    from pleiades.sinks.kafka import KafkaSink
    from pleiades.sinks.kafka.reporting import Reporting

    overlap_ms = int(settings.upstream.overlap_seconds * 1000)
    return KafkaSink(
        kafka,
        settings.upstream.streams,
        overlap_ms,
        max(int(settings.window_seconds * 1000), overlap_ms),
        reached,
        Reporting(life, metrics),
        settings.replay,
    )


def _counting(life: Life) -> Sink:
    from pleiades.sinks.counting import Counted, CountingSink

    def tell(counted: Counted) -> None:
        # Said at once, for it is the last that this process says.
        with life.busy(POLL_SECONDS):
            life.details = counted

    return CountingSink(tell)


def _files(
    files: FilesSettings, settings: Settings, reached: bool, life: Life, metrics: Metrics
) -> Sink:
    from pleiades.sinks.files import FilesSink, Surroundings

    def on_trouble(operation: str, error: OSError, pause_seconds: float) -> None:
        metrics.file_errors.inc()
        log.error(
            "can't %s %s: %s. Nothing is skipped: trying again in %.1f s. Make room, or give "
            "the permission back",
            operation,
            files.publish_dir,
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
                files.publish_dir,
            )

        return life.aside(call, announce)

    return FilesSink(
        files.publish_dir,
        files.sync,
        files.position_name,
        settings.max_entries,
        Surroundings(life.pause, on_trouble, aside),
        reached,
        settings.replay is not None,
    )
