"""A replay publishes exactly its range, each event once, in order, despite kills and other relays."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson

from pleiades.core.units import iso_time
from pleiades.simulator.log import JournalEntry
from pleiades.simulator.settings import Disorder, Faults, SimulatorSettings
from pleiades.simulator.simulator import Simulator
from tests.harness.oracle import (
    after_first,
    dated,
    judge_parts,
    judge_topic_parts,
    published_count,
)
from tests.harness.relay import COMMAND, Relay, ingest_flags, kafka_flags, replay_flags

Simulate = Callable[[SimulatorSettings], Simulator]

PUBLISHED = "pleiades_kafka_publish_events_total"
INTERRUPTED, INCOMPLETE = 5, 6
NO_CUTS = Faults(cut_every_seconds=0)
NEVER_YEARS_BACK = Disorder(back_years_rate=0.0)
"""An event dated years back may belong to the range by its time, but come far after its end."""

EVENTS = int(os.environ.get("REPLAY_EVENTS", "15000"))
KILLS = int(os.environ.get("REPLAY_KILLS", "2"))
SLICES = int(os.environ.get("REPLAY_SLICES", "3"))
"""Raise these if there is time: see CONTRIBUTING.md."""


def history(events: int = 20_000, **changes: Any) -> SimulatorSettings:
    """An hour of history."""
    return SimulatorSettings(
        **{
            "history_events": events,
            "history_seconds": 3600.0,
            "disorder": NEVER_YEARS_BACK,
            "faults": NO_CUTS,
            **changes,
        }
    )


def middle(journal: list[JournalEntry], dense: bool = False) -> tuple[int, int]:
    """Return a begin and an end with several events at both, in the same millisecond of one topic.

    Args:
        dense: there are events in the millisecond before, too.
    """
    times = [entry.timestamp for entry in journal]
    low, high = min(times), max(times)
    crowd = Counter((entry.source, entry.timestamp) for entry in journal if not entry.canary)
    shared = sorted(
        time
        for (source, time), count in crowd.items()
        if count > 1 and (not dense or (source, time - 1) in crowd)
    )
    begin = next(time for time in shared if time > low + (high - low) // 5)
    end = next(time for time in shared if time > low + (high - low) * 4 // 5)
    return begin, end


def to_files(folder: Path) -> list[str]:
    return ["--file.enable", f"--file.publishDir={folder}", "--file.sync=none"]


def replayed(*arguments: str, report: Path, status: int = 0, seconds: float = 120) -> Any:
    """Run a replay to its end; returns its report."""
    with Relay(*arguments, f"--report={report}") as relay:
        assert relay.wait(seconds) == status, relay.log
    assert "Traceback" not in relay.log, relay.log
    return orjson.loads(report.read_bytes())


def test_exactly_the_range_with_collisions_at_both_bounds(
    simulate: Simulate, folder: Path, tmp_path: Path
) -> None:
    upstream = simulate(
        history(
            history_seconds=20.0,
            disorder=Disorder(back_seconds_rate=0.0, back_years_rate=0.0),
            faults=Faults(cut_every_seconds=0, cut_bytes=2_000_000),
        )
    )
    journal = upstream.journal()
    begin, end = middle(journal, dense=True)
    report = replayed(
        *replay_flags(upstream.url, begin, end),
        *to_files(folder),
        "--upstream.overlap=200ms",
        report=tmp_path / "report",
    )
    verdict = judge_parts(folder, journal, dated(begin, end))
    assert verdict.flawless, verdict
    assert report["complete"]
    assert report["events"] == verdict.published > 5000
    assert {topic["topic"]: topic["events"] for topic in report["topics"]} == Counter(
        entry.topic for entry in journal if begin <= entry.timestamp < end and not entry.canary
    )
    assert upstream.stats().cuts_total > 3


def test_from_one_id_up_to_and_including_another(
    simulate: Simulate, folder: Path, tmp_path: Path
) -> None:
    upstream = simulate(history(5000))
    journal = upstream.journal()
    begin, end = middle(journal)
    behind = {"eqiad.mediawiki.recentchange": 0, "codfw.mediawiki.recentchange": 90_000}

    def sse_id(time_ms: int) -> str:
        return orjson.dumps(
            [
                {"topic": topic, "partition": 0, "timestamp": time_ms + 1 - back_ms}
                for topic, back_ms in behind.items()
            ]
        ).decode()

    replayed(
        *replay_flags(upstream.url, sse_id(begin), sse_id(end)),
        *to_files(folder),
        report=tmp_path / "report",
    )
    verdict = judge_parts(
        folder,
        journal,
        lambda entry: begin < entry.timestamp + behind[entry.topic] <= end,
    )
    assert verdict.flawless, verdict
    assert verdict.published > 1000


def test_killed_at_random_and_run_again_while_an_ingest_runs_into_the_same_topic(
    simulate: Simulate, kafka: str, topic: str, tmp_path: Path
) -> None:
    upstream = simulate(history(EVENTS, rate=300, max_events=EVENTS + 3000))
    begin, end = middle(upstream.journal())
    wanted = len([entry for entry in upstream.journal() if begin <= entry.timestamp < end])
    destination = kafka_flags(kafka, topic)
    arguments = [*replay_flags(upstream.url, begin, end), *destination]
    # Slow enough to be unfinished at each kill.
    slow = f"--rate={wanted / 30:.0f}"
    chance = random.Random(7)
    since = upstream.started_ms
    with Relay(*ingest_flags(upstream.url, since), *destination) as ingest:
        ingest.wait_ready()
        for _ in range(KILLS):
            with Relay(*arguments, slow) as relay:
                relay.wait_for(r"connected to \S+, from \d{4}-\S+Z on")
                published = chance.randrange(wanted // (10 * KILLS))
                relay.until(
                    lambda: relay.metric(PUBLISHED) >= published,  # noqa: B023
                    f"{published} events",
                    30,
                )
                relay.process.kill()
                relay.wait()
            with Relay(*arguments, slow) as relay:
                relay.wait_for("connected to")
                before = len(relay.lines)
                relay.child(chance.choice(["reader", "parser-0", "publisher"])).kill()
                relay.wait_for("starting all processes again", after=before)
                relay.until(
                    lambda: relay.metric("pleiades_upstream_connected") > 0,
                    "a connection",
                    30,
                )
                assert relay.stop() == INTERRUPTED
        report = replayed(*arguments, report=tmp_path / "report")
        upstream.wait_until(lambda stats: stats.events_appended_total >= EVENTS + 3000, 60)
        journal = upstream.journal()
        live = after_first(journal, since)
        expected = sum(live(entry) for entry in journal)
        ingest.until(
            lambda: ingest.metric(PUBLISHED) >= expected, f"{expected} events of the ingest", 30
        )
        assert ingest.stop() == 0
    verdict = judge_topic_parts(kafka, topic, journal, dated(begin, end), live)
    assert verdict.flawless, verdict
    assert report["events"] == verdict.published - expected > EVENTS / 2
    assert report["events_this_run"] < report["events"]


def test_slices_at_once_into_one_topic_are_the_range(
    simulate: Simulate, kafka: str, topic: str, tmp_path: Path
) -> None:
    upstream = simulate(history(EVENTS))
    begin, end = middle(upstream.journal())
    arguments = [*replay_flags(upstream.url, begin, end), *kafka_flags(kafka, topic)]
    with ExitStack() as stack:
        relays = [
            stack.enter_context(
                Relay(
                    *arguments, f"--slice={number}/{SLICES}", f"--report={tmp_path / str(number)}"
                )
            )
            for number in range(SLICES)
        ]
        for relay in relays:
            assert relay.wait(240) == 0, relay.log
    reports = [orjson.loads((tmp_path / str(number)).read_bytes()) for number in range(SLICES)]
    edges = [(report["range"]["from_ms"], report["range"]["to_ms"]) for report in reports]
    assert (edges[0][0], edges[-1][1]) == (begin, end)
    verdict = judge_topic_parts(kafka, topic, upstream.journal(), *[dated(*edge) for edge in edges])
    assert verdict.flawless, verdict
    assert sum(report["events"] for report in reports) == verdict.published > EVENTS / 2


def test_what_is_there_already_is_not_written_again(
    simulate: Simulate, folder: Path, tmp_path: Path
) -> None:
    upstream = simulate(history(3000))
    begin, end = middle(upstream.journal())
    arguments = [*replay_flags(upstream.url, begin, end), *to_files(folder)]
    first = replayed(*arguments, report=tmp_path / "first")
    before = {path: path.stat() for path in folder.glob("[0-9]*/*.json")}
    # The same replay again reports that, and needs no upstream.
    again = replayed(
        *[flag.replace(upstream.url, "http://127.0.0.1:1") for flag in arguments],
        report=tmp_path / "again",
    )
    assert (again["events"], again["events_this_run"]) == (first["events"], 0)
    restarted = replayed(*arguments, "--restart", report=tmp_path / "restarted")
    assert restarted["already_there"] == first["events"]
    assert restarted["events"] == 0
    assert {path: path.stat() for path in folder.glob("[0-9]*/*.json")} == before


def test_what_a_topic_lacks_is_added_to_it(
    simulate: Simulate, kafka: str, topic: str, tmp_path: Path
) -> None:
    upstream = simulate(history(6000))
    journal = upstream.journal()
    begin, end = middle(journal)
    third = (end - begin) // 3
    destination = kafka_flags(kafka, topic)
    parts = [(begin, begin + third), (end - third, end)]
    for number, (start, stop) in enumerate(parts):
        replayed(
            *replay_flags(upstream.url, start, stop), *destination, report=tmp_path / str(number)
        )
    report = replayed(
        *replay_flags(upstream.url, begin, end),
        *destination,
        "--skipExisting",
        report=tmp_path / "report",
    )
    verdict = judge_topic_parts(
        kafka, topic, journal, *[dated(*part) for part in parts], dated(begin + third, end - third)
    )
    assert verdict.flawless, verdict
    missing = dated(begin + third, end - third)
    assert report["events"] == sum(missing(entry) and not entry.canary for entry in journal)
    assert report["events"] + report["already_there"] == verdict.published
    # Another run checks again, and finds nothing to do.
    again = replayed(
        *replay_flags(upstream.url, begin, end),
        *destination,
        "--skipExisting",
        report=tmp_path / "again",
    )
    assert (again["events"], again["already_there"]) == (0, verdict.published)


def test_a_history_that_begins_too_late_is_told_before_anything_is_written(
    simulate: Simulate, folder: Path, tmp_path: Path
) -> None:
    upstream = simulate(history(5000, retention_bytes=3_000_000))
    journal = upstream.journal()
    _, end = middle(journal)
    begin = min(entry.timestamp for entry in journal)
    arguments = [*replay_flags(upstream.url, begin, end), *to_files(folder)]
    with Relay(*arguments) as relay:
        assert relay.wait() == INCOMPLETE
        relay.wait_for(r"no longer has all of the range: .* begins at .* Nothing was written")
    assert not folder.exists()
    report = replayed(*arguments, "--allow-gap", report=tmp_path / "report", status=INCOMPLETE)
    assert not report["complete"]
    assert 0 < report["events"] == published_count(folder) < len(journal)
    # It stays incomplete, however often it runs.
    replayed(*arguments, report=tmp_path / "again", status=INCOMPLETE)


def test_a_stop_commits_what_is_in_flight_and_the_next_run_goes_on(
    simulate: Simulate, folder: Path, tmp_path: Path
) -> None:
    upstream = simulate(history(6000))
    journal = upstream.journal()
    begin, end = middle(journal)
    arguments = [*replay_flags(upstream.url, begin, end), *to_files(folder)]
    with Relay(*arguments, "--rate=1000/s", f"--report={tmp_path / 'first'}") as relay:
        relay.until(lambda: published_count(folder) > 0, "a first event", 30)
        assert relay.stop() == INTERRUPTED
    first = orjson.loads((tmp_path / "first").read_bytes())
    assert first["events"] == published_count(folder)
    report = replayed(*arguments, report=tmp_path / "report")
    verdict = judge_parts(folder, journal, dated(begin, end))
    assert verdict.flawless, verdict
    assert report["events"] == first["events"] + report["events_this_run"] == verdict.published
    assert report["already_there"] == 0


def test_a_limit_is_kept_exactly_and_run_after_run_it_goes_on(
    simulate: Simulate, folder: Path, tmp_path: Path
) -> None:
    upstream = simulate(history(3000))
    journal = upstream.journal()
    begin, end = middle(journal)
    arguments = [*replay_flags(upstream.url, begin, end), *to_files(folder)]
    for number in (1, 2, 3):
        report = replayed(*arguments, "--limit=400", report=tmp_path / "report", status=INTERRUPTED)
        assert report["events"] == published_count(folder) == 400 * number
    replayed(*arguments, report=tmp_path / "report")
    verdict = judge_parts(folder, journal, dated(begin, end))
    assert verdict.flawless, verdict


ODD_BEGIN = 200
"""The number of the first event in the range of `odd_history`."""


def odd_history(
    folder: Path, ahead_ms: Mapping[int, int], events: int = 1200
) -> tuple[SimulatorSettings, int, int]:
    """Ten minutes that ended five minutes ago, one event per step; those at some places have odd dates.

    Returns:
        The history, and a range that holds nearly all of it.
    """
    step_ms = 500
    first_ms = time.time_ns() // 1_000_000 - 300_000 - events * step_ms
    times = [first_ms + number * step_ms for number in range(events)]
    for place, ms in ahead_ms.items():
        times[place] += ms
    recorded = folder / "recorded.sse"
    topic = "eqiad.mediawiki.recentchange"
    with recorded.open("wb") as lines:
        for number, time_ms in enumerate(times):
            meta = {"id": f"id-{number}", "topic": topic, "partition": 0, "dt": iso_time(time_ms)}
            sse_id = [{"topic": topic, "partition": 0, "timestamp": time_ms + 1}]
            lines.write(b"id: " + orjson.dumps(sse_id) + b"\n")
            lines.write(b"data: " + orjson.dumps({"meta": meta}) + b"\n\n")
    settings = SimulatorSettings(file=recorded, faults=NO_CUTS)
    return settings, first_ms + ODD_BEGIN * step_ms, first_ms + (events - 100) * step_ms


def test_events_with_odd_dates_stop_no_limited_replay(
    simulate: Simulate, folder: Path, tmp_path: Path
) -> None:
    """Complete history was once reported as missing, run after run.

    One lies 50 minutes back at the head, one is dated 50 minutes ahead behind the end.
    tests/property/test_replay.py has all places and dates.
    """
    settings, begin, end = odd_history(tmp_path, {ODD_BEGIN: -3_000_000, 1150: 3_000_000})
    upstream = simulate(settings)
    arguments = [*replay_flags(upstream.url, begin, end), *to_files(folder)]
    for number in (1, 2):
        report = replayed(*arguments, "--limit=400", report=tmp_path / "report", status=INTERRUPTED)
        assert report["events"] == published_count(folder) == 400 * number
    replayed(*arguments, report=tmp_path / "report")
    verdict = judge_parts(folder, upstream.journal(), dated(begin, end))
    assert verdict.flawless, verdict


def test_a_topic_that_is_gone_is_what_the_range_lacks(
    simulate: Simulate, folder: Path, tmp_path: Path
) -> None:
    upstream = simulate(history(3000))
    journal = upstream.journal()
    begin, end = middle(journal)
    codfw = "codfw.mediawiki.recentchange"
    arguments = [*replay_flags(upstream.url, begin, end), *to_files(folder)]
    replayed(*arguments, "--limit=200", report=tmp_path / "report", status=INTERRUPTED)
    upstream.set_faults(missing_topics=frozenset([codfw]))
    with Relay(*arguments) as relay:
        assert relay.wait(60) == INCOMPLETE, relay.log
    assert "--allow-gap" in relay.log
    report = replayed(*arguments, "--allow-gap", report=tmp_path / "report", status=INCOMPLETE)
    assert not report["complete"]
    others = [entry for entry in journal if entry.topic != codfw]
    verdict = judge_parts(folder, others, dated(begin, end))
    assert not verdict.lost, verdict
    assert not verdict.doubled, verdict


def test_a_dry_run_counts_by_topic_and_hour_and_writes_nothing(
    simulate: Simulate, tmp_path: Path
) -> None:
    upstream = simulate(history(5000, history_seconds=3 * 3600.0))
    journal = upstream.journal()
    begin, end = middle(journal)
    report_path = tmp_path / "report"
    with Relay(
        *replay_flags(upstream.url, begin, end),
        "--dry-run",
        f"--report={report_path}",
        cwd=tmp_path,
    ) as relay:
        assert relay.wait() == 0, relay.log
    report = orjson.loads(report_path.read_bytes())
    inside = dated(begin, end)
    expected = Counter(
        (entry.topic, entry.timestamp // 3_600_000)
        for entry in journal
        if inside(entry) and not entry.canary
    )
    assert len(expected) >= 4
    assert {(row["topic"], row["hour"]): row["events"] for row in report["hours"]} == {
        (topic, iso_time(hour * 3_600_000)): count for (topic, hour), count in expected.items()
    }
    assert list(tmp_path.iterdir()) == [report_path]


def test_a_summary_that_nobody_reads_changes_nothing(simulate: Simulate, tmp_path: Path) -> None:
    upstream = simulate(history(3000))
    begin, end = middle(upstream.journal())
    report = tmp_path / "report"
    with Relay(
        *replay_flags(upstream.url, begin, end),
        "--dry-run",
        f"--report={report}",
        command=["bash", "-o", "pipefail", "-c", '"$@" | true', "bash", *COMMAND],
        cwd=tmp_path,
    ) as relay:
        assert relay.wait() == 0, relay.log
    assert "can't write the summary to standard output: Broken pipe" in relay.log
    assert "Exception" not in relay.log
    assert orjson.loads(report.read_bytes())["complete"]


def test_a_topic_without_events_is_done_when_it_stays_silent(
    simulate: Simulate, folder: Path, tmp_path: Path
) -> None:
    """The range ends now: no event after the end can show it."""
    upstream = simulate(history(1000, second_share=0.0, canary_every_seconds=0.0))
    journal = upstream.journal()
    begin, _ = middle(journal)
    now = upstream.started_ms
    report = replayed(
        *replay_flags(upstream.url, begin, now), *to_files(folder), report=tmp_path / "report"
    )
    verdict = judge_parts(folder, journal, dated(begin, now))
    assert verdict.flawless, verdict
    assert [topic["finished"] for topic in report["topics"]] == [True] * len(report["topics"])


def test_never_more_connections_than_allowed(
    simulate: Simulate, folder: Path, tmp_path: Path
) -> None:
    """The upstream refuses a second one; the topics take turns."""
    upstream = simulate(history(2000, faults=Faults(cut_every_seconds=0, max_connections=1)))
    journal = upstream.journal()
    begin, end = middle(journal)
    replayed(
        *replay_flags(upstream.url, begin, end),
        *to_files(folder),
        "--upstream.connections=1",
        report=tmp_path / "report",
    )
    verdict = judge_parts(folder, journal, dated(begin, end))
    assert verdict.flawless, verdict
    assert upstream.stats().refused_total == 0


def test_an_upstream_whose_kafka_is_away_is_not_taken_for_the_end(
    simulate: Simulate, folder: Path, tmp_path: Path
) -> None:
    """It answers and then falls silent, as at a topic's end, but repeats no known events."""
    upstream = simulate(history(20_000))
    journal = upstream.journal()
    begin, end = middle(journal)
    arguments = [*replay_flags(upstream.url, begin, end), *to_files(folder)]
    report = tmp_path / "report"
    with Relay(*arguments, "--rate=3000/s", f"--report={report}") as relay:
        # More than could have arrived at once, whatever the sockets hold.
        relay.until(lambda: published_count(folder) > 0, "a first event", 30)
        upstream.set_faults(silence_rate=1.0)
        upstream.cut_all()
        asked = upstream.stats().connections_total
        upstream.wait_until(lambda stats: stats.connections_total >= asked + 4, 60)
        assert relay.process.poll() is None, relay.log
        upstream.set_faults(silence_rate=0.0)
        assert relay.wait(60) == 0, relay.log
    verdict = judge_parts(folder, journal, dated(begin, end))
    assert verdict.flawless, verdict
