"""The report of a replay: text for a person, and JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import orjson
from prometheus_client import CollectorRegistry

from pleiades.core.checkpoint import Checkpoint, ReplayProgress
from pleiades.core.range import Range
from pleiades.core.sse_id import TopicPartition
from pleiades.core.units import iso_time, plural, rough_duration
from pleiades.replay.arguments import Arguments
from pleiades.replay.progress import name_of
from pleiades.runtime.errors import EXIT_INCOMPLETE, EXIT_INTERRUPTED, EXIT_STOPPED
from pleiades.sinks.base import destination_of

LABEL_WIDTH = 20
ROUGH_SECONDS = 120
_OUTCOMES = {
    EXIT_STOPPED: "complete",
    EXIT_INTERRUPTED: "stopped before its end: the same command goes on",
    EXIT_INCOMPLETE: "incomplete: the upstream no longer has all of it",
}
_COUNTERS = {
    "already_there": "existing_events_skipped",
    "repeats_dropped": "duplicate_events_dropped",
    "canaries_dropped": "canary_events_dropped",
    "outside_range_dropped": "outside_range_events_dropped",
}
"""Metrics by their key in the report."""


@dataclass(slots=True)
class Report:
    """One run of a replay."""

    told: Arguments
    span: Range
    checkpoint: Checkpoint | None
    """The last durable one; None: there is none yet."""
    counted: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTERS, 0))
    """Events of this run that were not published, by the keys of the report."""
    dead_letters: Mapping[str, int] = field(default_factory=dict)
    """Dead letters by reason."""
    published_now: int = 0
    """Events of this run."""
    seconds: float = 0.0
    restarts: int = 0
    status: int = EXIT_STOPPED
    """The exit status."""
    hours: Mapping[tuple[str, int], int] = field(default_factory=dict)
    """The events of a dry run by topic (empty: unknown) and begin of the hour, ms since 1970."""

    def count(self, registry: CollectorRegistry) -> None:
        """Take the counters from the metrics of all processes."""
        samples = [sample for family in registry.collect() for sample in family.samples]
        totals = {sample.name: int(sample.value) for sample in samples}
        self.counted = {
            key: totals.get(f"pleiades_{name}_total", 0) for key, name in _COUNTERS.items()
        }
        self.dead_letters = {
            sample.labels["reason"]: int(sample.value)
            for sample in samples
            if sample.name == "pleiades_dead_letters_total" and sample.value
        }

    @property
    def _done(self) -> ReplayProgress:
        return (None if self.checkpoint is None else self.checkpoint.done) or ReplayProgress()

    @property
    def _position(self) -> Mapping[TopicPartition, int]:
        return {} if self.checkpoint is None else self.checkpoint.position

    @property
    def _rate(self) -> float:
        return self.published_now / self.seconds if self.seconds else 0.0

    def _outcome(self) -> str:
        if self.status == EXIT_INTERRUPTED and self.told.dry_run:
            return "stopped before its end: nothing is kept of a dry run"
        if self.status == EXIT_INTERRUPTED and self.told.restart:
            return "stopped before its end: the same command without --restart goes on"
        return _OUTCOMES.get(self.status, "failed: the log says why")

    def text(self) -> str:
        """A summary."""
        begin, end = self.span.begin, self.span.end
        part = self.told.part
        piece = "" if part is None else f", slice {part.number} of {part.parts}"
        own = " (each topic from its own id)" if self.span.sources else ""
        letters = ", ".join(f"{count:,} {reason}" for reason, count in self.dead_letters.items())
        duration = f"{self.seconds:.1f} s"
        if self.seconds >= ROUGH_SECONDS:
            duration = rough_duration(self.seconds)
        rows = {
            "replay": self._outcome(),
            "range": f"{iso_time(begin.default_ms)} to {iso_time(end.default_ms)}{own}{piece}",
            "streams": ", ".join(self.told.settings.upstream.streams),
            "into": destination_of(self.told.settings).place,
            "events": self._events(),
            **{f"  {name_of(source)}": self._state(source) for source in sorted(self._position)},
            **{key.replace("_", " "): f"{count:,}" for key, count in self.counted.items()},
            "dead letters": f"{sum(self.dead_letters.values()):,}"
            + (f" ({letters})" if letters else ""),
            "time": f"{duration}, {self._rate:,.0f} events/s, {plural(self.restarts, 'restart')}",
        }
        width = max(LABEL_WIDTH, *map(len, rows))
        lines = [f"{label:{width}} {value}" for label, value in rows.items()]
        lines += [""] if self.hours else []
        for topic, counts in groupby(sorted(self.hours.items()), key=lambda row: row[0][0]):
            lines.append(topic or "(of no known topic)")
            lines += [f"  {iso_time(hour)[:13]}  {count:>12,}" for (_, hour), count in counts]
        return "\n".join(lines)

    def _events(self) -> str:
        total = self._done.total
        if self.told.dry_run:
            return f"{total:,} counted, nothing was written"
        if total == self.published_now:
            return f"{total:,}"
        return f"{total:,} in all runs, {self.published_now:,} in this one"

    def _state(self, source: TopicPartition) -> str:
        published = f"{self._done.published.get(source, 0):,}"
        if source in self._done.finished:
            return published
        reached_ms = self._position[source]
        reached = f"reached {iso_time(reached_ms - 1)}" if reached_ms else "not begun"
        return f"{published}, {reached}"

    def json(self) -> bytes:
        """The same for programs; keys and their order stay as they are."""
        done, part, begin, end = self._done, self.told.part, self.span.begin, self.span.end
        report: dict[str, Any] = {
            "complete": self.status == EXIT_STOPPED,
            "exit_status": self.status,
            "range": {
                "from": iso_time(begin.default_ms),
                "to": iso_time(end.default_ms),
                "from_ms": begin.default_ms,
                "to_ms": end.default_ms,
            },
            "slice": part and {"number": part.number, "of": part.parts},
            "streams": list(self.told.settings.upstream.streams),
            "destination": destination_of(self.told.settings).place,
            "events": done.total,
            "events_this_run": self.published_now,
            "topics": [
                {
                    "topic": source[0],
                    "partition": source[1],
                    "from_ms": begin.of(source),
                    "to_ms": end.of(source),
                    "events": done.published.get(source, 0),
                    "reached": iso_time(reached_ms - 1) if reached_ms else None,
                    "finished": source in done.finished,
                }
                for source, reached_ms in sorted(self._position.items())
            ],
            **self.counted,
            "dead_letters": self.dead_letters,
            "seconds": round(self.seconds, 3),
            "events_per_second": round(self._rate, 1),
            "restarts": self.restarts,
        }
        if self.told.dry_run:
            report["hours"] = [
                {"topic": topic or None, "hour": iso_time(hour), "events": count}
                for (topic, hour), count in sorted(self.hours.items())
            ]
        return orjson.dumps(report, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)

    def write(self, path: Path) -> None:
        """Write the JSON; a file appears whole, a device or pipe gets it as it comes.

        Raises:
            OSError: it can't be written.
        """
        if path.exists() and not path.is_file():
            path.write_bytes(self.json())
            return
        staged = path.with_name(path.name + ".new")
        staged.write_bytes(self.json())
        os.replace(staged, path)  # noqa: PTH105  # over an existing one, too
