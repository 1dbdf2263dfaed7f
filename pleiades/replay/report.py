"""The report of a replay: text for a person, and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import orjson
from prometheus_client import CollectorRegistry

from pleiades.core.checkpoint import Checkpoint, ReplayProgress
from pleiades.core.event import REASONS
from pleiades.core.range import Range
from pleiades.core.sse_id import TopicPartition
from pleiades.core.units import iso_time, plural, rough_duration
from pleiades.replay.arguments import Arguments
from pleiades.runtime.errors import EXIT_INCOMPLETE, EXIT_INTERRUPTED, EXIT_STOPPED
from pleiades.sinks.base import destination_of
from pleiades.sinks.counting import Counted
from pleiades.sinks.disk import replace_file

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


def name_of(source: TopicPartition) -> str:
    """`eqiad.mediawiki.recentchange`, with the partition where it is not the first."""
    topic, partition = source
    return f"{topic}/{partition}" if partition else topic


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

    def learn(self, published: int, restarts: int, details: object) -> None:
        """Take what the supervisor shows; see `LiveLine`."""
        self.published_now, self.restarts = published, restarts
        if isinstance(details, Counted):
            details, self.hours = details
        if isinstance(details, Checkpoint):
            self.checkpoint = details

    def count(self, registry: CollectorRegistry) -> None:
        """Take the counters from the metrics of all processes."""

        def total(name: str, **labels: str) -> int:
            return int(registry.get_sample_value(f"pleiades_{name}_total", labels) or 0)

        self.counted = {key: total(name) for key, name in _COUNTERS.items()}
        letters = {reason: total("dead_letters", reason=reason) for reason in REASONS}
        self.dead_letters = {reason: count for reason, count in letters.items() if count}

    def _fields(self) -> dict[str, Any]:
        """The report for programs; keys and their order stay as they are."""
        checkpoint = self.checkpoint or Checkpoint({}, 0, 0)
        done, part = checkpoint.done or ReplayProgress(), self.told.part
        begin, end = self.span.begin, self.span.end
        fields: dict[str, Any] = {
            "complete": self.status == EXIT_STOPPED,
            "exit_status": self.status,
            "range": {
                "from": iso_time(begin.default_ms),
                "to": iso_time(end.default_ms),
                "from_ms": begin.default_ms,
                "to_ms": end.default_ms,
            },
            "slice": part and {"number": part.number, "of": part.parts},
            "streams": self.told.settings.upstream.streams,
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
                for source, reached_ms in sorted(checkpoint.position.items())
            ],
            **self.counted,
            "dead_letters": self.dead_letters,
            "seconds": round(self.seconds, 3),
            "events_per_second": round(self.published_now / (self.seconds or 1.0), 1),
            "restarts": self.restarts,
        }
        if self.told.dry_run:
            fields["hours"] = [
                {"topic": topic or None, "hour": iso_time(hour), "events": count}
                for (topic, hour), count in sorted(self.hours.items())
            ]
        return fields

    def json(self) -> bytes:
        """The report for programs."""
        return orjson.dumps(self._fields(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)

    def text(self) -> str:
        """A summary for a person."""
        fields = self._fields()
        part = " (each topic from its own id)" if self.span.sources else ""
        if fields["slice"]:
            part += ", slice {number} of {of}".format(**fields["slice"])
        letters = ", ".join(f"{count:,} {reason}" for reason, count in self.dead_letters.items())
        took = rough_duration(self.seconds)
        if self.seconds < ROUGH_SECONDS:
            took = f"{self.seconds:.1f} s"
        rate = f"{fields['events_per_second']:,.0f} events/s"
        events = f"{fields['events']:,}"
        if self.told.dry_run:
            events += " counted, nothing was written"
        elif fields["events"] != self.published_now:
            events += f" in all runs, {self.published_now:,} in this one"
        rows = {
            "replay": self._outcome(),
            "range": "{from} to {to}".format(**fields["range"]) + part,
            "streams": ", ".join(fields["streams"]),
            "into": fields["destination"],
            "events": events,
            **{
                f"  {name_of((topic['topic'], topic['partition']))}": _state(topic)
                for topic in fields["topics"]
            },
            **{key.replace("_", " "): f"{count:,}" for key, count in self.counted.items()},
            "dead letters": f"{sum(self.dead_letters.values()):,}"
            + (f" ({letters})" if letters else ""),
            "time": f"{took}, {rate}, {plural(self.restarts, 'restart')}",
        }
        width = max(LABEL_WIDTH, *map(len, rows))
        lines = [f"{label:{width}} {value}" for label, value in rows.items()]
        hours = fields.get("hours", ())
        lines += [""] if hours else []
        for topic, counts in groupby(hours, key=lambda row: row["topic"]):
            lines.append(topic or "(of no known topic)")
            lines += [f"  {row['hour'][:13]}  {row['events']:>12,}" for row in counts]
        return "\n".join(lines)

    def _outcome(self) -> str:
        if self.status == EXIT_INTERRUPTED and self.told.dry_run:
            return "stopped before its end: nothing is kept of a dry run"
        if self.status == EXIT_INTERRUPTED and self.told.restart:
            return "stopped before its end: the same command without --restart goes on"
        return _OUTCOMES.get(self.status, "failed: the log says why")

    def write(self, path: Path) -> None:
        """Write the JSON; a file appears whole, a device or pipe gets it as it comes.

        Raises:
            OSError: it can't be written.
        """
        if path.exists() and not path.is_file():
            path.write_bytes(self.json())
            return
        replace_file(path, self.json(), synced=False)


def _state(topic: Mapping[str, Any]) -> str:
    if topic["finished"]:
        return f"{topic['events']:,}"
    reached = f"reached {topic['reached']}" if topic["reached"] else "not begun"
    return f"{topic['events']:,}, {reached}"
