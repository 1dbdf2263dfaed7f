"""Segments of an archive as a sink leaves them to be finished."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from pleiades.core.units import parse_iso_time_ms
from pleiades.simulator.generator import generated
from pleiades.simulator.settings import Disorder, SimulatorSettings
from pleiades.sinks.archive.codecs import Compressor

HOUR = "2026-11-27T10:00:00Z"
FIRST_OFFSET = 5_000_000_000


def event_lines(count: int, hour: str = HOUR, seed: int = 1) -> list[bytes]:
    """Events of `mediawiki.recentchange` in an hour, as lines of a segment."""
    settings = SimulatorSettings(
        seed=seed,
        history_events=count,
        history_seconds=3600.0,
        canary_every_seconds=0.0,
        disorder=Disorder(factor=0.0),
    )
    events = generated(settings, parse_iso_time_ms(hour) + 3_600_000)
    return [
        b"%b%d%b\n" % (event.payload[: event.split], offset, event.payload[event.split :])
        for offset, event in enumerate(islice(events, count), FIRST_OFFSET)
    ]


def sealed_segment(path: Path, lines: list[bytes], codec: str, lines_per_commit: int = 10) -> Path:
    """Write a segment with a frame for each commit."""
    compressor = Compressor(codec)
    with path.open("wb") as file:
        for at in range(0, len(lines), lines_per_commit):
            for line in lines[at : at + lines_per_commit]:
                compressor.add(line)
            file.write(compressor.frame())
    return path
