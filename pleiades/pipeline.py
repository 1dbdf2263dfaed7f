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
from pleiades.runtime.channel import Channel
from pleiades.runtime.child import Life
from pleiades.runtime.errors import MetricsUnavailable
from pleiades.runtime.metrics import Metrics
from pleiades.runtime.settings import FilesSettings, KafkaSettings, Settings
from pleiades.runtime.stage import StageSpec
from pleiades.runtime.supervisor import Supervisor
from pleiades.sinks.base import Sink
from pleiades.sinks.files import FilesSink, Surroundings, refuse_if_held

log = logging.getLogger(__name__)


def ingest(settings: Settings) -> int:
    """Relay until stopped; returns the exit status.

    Raises:
        DestinationHeld: another instance publishes to the same place.
        MetricsUnavailable: the port or address of /metrics can't be used.
    """

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
        return [
            StageSpec("reader", reader.run, (own, resume, frames), stoppable=True),
            *(
                StageSpec(
                    f"parser-{number}",
                    parser.run,
                    (own.upstream.keep_canaries, frames[number], batches[number]),
                )
                for number in numbers
            ),
            StageSpec(
                "publisher",
                publisher.run,
                (own, _sink_of(settings, reached=resume_stored), resume, batches),
            ),
        ]

    try:
        return Supervisor(settings, stages).run()
    except MetricsUnavailable:
        # The same command a second time: that the destination is held says more than that the
        # port is taken, and has an exit status of its own.
        if settings.files is not None:
            refuse_if_held(settings.files.publish_dir)
        raise


def _sink_of(settings: Settings, reached: bool) -> Callable[[Life, Metrics], Sink]:
    """What makes the sink, in the publisher's process; `reached`: an earlier one was opened."""
    if settings.kafka is not None:
        return partial(_kafka, settings.kafka, settings, reached)
    if settings.files is None:
        raise AssertionError("settings_from sees to it that there is a publisher")
    return partial(_files, settings.files, int(settings.window_seconds * 1000), reached)


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
    )


def _files(
    files: FilesSettings, window_ms: int, reached: bool, life: Life, metrics: Metrics
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
        window_ms,
        Surroundings(life.pause, on_trouble),
        reached,
    )
