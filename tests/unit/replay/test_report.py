from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from prometheus_client import CollectorRegistry

from pleiades.core.checkpoint import Checkpoint, ReplayProgress
from pleiades.core.range import Bound, Range, Slice
from pleiades.replay.arguments import Arguments
from pleiades.replay.report import Report
from pleiades.runtime.metric_store import collected
from pleiades.runtime.metrics import Metrics
from pleiades.sinks.counting import Counted
from tests.harness.settings import settings_of

A, B = ("eqiad.mediawiki.recentchange", 0), ("codfw.mediawiki.recentchange", 1)
BEGIN, END = 1_790_000_000_000, 1_790_003_600_000
TOLD = Arguments(
    settings_of("--file.enable", "--file.publishDir=/events"), dry_run=False, part=Slice(2, 8)
)
REPORT = Report(
    TOLD,
    Range(Bound(BEGIN), Bound(END)),
    Checkpoint(
        {A: BEGIN + 60_001, B: END + 5}, 0, END, ReplayProgress({A: 1000, B: 234}, frozenset({B}))
    ),
    counted={"already_there": 6, "repeats_dropped": 5},
    dead_letters={"not_json": 2},
    published_now=234,
    seconds=2.0,
    restarts=1,
    status=5,
)


def test_the_summary_says_what_happened_and_what_to_do() -> None:
    text = REPORT.text()
    for said in (
        "stopped before its end: the same command goes on",
        "2026-09-21T14:13:20.000Z to 2026-09-21T15:13:20.000Z, slice 2 of 8",
        "1,234 in all runs, 234 in this one",
        "eqiad.mediawiki.recentchange   1,000, reached 2026-09-21T14:14:20.000Z",
        "codfw.mediawiki.recentchange/1 234\n",
        "2 (2 not_json)",
        "already there                    6\n",
        "repeats dropped                  5\n",
        "117 events/s, 1 restart",
    ):
        assert said in text, text


@pytest.mark.parametrize(
    ("status", "says"), [(0, "complete"), (6, "no longer has all of it"), (1, "failed")]
)
def test_the_outcome_follows_the_status(status: int, says: str) -> None:
    assert says in replace(REPORT, status=status).text().splitlines()[0]
    assert orjson.loads(replace(REPORT, status=status).json())["complete"] is (status == 0)


def test_what_begins_again_does_not_go_on() -> None:
    assert "without --restart goes on" in replace(REPORT, told=replace(TOLD, restart=True)).text()
    dry = replace(REPORT, told=replace(TOLD, dry_run=True, restart=True)).text()
    assert "nothing is kept of a dry run" in dry


def test_the_json_has_it_all() -> None:
    report = orjson.loads(REPORT.json())
    assert report["range"]["from_ms"] == BEGIN
    assert report["slice"] == {"number": 2, "of": 8}
    assert report["events"] == 1234
    assert [topic["events"] for topic in report["topics"]] == [234, 1000]
    assert report["dead_letters"] == {"not_json": 2}
    assert report["events_per_second"] == 117.0
    assert "hours" not in report


def test_a_dry_run_shows_a_table() -> None:
    hours = {(A[0], BEGIN - BEGIN % 3_600_000): 40, ("", 0): 2}
    dry = replace(REPORT, told=replace(TOLD, dry_run=True), hours=hours)
    assert "nothing was written" in dry.text()
    assert "  2026-09-21T14            40" in dry.text()
    assert "(of no known topic)" in dry.text()
    assert orjson.loads(dry.json())["hours"][1]["events"] == 40


def test_it_learns_what_the_supervisor_shows() -> None:
    report = replace(REPORT, checkpoint=None)
    report.learn(7, 2, REPORT.checkpoint)
    assert (report.published_now, report.restarts) == (7, 2)
    assert report.checkpoint == REPORT.checkpoint
    report.learn(8, 2, Counted(None, {("a", 0): 3}))
    assert report.hours == {("a", 0): 3}
    assert report.checkpoint == REPORT.checkpoint
    report.learn(8, 2, None)
    assert report.checkpoint == REPORT.checkpoint


def test_a_run_that_came_to_nothing_has_a_report_too() -> None:
    report = replace(REPORT, checkpoint=None, status=1)
    assert orjson.loads(report.json())["events"] == 0
    assert "failed" in report.text()


def test_totals_are_those_of_the_metrics(metrics: Metrics) -> None:
    metrics.duplicates_dropped.inc(3)
    metrics.existing_skipped.inc(4)
    metrics.canaries_dropped.inc(5)
    metrics.outside_range_dropped.inc(6)
    metrics.dead_letters.labels("not_json").inc(7)
    report = replace(REPORT)
    report.count(collected())
    assert list(report.counted.values()) == [4, 3, 5, 6]
    assert report.dead_letters == {"not_json": 7}
    report.count(CollectorRegistry())
    assert list(report.counted.values()) == [0, 0, 0, 0]
    assert report.dead_letters == {}


def test_a_report_replaces_the_one_before_it_and_goes_into_a_device(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(b"old")
    REPORT.write(path)
    assert path.read_bytes() == REPORT.json()
    assert list(tmp_path.iterdir()) == [path]
    REPORT.write(Path("/dev/null"))
    with pytest.raises(OSError, match="missing"):
        REPORT.write(tmp_path / "missing" / "report")
