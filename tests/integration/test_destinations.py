"""A new destination needs only its own module and a line in the registry."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pleiades.simulator.settings import Faults, SimulatorSettings
from pleiades.simulator.simulator import Simulator
from tests.harness.memory import stored_in
from tests.harness.relay import Relay, ingest_flags, replay_flags, since_ms

WITH_MEMORY = (sys.executable, "-m", "tests.harness.with_memory")

Simulate = Callable[[SimulatorSettings], Simulator]


def test_a_destination_of_a_test_is_relayed_into_by_the_command_line(
    simulate: Simulate, tmp_path: Path
) -> None:
    """Every event once, despite cuts and the publisher's death; its flag comes from a TOML file."""
    upstream = simulate(SimulatorSettings(rate=300, faults=Faults(cut_every_seconds=0.5)))
    copy = tmp_path / "copy"
    config = tmp_path / "pleiades.toml"
    config.write_text(f'[memory]\nenable = true\ncopy = "{copy}"\n')
    flags = [*ingest_flags(upstream.url, since_ms(upstream)), f"--config={config}"]
    with Relay(*flags, command=WITH_MEMORY) as relay:
        relay.until(lambda: len(stored_in(copy).events) > 300, "events", 30)
        relay.child("publisher").kill()
        relay.wait_for("starting all processes again")
        known = len(stored_in(copy).events)
        relay.until(lambda: len(stored_in(copy).events) > known + 300, "more events", 30)
        assert relay.stop() == 0
    events, journal = stored_in(copy).events, upstream.journal()
    for source in {event.source for event in events}:
        published = [event.identity for event in events if event.source == source]
        appended = [each.identity for each in journal if each.source == source and not each.canary]
        assert published == appended[: len(published)]


def test_it_is_replayed_into_checked_and_helped_with(simulate: Simulate, tmp_path: Path) -> None:
    upstream = simulate(SimulatorSettings(history_events=500, history_seconds=3600.0))
    times = sorted(entry.timestamp for entry in upstream.journal())
    copy = tmp_path / "copy"
    flags = ["--memory.enable", f"--memory.copy={copy}"]
    replay = [*replay_flags(upstream.url, times[100], times[400]), *flags, "--allow-gap"]
    with Relay(*replay, command=WITH_MEMORY) as relay:
        assert relay.wait() == 0, relay.log
    wanted = [
        entry.identity
        for entry in upstream.journal()
        if times[100] <= entry.timestamp < times[400] and not entry.canary
    ]
    assert sorted(event.identity for event in stored_in(copy).events) == sorted(wanted)

    def said(*arguments: str) -> str:
        ended = subprocess.run(
            [*WITH_MEMORY, *arguments], capture_output=True, text=True, timeout=60, check=False
        )
        return ended.stdout + ended.stderr

    checked = said("check", *flags, "--metricsPort=0", f"--upstream.url={upstream.url}")
    assert "relays recentchange into the memory of a test" in checked
    assert "--memory.copy DIR" in said("help", "ingest")
    wrong = said("ingest", "--memory.enable", "--file.enable")
    assert "take away --file.enable or --memory.enable" in wrong


def test_other_programs_do_not_know_it(capsys: pytest.CaptureFixture[str]) -> None:
    from pleiades.sinks.registry import relay_parser

    with pytest.raises(SystemExit):
        relay_parser("ingest").parse_args(["--memory.enable"])
    assert "--memory.enable" in capsys.readouterr().err
