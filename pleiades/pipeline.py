"""THE map: the stages and the channels between them, in the data's order."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing.context import SpawnContext

from pleiades import parser, publisher, reader
from pleiades.core.position import Checkpoint
from pleiades.core.wire import Batch, End, Frames
from pleiades.lanes import reader as lanes
from pleiades.runtime.channel import POLL_SECONDS, Channel
from pleiades.runtime.child import Life
from pleiades.runtime.errors import MetricsUnavailable
from pleiades.runtime.metrics import Metrics
from pleiades.runtime.settings import FilesSettings, KafkaSettings, Settings
from pleiades.runtime.stage import StageSpec
from pleiades.runtime.supervisor import Display, Stages, Supervisor
from pleiades.sinks.base import Sink
from pleiades.sinks.counting import Counted, CountingSink
from pleiades.sinks.files import FilesSink, Surroundings, refuse_if_held

log = logging.getLogger(__name__)


def ingest(settings: Settings) -> int:
    """Relay until stopped; returns the exit status.

    Raises:
        DestinationHeld: another instance publishes to the same place.
        MetricsUnavailable: the port or address of /metrics can't be used.
    """
    try:
        return Supervisor(settings, _stages(settings)).run()
    except MetricsUnavailable:
        # The same command a second time: that the destination is held says more than that the
        # port is taken, and has an exit status of its own.
        if settings.files is not None:
            refuse_if_held(settings.files.publish_dir)
        raise


def replay(settings: Settings, display: Display) -> int:
    """Relay `settings.replay` to its end, or until stopped; returns the exit status.

    0 says that nothing went wrong; whether all of it has come is in what `display` was shown last.

    Raises:
        MetricsUnavailable: the port or address of /metrics can't be used.
    """
    return Supervisor(settings, _stages(settings), display).run()


def _stages(settings: Settings) -> Stages:
    """What makes the stages of one generation."""
    part = None
    if settings.replay is not None:
        part = parser.Part(settings.replay.range, len(settings.replay.first_ms) > 1)

    def stages(context: SpawnContext, resume_stored: bool) -> list[StageSpec]:
        own = replace(settings, resume=settings.resume or resume_stored)
        # upstream ─▶ reader ═frames═▶ parser 0…N-1 ═batches═▶ publisher ─▶ sink
        #               ▲                                         │
        #               └──────────────── resume ─────────────────┘
        resume: Channel[Checkpoint] = Channel(context, "resume", 1)
        numbers = range(own.parsers)
        frames: list[Channel[Frames | End]] = [
            Channel(context, f"frames-{number}") for number in numbers
        ]
        batches: list[Channel[Batch | End]] = [
            Channel(context, f"batches-{number}") for number in numbers
        ]
        reading = reader.run if own.replay is None else lanes.run
        return [
            StageSpec("reader", reading, (own, resume, frames), stoppable=True),
            *(
                StageSpec(
                    f"parser-{number}",
                    parser.run,
                    (own.upstream.keep_canaries, frames[number], batches[number], part),
                )
                for number in numbers
            ),
            StageSpec(
                "publisher",
                publisher.run,
                (own, _sink_of(settings, reached=resume_stored), resume, batches),
                concludes=own.replay is not None,
            ),
        ]

    return stages


def _sink_of(settings: Settings, reached: bool) -> Callable[[Life, Metrics], Sink]:
    """What makes the sink, in the publisher's process; `reached`: an earlier one was opened."""
    if settings.kafka is not None:
        return partial(_kafka, settings.kafka, settings, reached)
    if settings.files is not None:
        return partial(_files, settings.files, settings, reached)
    if settings.replay is None or not settings.replay.dry_run:
        raise AssertionError("settings_from sees to it that there is a publisher")
    return _counting


def _kafka(
    kafka: KafkaSettings, settings: Settings, reached: bool, life: Life, metrics: Metrics
) -> Sink:
    # Only here: librdkafka is not for those who publish to files, nor for the other processes.
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


def _counting(life: Life, _metrics: Metrics) -> Sink:
    def tell(counted: Counted) -> None:
        # Said at once, for it is the last that this process says.
        with life.busy(POLL_SECONDS):
            life.details = counted

    return CountingSink(tell)


def _files(
    files: FilesSettings, settings: Settings, reached: bool, life: Life, metrics: Metrics
) -> Sink:

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

    return FilesSink(
        files.publish_dir,
        files.sync,
        files.position_name,
        int(settings.window_seconds * 1000),
        Surroundings(life.pause, on_trouble),
        reached,
        settings.replay is not None,
    )
