"""What a replay did: for a person, and as JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import orjson
from prometheus_client import CollectorRegistry

from pleiades.core.position import Checkpoint, Done
from pleiades.core.range import Range
from pleiades.core.units import iso_time, plural, rough_duration
from pleiades.core.wire import REASONS, TopicPartition
from pleiades.replay.arguments import Arguments
from pleiades.replay.progress import name_of
from pleiades.runtime.errors import EXIT_INCOMPLETE, EXIT_INTERRUPTED, EXIT_STOPPED
from pleiades.sinks.base import destination_of

LABEL_WIDTH = 20
_OUTCOMES = {
    EXIT_STOPPED: "complete",
    EXIT_INTERRUPTED: "stopped before its end: the same command goes on",
    EXIT_INCOMPLETE: "incomplete: the upstream no longer has all of it",
}


@dataclass(frozen=True, slots=True)
class Totals:
    """What this run counted beside the published events."""

    repeats: int = 0
    existing: int = 0
    canaries: int = 0
    outside: int = 0
    dead_letters: Mapping[str, int] = field(default_factory=dict)
    """By reason."""


def totals(registry: CollectorRegistry) -> Totals:
    """Read from the metrics of all processes."""
    samples = {
        (sample.name, sample.labels.get("reason", "")): int(sample.value)
        for family in registry.collect()
        for sample in family.samples
    }

    def total(name: str) -> int:
        return samples.get((f"pleiades_{name}_total", ""), 0)

    letters = {
        reason: samples.get(("pleiades_dead_letters_total", reason), 0) for reason in REASONS
    }
    return Totals(
        total("duplicate_events_dropped"),
        total("existing_events_skipped"),
        total("canary_events_dropped"),
        total("outside_range_events_dropped"),
        {reason: count for reason, count in letters.items() if count},
    )


@dataclass(slots=True)
class Report:
    """One run of a replay."""

    told: Arguments
    span: Range
    checkpoint: Checkpoint | None
    """The last durable one; None: there is none yet."""
    totals: Totals = field(default_factory=Totals)
    published_now: int = 0
    """Events of this run."""
    seconds: float = 0.0
    restarts: int = 0
    status: int = EXIT_STOPPED
    """The exit status."""
    hours: Mapping[tuple[str, int], int] = field(default_factory=dict)
    """Of a dry run: events by topic (empty: unknown) and begin of the hour, ms since 1970."""

    @property
    def _done(self) -> Done:
        return (None if self.checkpoint is None else self.checkpoint.done) or Done()

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
        done, counted = self._done, self.totals
        begin, end = self.span.begin, self.span.end
        part = self.told.part
        piece = "" if part is None else f", slice {part.number} of {part.parts}"
        own = " (each topic from its own id)" if self.span.sources else ""
        rows = [
            ("replay", self._outcome()),
            ("range", f"{iso_time(begin.default_ms)} to {iso_time(end.default_ms)}{own}{piece}"),
            ("streams", ", ".join(self.told.settings.upstream.streams)),
            ("into", destination_of(self.told.settings).place),
            ("events", self._events()),
        ]
        rows += [
            (f"  {name_of(source)}", f"{done.published.get(source, 0):,}{self._state(source)}")
            for source in sorted(self._position)
        ]
        restarts = plural(self.restarts, "restart")
        rows += [
            ("already there", f"{counted.existing:,}"),
            ("repeats dropped", f"{counted.repeats:,}"),
            ("canaries dropped", f"{counted.canaries:,}"),
            ("outside of range", f"{counted.outside:,}"),
            ("dead letters", _by_reason(counted.dead_letters)),
            (
                "time",
                f"{_duration(self.seconds)}, {self._rate:,.0f} events/s, {restarts}",
            ),
        ]
        width = max(LABEL_WIDTH, *(len(label) for label, _ in rows))
        lines = [f"{label:{width}} {value}" for label, value in rows]
        return "\n".join([*lines, *self._table()])

    def _events(self) -> str:
        total = self._done.total
        if self.told.dry_run:
            return f"{total:,} counted, nothing was written"
        if total == self.published_now:
            return f"{total:,}"
        return f"{total:,} in all runs, {self.published_now:,} in this one"

    def _state(self, source: TopicPartition) -> str:
        if source in self._done.finished:
            return ""
        reached_ms = self._position[source]
        return f", reached {iso_time(reached_ms - 1)}" if reached_ms else ", not begun"

    def _table(self) -> list[str]:
        if not self.hours:
            return []
        lines = [""]
        for topic, rows in groupby(sorted(self.hours.items()), key=lambda row: row[0][0]):
            lines.append(topic or "(of no known topic)")
            lines += [f"  {iso_time(hour)[:13]}  {count:>12,}" for (_, hour), count in rows]
        return lines

    def json(self) -> bytes:
        """The same for programs; keys and their order stay as they are."""
        done, counted, part = self._done, self.totals, self.told.part
        report: dict[str, Any] = {
            "complete": self.status == EXIT_STOPPED,
            "exit_status": self.status,
            "range": {
                "from": iso_time(self.span.begin.default_ms),
                "to": iso_time(self.span.end.default_ms),
                "from_ms": self.span.begin.default_ms,
                "to_ms": self.span.end.default_ms,
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
                    "from_ms": self.span.begin.of(source),
                    "to_ms": self.span.end.of(source),
                    "events": done.published.get(source, 0),
                    "reached": iso_time(reached_ms - 1) if reached_ms else None,
                    "finished": source in done.finished,
                }
                for source, reached_ms in sorted(self._position.items())
            ],
            "already_there": counted.existing,
            "repeats_dropped": counted.repeats,
            "canaries_dropped": counted.canaries,
            "outside_range_dropped": counted.outside,
            "dead_letters": dict(counted.dead_letters),
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


def _by_reason(letters: Mapping[str, int]) -> str:
    each = ", ".join(f"{count:,} {reason}" for reason, count in letters.items())
    return f"{sum(letters.values()):,}" + (f" ({each})" if each else "")


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else rough_duration(seconds)  # noqa: PLR2004  # minutes


def write_report(path: Path, report: Report) -> None:
    """Write the JSON; a file appears whole, a device or pipe gets it as it comes.

    Raises:
        OSError: it can't be written.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(report.json())
        return
    staged = path.with_name(path.name + ".new")
    staged.write_bytes(report.json())
    os.replace(staged, path)  # noqa: PTH105  # over an existing one, too
