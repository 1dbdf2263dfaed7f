"""End to end with the real command, the real protocol and cuts: nothing lost or doubled, in order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pleiades.simulator.settings import Disorder, Faults, SimulatorSettings
from pleiades.simulator.simulator import Simulator
from tests.harness.oracle import judge, published_count
from tests.harness.relay import Relay

Simulate = Callable[[SimulatorSettings], Simulator]
Flags = Callable[[Simulator], list[str]]

RECORDED = Path(__file__).resolve().parents[3] / "shared" / "data"


def relay_all(
    upstream: Simulator, arguments: list[str], folder: Path, total: int, seconds: float
) -> Relay:
    """Relay until everything is published, then stop cleanly; returns the ended relay."""
    with Relay(*arguments) as relay:
        upstream.wait_until(lambda stats: stats.events_appended_total >= total, seconds)
        expected = sum(not entry.canary for entry in upstream.journal())
        relay.until(
            lambda: published_count(folder) >= expected,
            f"{expected} published events",
            seconds,
        )
        assert relay.stop() == 0
    return relay


def test_1000_events_a_second_with_cuts_every_second(
    simulate: Simulate, flags: Flags, folder: Path, record_property: Callable[[str, object], None]
) -> None:
    total = 12_000
    upstream = simulate(
        SimulatorSettings(rate=1000, max_events=total, faults=Faults(cut_every_seconds=1))
    )
    relay = relay_all(upstream, flags(upstream), folder, total, 120)
    verdict = judge(folder, upstream.journal(), upstream.started_ms - 60_000)
    record_property("1000 events/s with cuts", f"{verdict}; {upstream.stats().cuts_total} cuts")
    assert verdict.flawless, f"{verdict}\n{relay.log}"
    assert upstream.stats().cuts_total >= 5
    assert "WARNING" not in relay.log, "a cut counts as an error"


@pytest.mark.parametrize("parsers", ["1", "3"])
def test_cut_after_any_number_of_bytes_and_at_full_speed(
    simulate: Simulate, flags: Flags, folder: Path, parsers: str
) -> None:
    """A history with whole-second timestamps, the worst case for ids."""
    total = 10_000
    upstream = simulate(
        SimulatorSettings(
            history_events=total,
            history_seconds=25,
            disorder=Disorder(resolution_ms=1000, ahead_rate=0.0002),
            faults=Faults(cut_bytes=8_000_000, cut_every_seconds=0, mirror_lag_seconds=0),
        )
    )
    arguments = [*flags(upstream), f"--parsers={parsers}", "--upstream.overlap=2s"]
    relay = relay_all(upstream, arguments, folder, total, 60)
    verdict = judge(folder, upstream.journal(), upstream.started_ms - 60_000)
    assert upstream.stats().cuts_total >= 1
    assert verdict.flawless, f"{verdict}\n{relay.log}"


def test_a_stop_and_a_start_go_on_where_it_was(
    simulate: Simulate, flags: Flags, folder: Path
) -> None:
    total = 3000
    upstream = simulate(SimulatorSettings(rate=500, max_events=total))
    for _ in range(2):
        # On a slow machine the upstream may have written all its events before the last start.
        enough = min(upstream.stats().events_appended_total + 500, total)
        with Relay(*flags(upstream)) as relay:
            relay.until(
                lambda: upstream.stats().events_appended_total >= enough,  # noqa: B023
                "more events",
                30,
            )
            relay.wait_for("connected to")
            assert relay.stop() == 0
            relay.wait_for("last position: ")
    relay = relay_all(upstream, flags(upstream), folder, total, 30)
    verdict = judge(folder, upstream.journal(), upstream.started_ms - 60_000)
    assert verdict.flawless, f"{verdict}\n{relay.log}"
    assert "resuming from the stored position" in relay.log


@pytest.mark.skipif(not RECORDED.is_dir(), reason="the recorded events are not here")
@pytest.mark.parametrize("recording", ["recentchange-2018-10-19.sse", "recentchange.ndjson"])
def test_recorded_events_come_out_byte_for_byte(
    simulate: Simulate, flags: Flags, folder: Path, recording: str
) -> None:
    source = RECORDED / recording
    lines = [
        line.removeprefix(b"data: ")
        for line in source.read_bytes().split(b"\n")
        if line.startswith((b"data: ", b"{"))
    ]
    assert len(lines) > 200
    upstream = simulate(SimulatorSettings(file=source, history_events=len(lines)))
    since = [
        "--since=2000-01-01" if flag.startswith("--since") else flag for flag in flags(upstream)
    ]
    with Relay(*since) as relay:
        relay.until(
            lambda: relay.metric("pleiades_file_publish_events_total") >= len(set(lines)),
            "all published events",
            30,
        )
        assert relay.stop() == 0
    published = [path.read_bytes() for path in folder.glob("[0-9]*/*.json")]
    assert sorted(published) == sorted(line + b"\n" for line in set(lines))


def test_a_topic_that_is_gone_holds_up_no_other_and_loses_nothing(
    simulate: Simulate, flags: Flags, folder: Path
) -> None:
    """The topic disappears while the relay runs, is missing at a start, and returns."""
    codfw = "codfw.mediawiki.recentchange"
    upstream = simulate(SimulatorSettings(history_events=500, max_events=1500))
    arguments = [*flags(upstream), "--since=-2h"]

    def published(relay: Relay, both: bool) -> None:
        def wanted() -> int:
            return sum(
                not entry.canary and (both or entry.topic != codfw) for entry in upstream.journal()
            )

        relay.until(lambda: published_count(folder) >= wanted(), "all events", 60)

    with Relay(*arguments) as relay:
        published(relay, both=True)
        upstream.set_faults(missing_topics=frozenset([codfw]))
        upstream.cut_all()
        relay.wait_for(f"does not have {codfw} at present")
        upstream.append(500)
        published(relay, both=False)
        assert relay.stop() == 0
    with Relay(*arguments) as relay:
        relay.wait_for(f"does not have {codfw} at present")
        upstream.append(500)
        published(relay, both=False)
        upstream.set_faults(missing_topics=frozenset())
        upstream.cut_all()
        relay.wait_for(f"has {codfw} again")
        published(relay, both=True)
        assert relay.stop() == 0
    verdict = judge(folder, upstream.journal(), upstream.started_ms - 7_200_000)
    assert verdict.flawless, f"{verdict}\n{relay.log}"
