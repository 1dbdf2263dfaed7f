"""Faults of the relay's machine: its clock, its memory, the disk of its metrics."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import psutil

from tests.faults.matrix import row
from tests.faults.rows.disk import fill, mount_tmpfs
from tests.faults.rows.stalling import (
    finish_history,
    frozen,
    history_flags,
    is_held_back,
    simulate_history,
    wait_for_full_queues,
)
from tests.faults.trial import Trial, restarted, restarts, without_tracebacks
from tests.harness.clock import Clock
from tests.harness.relay import Relay

RATE = 300
HOUR_SECONDS = 3600
SAMPLE_SECONDS = 0.5
LEAST_SECONDS = 15
SLACK_SECONDS = 30
LEAST_NOISE_BYTES = 1e6
PROCESSES = 4
"""The parent, reader, parser and publisher."""
SETTLING_PART = 0.25
"""Share of the time until the interpreter and the allocator stop growing."""
METRICS_BYTES = 4 * 1024 * 1024
MOST_BYTES = 250e6
"""The limit of all processes together."""


@row("clock set 1 h ahead and 1 h back during the run, with a restart after each")
def clock(trial: Trial) -> None:
    """Only the relay's clock changes: upstream and broker keep theirs, as when NTP fails on one host."""
    clock = Clock(trial.folder)
    environment = clock.environment
    upstream = trial.simulate(rate=RATE)
    # Less than the change of the clock, so that window and overlap are affected.
    flags = [*trial.flags(upstream), "--upstream.overlap=10s", "--dedup.window=10s"]
    relay = trial.relay(*flags, environment=environment)
    trial.wait_for_more(relay)
    for _ in range(trial.times(2, at_least=1)):
        for hours in (1, 0, -1, 0):
            clock.set_ahead(hours * HOUR_SECONDS)
            said = len(relay.lines)
            trial.wait_for_more(relay, RATE)
            upstream.cut_all()
            trial.survived()
            with trial.recovery(upstream, relay):
                died = restarts(relay)
                relay.child("publisher").kill()
                trial.wait(restarted(relay, died + 1), "the restart", relay)
            _log_is_off_by(hours, relay.lines[said:])
            trial.wait_for_more(relay, RATE)
        assert relay.stop() == 0, relay.log
        relay = trial.relay(*flags, environment=environment)
        trial.wait_for_more(relay)
    trial.finish(upstream, relay)


def _log_is_off_by(hours: int, lines: list[str]) -> None:
    """Check that the relay noticed the change of the clock; otherwise the row tested nothing."""
    said = next(line for line in lines if "was killed by signal" in line)
    ahead = datetime.fromisoformat(said.partition(" ")[0]) - datetime.now(UTC)
    assert abs(ahead - timedelta(hours=hours)) < timedelta(minutes=10), said


@row("disk of the metrics full, with a SIGKILL of each process")
def metrics_folder(trial: Trial) -> None:
    """A start needs room for metrics; a running relay and its restarted processes need no more."""
    folder = trial.folder / "metrics"
    folder.mkdir()
    mount_tmpfs(trial, folder, METRICS_BYTES)
    upstream = trial.simulate(rate=RATE)
    relay = trial.relay(*trial.flags(upstream), environment={"TMPDIR": str(folder)})
    trial.wait_for_more(relay, RATE)
    fill(folder)
    trial.survived()
    counted = relay.metric(trial.destination.published_metric)
    for role in ("reader", "parser-0", "publisher"):
        died = restarts(relay)
        trial.survived()
        with trial.recovery(upstream, relay):
            relay.child(role).kill()
            trial.wait(restarted(relay, died + 1), f"the restart of {role}", relay)
        before, counted = counted, relay.metric(trial.destination.published_metric)
        assert counted > before, "the counter does not continue"
    without_tracebacks([relay])
    trial.finish(upstream, relay)


@row("memory with the destination stalled and upstream at full speed", long=True, alone=True)
def memory(trial: Trial) -> None:
    """Memory is bounded and does not grow with time, whatever upstream could send."""
    stall = frozen(trial)
    upstream = simulate_history(trial)
    relay = trial.relay(*history_flags(trial, upstream))
    trial.wait_for_more(relay)
    stall.begin()
    wait_for_full_queues(trial, upstream, relay)
    seconds = max(trial.minutes * 60, LEAST_SECONDS)
    samples = _samples(relay, seconds)
    assert is_held_back(upstream), "it was not stalled throughout"
    stall.end()
    trial.survived()
    most = max(sample.size_bytes for sample in samples)
    slope, noise = _trend(samples)
    trial.note(
        f"stalled for {seconds / 60:.1f} min, {len(samples)} samples, {restarts(relay)} restarts: "
        f"RSS {most / 1e6:.0f} MB at most, slope {slope * 60 / 1e6:+.3f} MB/min, noise "
        f"{noise / 1e6:.2f} MB"
    )
    assert most < MOST_BYTES, trial.outcome.notes
    # The error of a single sample; a page or two if all samples lie on the line.
    assert slope * seconds < max(3 * noise, LEAST_NOISE_BYTES), trial.outcome.notes
    finish_history(trial, upstream, relay)


class Sample(NamedTuple):
    """The resident size of all processes at one moment."""

    moment_seconds: float
    family: frozenset[int]
    """The process ids: a restart begins a new line."""
    size_bytes: int


def _samples(relay: Relay, seconds: float) -> list[Sample]:
    """Sample while all processes exist; between two generations there is nothing to measure."""
    begun = time.monotonic()
    samples: list[Sample] = []

    def over() -> bool:
        passed = time.monotonic() - begun
        if not samples or passed - samples[-1].moment_seconds >= SAMPLE_SECONDS:
            family = [psutil.Process(relay.process.pid), *relay.children()]
            with contextlib.suppress(psutil.NoSuchProcess):
                size_bytes = sum(process.memory_info().rss for process in family)
                if len(family) == PROCESSES:
                    pids = frozenset(process.pid for process in family)
                    samples.append(Sample(passed, pids, size_bytes))
        return passed >= seconds

    relay.until(over, f"{seconds:.0f} s of a stalled destination", seconds + SLACK_SECONDS)
    return samples


def _trend(samples: list[Sample]) -> tuple[float, float]:
    """Bytes per second, and the error of a sample; per generation, after settling."""
    generations: dict[frozenset[int], list[Sample]] = defaultdict(list)
    for sample in samples:
        generations[sample.family].append(sample)
    covariance, variance, settled = 0.0, 0.0, 0
    lines = []
    for generation in generations.values():
        line = generation[int(len(generation) * SETTLING_PART) :]
        mean_moment = statistics.fmean(sample.moment_seconds for sample in line)
        mean_size = statistics.fmean(sample.size_bytes for sample in line)
        points = [
            (sample.moment_seconds - mean_moment, sample.size_bytes - mean_size) for sample in line
        ]
        covariance += sum(moment * size for moment, size in points)
        variance += sum(moment * moment for moment, _ in points)
        settled += len(points)
        lines += points
    slope = covariance / variance if variance else 0.0
    off = sum((size - slope * moment) ** 2 for moment, size in lines)
    return slope, math.sqrt(off / settled)
