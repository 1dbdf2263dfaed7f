"""The functions that the child processes run.

Imports stand in the functions: the parent imports this module and runs none of them, and each process
imports only what it needs.
"""

from __future__ import annotations

from pleiades.config.settings import Settings
from pleiades.core.checkpoint import Checkpoint
from pleiades.core.event import Batch, End, Frames
from pleiades.core.range import Part
from pleiades.runtime.channel import Channel
from pleiades.runtime.child import ChildContext
from pleiades.runtime.metrics import Metrics
from pleiades.sinks.base import SinkContext, destination_of


def reader(
    child: ChildContext,
    metrics: Metrics,
    settings: Settings,
    resume: Channel[Checkpoint],
    parsers: list[Channel[Frames | End]],
) -> None:
    """Read the stream, or a range of its history."""
    if settings.replay is None:
        from pleiades.reader import Reader

        Reader(child, metrics, settings, resume, parsers).run()
    else:
        from pleiades.range_reader import RangeReader

        RangeReader(child, metrics, settings, resume, parsers).run()


def parser(
    child: ChildContext,
    metrics: Metrics,
    keep_canaries: bool,
    frames: Channel[Frames | End],
    batches: Channel[Batch | End],
    part: Part | None,
) -> None:
    """Turn frames into events."""
    from pleiades.parser import run

    run(child, metrics, keep_canaries, frames, batches, part)


def publisher(
    child: ChildContext,
    metrics: Metrics,
    settings: Settings,
    reached: bool,
    last: Checkpoint | None,
    resume: Channel[Checkpoint],
    parsers: list[Channel[Batch | End]],
) -> None:
    """Publish events.

    Args:
        reached: an earlier publisher of this program had the destination open.
        last: the checkpoint that it committed last.
    """
    from pleiades.publisher import Publisher

    sink = destination_of(settings).make_sink(SinkContext(child, metrics, settings, reached))
    Publisher(child, metrics, settings, sink, resume, parsers, last).run()
