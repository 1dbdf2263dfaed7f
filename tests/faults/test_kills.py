"""Kill anything at any time: nothing is lost, nothing doubled, nobody stays behind."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

from pleiades.simulator.server import Stats
from pleiades.simulator.settings import Faults, SimulatorSettings
from pleiades.simulator.simulator import Simulator
from tests.harness.oracle import judge, more_than, published_count
from tests.harness.relay import Relay
from tests.harness.waiting import until

Simulate = Callable[[SimulatorSettings], Simulator]
Flags = Callable[[Simulator], list[str]]

CHILD_KILLS = 30
LIVES = 10
"""Of the parent: the pauses between restarts grow within each."""
PARENT_KILLS = 5


def appended_more_than(count: int) -> Callable[[Stats], bool]:
    return lambda stats: stats.events_appended_total > count


def restarted_once(relay: Relay, role: str) -> bool:
    return relay.metric("pleiades_process_restarts_total", component=role) == 1


def wait_for_progress(relay: Relay) -> None:
    name = "pleiades_file_publish_events_total"
    before = relay.metric(name)
    relay.until(lambda: relay.metric(name) > before, "new events", 60)


def test_30_kills_of_children_and_5_of_the_parent_under_load(
    simulate: Simulate, flags: Flags, folder: Path
) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    upstream = simulate(SimulatorSettings(rate=500, faults=Faults(cut_every_seconds=5)))
    children_killed = 0
    killed: list[str] = []
    for life in range(LIVES):
        with Relay(*flags(upstream), "--parsers=2") as relay:
            for _ in range(CHILD_KILLS // LIVES):
                wait_for_progress(relay)
                # Somewhere between two batches, inside one, inside a commit: as chance has it.
                appended = upstream.stats().events_appended_total + chance.randrange(250)
                upstream.wait_until(appended_more_than(appended), 30)
                victim = chance.choice(until(relay.children, "children"))
                killed.append(relay.role(victim))
                victim.kill()
                children_killed += 1
            wait_for_progress(relay)
            if life < PARENT_KILLS:
                orphans = relay.children()
                relay.signal(signal.SIGKILL)
                relay.wait()
                assert not psutil.wait_procs(orphans, timeout=2)[1]
            else:
                assert relay.stop() == 0
    with Relay(*flags(upstream)) as relay:
        snapshot = upstream.journal()
        since_ms = upstream.started_ms - 60_000
        count = sum(not entry.canary for entry in snapshot)
        relay.until(lambda: published_count(folder) >= count, "all events so far", 60)
        assert relay.stop() == 0
    verdict = judge(folder, upstream.journal(), since_ms, finished=False)
    print(f"seed {seed}: {children_killed} children, {PARENT_KILLS} parents; {verdict}")  # noqa: T201
    assert children_killed == CHILD_KILLS
    assert verdict.flawless, f"seed {seed}, killed {killed}: {verdict}"


def test_restarts_are_counted_by_component_and_metrics_survive(
    simulate: Simulate, flags: Flags, folder: Path, tmp_path: Path
) -> None:
    upstream = simulate(SimulatorSettings(rate=200))
    metrics = tmp_path / "metrics"
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(metrics)}
    with Relay(*flags(upstream), environment=environment) as relay:
        relay.wait_ready()
        relay.until(lambda: relay.metric("pleiades_file_publish_events_total") > 50, "events", 30)
        before = relay.metric("pleiades_file_publish_events_total")
        for role in ("publisher", "parser-0", "reader"):
            published = published_count(folder)
            relay.child(role).kill()
            relay.until(
                partial(restarted_once, relay, role),
                f"the restart of {role}",
                30,
            )
            assert relay.metric("pleiades_goroutine_restarts", component=role) == 1
            relay.until(more_than(folder, published), "new events", 30)
        files = sorted(path.name for path in metrics.iterdir())
        assert relay.metric("pleiades_file_publish_events_total") > before
        assert relay.stop() == 0
    # One file per kind of metric and role, whatever number of processes there was.
    assert len(files) <= 4 * 4, files
    assert not [name for name in files if any(char.isdigit() for char in name.replace("-0", ""))]


@pytest.mark.parametrize(
    ("role", "blamed"),
    [
        # One that is stopped in the middle of a write keeps its reader waiting for the other half
        # of the message, and that one may be found silent first: see `Supervisor._first_to_end`.
        ("reader", "reader|parser-0"),
        ("parser-0", "parser-0|publisher"),
        ("publisher", "publisher"),
    ],
)
def test_a_hung_child_is_noticed(
    simulate: Simulate, flags: Flags, folder: Path, role: str, blamed: str
) -> None:
    upstream = simulate(SimulatorSettings(rate=300, max_events=3000))
    quick = ["--hangTimeout=3s", "--upstream.idleTimeout=1s"]
    with Relay(*flags(upstream), *quick) as relay:
        relay.wait_ready()
        relay.child(role).suspend()
        relay.wait_for(f"({blamed}) hangs: no sign of life", 100)
        relay.until(
            lambda: (
                published_count(folder)
                >= sum(not entry.canary for entry in upstream.journal())
                >= 2900
            ),
            "all events",
            60,
        )
        assert relay.stop() == 0
    verdict = judge(folder, upstream.journal(), upstream.started_ms - 60_000)
    assert verdict.flawless, f"{verdict}\n{relay.log}"


def test_no_progress_over_several_restarts_ends_the_program(
    simulate: Simulate, flags: Flags
) -> None:
    upstream = simulate(SimulatorSettings(history_events=0))
    with Relay(*flags(upstream)) as relay:
        seen: set[int] = set()

        def kill_the_next() -> bool:
            for child in relay.children():
                if relay.role(child) == "parser-0" and child.pid not in seen:
                    seen.add(child.pid)
                    child.kill()
            return relay.process.poll() is not None

        until(kill_the_next, "the end", 90)
        assert relay.wait() == 1
    assert len(seen) == 6
    assert "gave up: parser-0 ended 6 times in a row" in relay.log


def test_memory_stays_bounded_while_the_publisher_is_stopped(
    simulate: Simulate, flags: Flags, folder: Path
) -> None:
    """60 s of SIGSTOP with an upstream that sends as fast as it is read."""
    upstream = simulate(
        SimulatorSettings(
            history_events=300_000, history_seconds=3000, faults=Faults(cut_every_seconds=0)
        )
    )
    with Relay(*flags(upstream), "--hangTimeout=120s") as relay:
        relay.until(lambda: published_count(folder) > 1000, "events", 30)
        publisher = relay.child("publisher")
        publisher.suspend()
        family = [psutil.Process(relay.process.pid)]
        family += family[0].children(recursive=True)
        greatest = 0
        samples = 0
        # The clock is the subject here: for a minute, upstream could send and nobody takes it.
        for _ in range(120):
            with pytest.raises(TimeoutError):
                until(lambda: relay.process.poll() is not None, "an end that must not come", 0.5)
            greatest = max(greatest, sum(process.memory_info().rss for process in family))
            samples += 1
        publisher.resume()
        before = published_count(folder)
        relay.until(lambda: published_count(folder) > before, "new events", 60)
        assert relay.stop() == 0
    print(f"{samples} samples, RSS at most {greatest / 1e6:.0f} MB")  # noqa: T201
    assert greatest < 250e6
