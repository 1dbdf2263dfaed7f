"""Faults that test a destination's memory: files are taken away, topics fall idle, settings change, and
relays start anew."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from itertools import cycle, islice

from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its documented names
    AdminClient,
    NewTopic,
)

from pleiades.runtime import faultpoints
from pleiades.simulator.settings import Faults
from tests.faults.matrix import row
from tests.faults.taped import all_published, finish, tape
from tests.faults.trial import ARCHIVE, FILES, KAFKA, Trial, restarts
from tests.harness.clock import Clock
from tests.harness.consumer import Consumed
from tests.harness.relay import Relay, ingest_flags
from tests.harness.script import Ending, Stop, Stream
from tests.harness.tape import HOME, OTHER, Tape

RATE = 300
SHORT_OVERLAP = ["--upstream.overlap=3s", "--dedup.window=3s"]
HOUR_MS = 3_600_000
IDLE_HOURS = 4
YEARS_MS = 8 * 365 * 24 * HOUR_MS
WINDOW_MS = 600_000
"""The default of `--dedup.window`."""
FEW_EVENTS = 20
EVENTS_BETWEEN_MARKS = 60_000
"""A topic has at most five marks a second, and history arrives as fast as it is read."""
READ_BACK = re.compile(r"read ([0-9,]+) events of the topic back")


def consumed(trial: Trial) -> None:
    """Move the files away as they appear, if the destination is a directory."""
    if trial.destination.name == FILES:
        trial.publish_to(Consumed(trial.folder / "events"))


@row("files moved away as they appear, with SIGKILLs between any two steps", on=(FILES,), long=True)
def files_taken(trial: Trial) -> None:
    """A published file belongs to its user: the relay must not need it as its memory."""
    consumed(trial)
    armed = trial.folder / "armed"
    armed.mkdir()
    upstream = trial.simulate(rate=RATE, faults=Faults(cut_every_seconds=5))
    flags = [*trial.flags(upstream), *SHORT_OVERLAP]
    environment = {faultpoints.FOLDER_VARIABLE: str(armed)}
    points = [*faultpoints.FILES_POINTS, faultpoints.WRITTEN, faultpoints.COMMITTED]
    trial.chance.shuffle(points)
    relay = trial.relay(*flags, environment=environment)
    for number, point in enumerate(islice(cycle(points), trial.times(60, at_least=3))):
        trial.wait_for_more(relay)
        (armed / point).touch()
        trial.wait(lambda: not (armed / point).exists(), f"a process at {point}", relay)  # noqa: B023  # waited for here
        with trial.recovery(upstream, relay):
            pass
        trial.survived()
        if number % 3 == 2:
            # Without the parent nothing restarts the others: an orchestrator restarts all of them.
            relay.signal(signal.SIGKILL)
            relay.wait()
            with trial.recovery(upstream):
                relay = trial.relay(*flags, environment=environment)
            trial.survived()
    trial.finish(upstream, relay)


@row(
    "SIGKILL at each step of a commit, of closing a segment, and of its upload",
    on=(ARCHIVE,),
    long=True,
)
def segment_steps(trial: Trial) -> None:
    """The archive and its copy hold each event once, as `pleiades verify` sees it."""
    armed, copy = trial.folder / "armed", trial.folder / "copy"
    armed.mkdir()
    upstream = trial.simulate(rate=RATE, faults=Faults(cut_every_seconds=5))
    flags = [*trial.flags(upstream), *SHORT_OVERLAP, f"--archive.upload={copy}"]
    # A copy without --archive.keepLocal passes no other point of an upload.
    removing = (faultpoints.UPLOAD_REMOVED,)
    uploading = [point for point in faultpoints.UPLOAD_POINTS if point not in removing]
    points = [*faultpoints.CLOSING_POINTS, *uploading]
    trial.chance.shuffle(points)
    relay = trial.relay(*flags, environment={faultpoints.FOLDER_VARIABLE: str(armed)})
    for point in islice(cycle(points), trial.times(200, at_least=3)):
        (armed / point).touch()
        trial.wait(lambda: not (armed / point).exists(), f"a process at {point}", relay)  # noqa: B023  # waited for here
        trial.survived()
        # Starts that bring nothing new would be further and further apart.
        trial.wait_for_more(relay)
    trial.finish(upstream, relay)
    for place in (trial.directory.folder, copy):
        command = [sys.executable, "-P", "-m", "pleiades", "verify", str(place)]
        verified = subprocess.run(command, capture_output=True, text=True, check=False)
        assert verified.returncode == 0, verified.stdout + verified.stderr
        assert "duplicates 0\nlost       0\n" in verified.stdout, verified.stdout


@row("A topic that has stood still for 4 hours, after events dated ahead and years back", long=True)
def idle_topic(trial: Trial) -> None:
    """The other data centre between canaries: its repeated events must be known as long as it is idle,
    at no growing cost."""
    consumed(trial)
    upstream = tape(trial)
    begin_ms = upstream.started_ms - IDLE_HOURS * HOUR_MS
    for number in range(FEW_EVENTS):
        upstream.write(OTHER, begin_ms + number)
    upstream.write(OTHER, begin_ms - YEARS_MS)
    upstream.write(OTHER, begin_ms + HOUR_MS - 60_000)
    upstream.write(OTHER, begin_ms + FEW_EVENTS, times=FEW_EVENTS)
    events = trial.times(100_000, at_least=5_000)
    for number in range(events):
        upstream.write(HOME, begin_ms + IDLE_HOURS * HOUR_MS * number // events)
    flags = [*ingest_flags(upstream.url, begin_ms - 1000), *trial.destination.flags]
    relay = trial.relay(*flags)
    all_published(trial, upstream, relay)
    for number in range(trial.times(12, at_least=3)):
        if number % 2:
            assert relay.stop() == 0, relay.log
        else:
            relay.signal(signal.SIGKILL)
            relay.wait()
        upstream.write(HOME, times=FEW_EVENTS)
        relay = trial.relay(*flags)
        all_published(trial, upstream, relay)
        trial.survived()
    read_back = [int(found.replace(",", "")) for found in READ_BACK.findall(trial.logs(10**6))]
    if read_back:
        in_window = events * WINDOW_MS // (IDLE_HOURS * HOUR_MS)
        most = 4 * in_window + EVENTS_BETWEEN_MARKS
        assert max(read_back) < most, (read_back, most)
        trial.note(f"{max(read_back)} events were read back at most, of {len(upstream)}")
    upstream.write(OTHER, times=FEW_EVENTS)
    finish(trial, upstream, relay)


@row("New starts with --since, and other lengths of overlap and window", long=True)
def new_starts(trial: Trial) -> None:
    """No start publishes an event that another start has published."""
    consumed(trial)
    upstream = tape(trial)
    begin_ms = upstream.started_ms - HOUR_MS
    events = trial.times(20_000, at_least=3_000)
    for number in range(events):
        topic = OTHER if trial.chance.random() < 0.2 else HOME  # a fifth
        upstream.write(topic, begin_ms + HOUR_MS * number // events)
    place = [*ingest_flags(upstream.url, 0)[:-3], *trial.destination.flags]
    place = [flag for flag in place if not flag.startswith("--since")]
    place += ["--metricsHost=127.0.0.1", "--metricsPort=0"]
    middle_ms = begin_ms + HOUR_MS // 2
    relay = trial.relay(*place, f"--since={middle_ms}")
    trial.wait_for_more(relay, events // 4)
    variations = [
        ["--upstream.overlap=40m", "--dedup.window=40m"],
        ["--resume=false", f"--since={middle_ms + 300_000}"],
        ["--upstream.overlap=1s", "--dedup.window=1s"],
        ["--resume=false", f"--since={begin_ms}"],
        ["--dedup.window=50m"],
        ["--resume=false", f"--since={middle_ms - 60_000}"],
        ["--upstream.overlap=30m"],
    ]
    for variation in islice(cycle(variations), trial.times(28, at_least=4)):
        relay = _start_again(trial, upstream, relay, place, variation)
        trial.survived()
    relay = _start_again(trial, upstream, relay, place, ["--resume=false", f"--since={begin_ms}"])
    _settle(trial, upstream, relay)
    assert relay.stop() == 0, relay.log
    verdict = trial.destination.judge(upstream.journal(), begin_ms, finished=True)
    outcome = trial.outcome
    outcome.published = verdict.published
    outcome.lost, outcome.doubled = len(verdict.lost), len(verdict.doubled)
    # A start time before the first one publishes older events after newer ones.
    assert not any((verdict.lost, verdict.doubled, verdict.foreign, verdict.broken)), verdict


def _start_again(
    trial: Trial, upstream: Tape, relay: Relay, place: list[str], flags: list[str]
) -> Relay:
    """End a relay at a random moment, and start another one."""
    upstream.write(HOME, times=FEW_EVENTS)
    if trial.chance.random() < 0.5:  # every other time
        trial.wait_for_more(relay)
    if "--resume=false" in flags:
        # A start time later than the published events would leave a gap, and forget what lies before.
        _settle(trial, upstream, relay)
    if trial.chance.random() < 0.5:  # every other time
        assert relay.stop() == 0, relay.log
    else:
        relay.signal(signal.SIGKILL)
        relay.wait()
    started = trial.relay(*place, *flags)
    started.wait_for("connected to")
    return started


def _settle(trial: Trial, upstream: Tape, relay: Relay) -> None:
    """Wait until the newest event is published, and so all earlier ones."""
    newest = upstream.values()[-1]
    trial.wait(lambda: newest in trial.destination.values(), "the newest event", relay)


MINUTES_AHEAD = 5
HOURS_AHEAD = 2


@row("LogAppendTime, and the relay's clock 5 min ahead of the broker's", on=(KAFKA,))
def records_dated_by_the_broker(trial: Trial) -> None:
    """Offsets determine what a restart reads back, so record timestamps do not matter."""
    admin = AdminClient({"bootstrap.servers": trial.topic.bootstrap})
    made = NewTopic(trial.topic.topic, 2, 1, config={"message.timestamp.type": "LogAppendTime"})
    admin.create_topics([made])[trial.topic.topic].result()
    clock = Clock(trial.folder)
    clock.set_ahead(MINUTES_AHEAD * 60)
    upstream = trial.simulate(rate=RATE, faults=Faults(cut_every_seconds=5))
    flags = trial.flags(upstream)
    relay = trial.relay(*flags, environment=clock.environment)
    for number in range(trial.times(10, at_least=2)):
        trial.wait_for_more(relay, RATE)
        with trial.recovery(upstream, relay if number % 2 else None):
            if number % 2:
                relay.child("publisher").kill()
            else:
                relay.signal(signal.SIGKILL)
                relay.wait()
                relay = trial.relay(*flags, environment=clock.environment)
        trial.survived()
    trial.finish(upstream, relay)


@row("clock set 2 h ahead of the broker's, which refuses such records, then set right", on=(KAFKA,))
def refused_timestamps(trial: Trial) -> None:
    """The relay waits without a restart, and the log says whose clock is wrong."""
    clock = Clock(trial.folder)
    upstream = trial.simulate(rate=RATE)
    relay = trial.relay(*trial.flags(upstream), environment=clock.environment)
    for _ in range(trial.times(4, at_least=1)):
        trial.wait_for_more(relay, RATE)
        said = relay.log.count("clock")
        clock.set_ahead(HOURS_AHEAD * 3600)
        trial.wait(lambda: relay.log.count("clock") > said, "a warning about the clock", relay)  # noqa: B023  # waited for here
        trial.survived()
        with trial.recovery(upstream, relay):
            clock.set_ahead(0)
    assert restarts(relay) == 0, relay.log
    trial.finish(upstream, relay)


@row("The group's position expires in the middle of a catch-up", on=(KAFKA,))
def position_expires(trial: Trial) -> None:
    """Only one of two topics has been read; the destination does not show the other's position."""
    upstream = tape(trial)
    begin_ms = upstream.started_ms - HOUR_MS
    events = trial.times(4_000, at_least=1_000)
    for number in range(events):
        upstream.write(HOME, begin_ms + HOUR_MS * number // events)
    for number in range(events):
        upstream.write(OTHER, begin_ms + HOUR_MS * number // events)
    # Each connection stops before the second topic begins.
    upstream.answer(*[Stream(Stop(events, 0, Ending.SILENT))] * 2)
    flags = [*ingest_flags(upstream.url, begin_ms - 1000), *trial.destination.flags]
    relay = trial.relay(*flags)
    trial.wait(lambda: trial.destination.count() >= events, "the first topic", relay)
    relay.signal(signal.SIGKILL)
    relay.wait()
    group = f"pleiades-{trial.topic.topic}-recentchange"
    admin = AdminClient({"bootstrap.servers": trial.topic.bootstrap})
    admin.delete_consumer_groups([group])[group].result()
    trial.survived()
    relay = trial.relay(*flags)
    relay.wait_for("no position is stored as the group")
    all_published(trial, upstream, relay)
    finish(trial, upstream, relay)
