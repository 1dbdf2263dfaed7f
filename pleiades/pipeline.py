"""THE map: the stages and the channels between them, in the data's order."""

from __future__ import annotations

from dataclasses import replace

from pleiades import entrypoints
from pleiades.config.settings import Settings
from pleiades.core.checkpoint import Checkpoint
from pleiades.core.event import Batch, End, Frames
from pleiades.core.range import Part
from pleiades.runtime.channel import Channel
from pleiades.runtime.errors import MetricsUnavailable
from pleiades.runtime.process import ProcessSpec
from pleiades.runtime.startup import absolute
from pleiades.runtime.supervisor import Display, MakeGeneration, Supervisor
from pleiades.sinks.base import destination_of


def ingest(settings: Settings) -> int:
    """Relay until stopped; returns the exit status.

    Raises:
        DestinationHeld: another instance publishes to the same place.
        MetricsUnavailable: the port or address of /metrics can't be used.
    """
    try:
        return Supervisor(settings, _make_generation(settings), _modules(settings)).run()
    except MetricsUnavailable:
        # The same command a second time: a held destination says more than a taken port, and has an
        # exit status of its own.
        destination_of(settings).refuse_if_held()
        raise


def replay(settings: Settings, display: Display) -> int:
    """Relay `settings.replay` to its end, or until stopped; returns the exit status.

    0 says that nothing went wrong; whether all of it has come is in what `display` was shown last.

    Raises:
        MetricsUnavailable: the port or address of /metrics can't be used.
    """
    return Supervisor(settings, _make_generation(settings), _modules(settings), display).run()


def _modules(settings: Settings) -> list[str]:
    """The modules that the processes import; see `entrypoints`."""
    reader = "pleiades.reader" if settings.replay is None else "pleiades.range_reader"
    destination = destination_of(settings)
    return [reader, "pleiades.parser", "pleiades.publisher", *destination.modules]


def _make_generation(settings: Settings) -> MakeGeneration:
    """Return the function that makes the channels and processes of one generation."""
    settings = absolute(settings)
    part = None
    if settings.replay is not None:
        part = Part(settings.replay.range, len(settings.replay.first_ms) > 1)

    def stages(resume_stored: bool, details: object) -> list[ProcessSpec]:
        own = replace(settings, resume=settings.resume or resume_stored)
        # A replay begins its range again where the destination has forgotten it.
        last = details if isinstance(details, Checkpoint) and own.replay is None else None
        # upstream ─▶ reader ═frames═▶ parser 0…N-1 ═batches═▶ publisher ─▶ sink
        #               ▲                                         │
        #               └──────────────── resume ─────────────────┘
        resume: Channel[Checkpoint] = Channel("resume", 1)
        numbers = range(own.parsers)
        frames: list[Channel[Frames | End]] = [Channel(f"frames-{number}") for number in numbers]
        batches: list[Channel[Batch | End]] = [Channel(f"batches-{number}") for number in numbers]
        return [
            ProcessSpec("reader", entrypoints.reader, (own, resume, frames), stoppable=True),
            *(
                ProcessSpec(
                    f"parser-{number}",
                    entrypoints.parser,
                    (own.upstream.keep_canaries, frames[number], batches[number], part),
                )
                for number in numbers
            ),
            ProcessSpec(
                "publisher",
                entrypoints.publisher,
                (own, resume_stored, last, resume, batches),
                concludes=own.replay is not None,
            ),
        ]

    return stages
