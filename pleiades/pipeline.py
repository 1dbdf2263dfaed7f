"""THE map: the stages and the channels between them, in the data's order; and `pleiades ingest`."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace

from pleiades.config.settings import Settings
from pleiades.core.checkpoint import Checkpoint
from pleiades.core.event import Batch, Delivered, End, Frames, PositionRequest
from pleiades.core.range import Part
from pleiades.runtime import logs
from pleiades.runtime.channel import Channel
from pleiades.runtime.errors import MetricsUnavailable
from pleiades.runtime.liveline import LiveLine
from pleiades.runtime.process import ProcessSpec
from pleiades.runtime.startup import absolute, allow_descriptors
from pleiades.runtime.supervisor import MakeGeneration, Supervisor
from pleiades.sinks.base import destination_of
from pleiades.sinks.registry import relay_parser, relay_settings
from pleiades.upstream.environment import refuse_unusable

PARSER, PUBLISHER = "pleiades.parser", "pleiades.publisher"
"""Named only: the parent imports no stage."""
DESCRIPTORS, DESCRIPTORS_PER_PARSER = 64, 16
"""The files that the parent has open, without clients of /metrics; a child has fewer."""


def run(arguments: Sequence[str], description: str) -> int:
    """`pleiades ingest`: relay until stopped; returns the exit status."""
    settings = relay_settings(vars(relay_parser("ingest", description).parse_args(arguments)))
    logs.configure(settings.log_level, settings.log_format, "parent")
    return relay(settings)


def relay(settings: Settings, display: LiveLine | None = None) -> int:
    """Relay until stopped, or a range to its end; returns the exit status.

    Of a replay, 0 says only that nothing went wrong; `display` was shown how much of it has come.

    Raises:
        UsageError: requests to the upstream can't obey the environment.
        DestinationHeld: another instance publishes to the same place.
        MetricsUnavailable: the port or address of /metrics can't be used.
        Fatal: the process may not open enough files.
    """
    refuse_unusable(settings.upstream)
    allow_descriptors(DESCRIPTORS + DESCRIPTORS_PER_PARSER * settings.parsers)
    make_generation, modules = _make_generation(settings), _modules(settings)
    try:
        return Supervisor(settings, make_generation, modules, display).run()
    except MetricsUnavailable:
        # The same command a second time: a held destination says more than a taken port, and has an
        # exit status of its own.
        with contextlib.suppress(OSError):
            destination_of(settings).refuse_if_held()
        raise


def _reader(settings: Settings) -> str:
    return "pleiades.reader" if settings.replay is None else "pleiades.range_reader"


def _modules(settings: Settings) -> list[str]:
    """The modules that the processes import."""
    return [_reader(settings), PARSER, PUBLISHER, *destination_of(settings).modules]


def _make_generation(settings: Settings) -> MakeGeneration:
    """Return the function that makes the channels and processes of one generation."""
    settings = absolute(settings)
    replay = settings.replay
    part = None if replay is None else Part(replay.range, len(replay.first_ms) > 1)

    def stages(resume_stored: bool, details: object) -> list[ProcessSpec]:
        own = replace(settings, resume=settings.resume or resume_stored)
        # A replay begins its range again where the destination has forgotten it.
        last = details if isinstance(details, Checkpoint) and replay is None else None
        # upstream ─▶ reader ═frames═▶ parser 0…N-1 ═batches═▶ publisher ─▶ sink
        #              ▲  ▲              │                       │
        #              │  └─ delivered ──┘                       │
        #              └──────────────── resume ─────────────────┘
        resume: Channel[Checkpoint] = Channel("resume", 1)
        frames: list[Channel[Frames | PositionRequest | End]] = []
        batches: list[Channel[Batch | End]] = []
        delivered: list[Channel[Delivered]] = []
        parsers = []
        for number in range(own.parsers):
            frames.append(Channel(f"frames-{number}"))
            batches.append(Channel(f"batches-{number}"))
            delivered.append(Channel(f"delivered-{number}", 1))
            channels = (frames[-1], batches[-1], delivered[-1])
            arguments = (own.upstream.keep_canaries, *channels, part)
            parsers.append(ProcessSpec(f"parser-{number}", PARSER, arguments))
        to_parsers = (own, resume, frames, delivered)
        from_parsers = (own, resume_stored, last, resume, batches)
        return [
            ProcessSpec("reader", _reader(own), to_parsers, stoppable=True),
            *parsers,
            ProcessSpec("publisher", PUBLISHER, from_parsers, concludes=replay is not None),
        ]

    return stages
