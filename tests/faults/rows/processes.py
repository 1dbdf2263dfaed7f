"""Faults of processes: killed or frozen, also at chosen points in the code."""

from __future__ import annotations

import signal

import psutil

from pleiades.runtime import faultpoints
from pleiades.simulator.settings import Faults
from tests.faults.matrix import row
from tests.faults.trial import ARCHIVE, FILES, KAFKA, Trial, restarted, restarts

RATE = 500
TURNS = ("reader", "parser-0", "parent", "parser-1", "publisher", "parent")
"""Two children per parent: more would meet the growing pauses between the restarts of a relay that
keeps crashing."""
CHILD_SECONDS = 5.0
"""The limit after the SIGKILL of any process."""
SHORT_KILLS = 3
KILLS_IN_A_LIFE = 3
SHORT_OVERLAP = ["--upstream.overlap=3s", "--dedup.window=3s"]
"""A reconnect must not repeat more than upstream adds in the meantime."""

OWN_POINTS = {
    FILES: faultpoints.FILES_POINTS,
    ARCHIVE: faultpoints.ARCHIVE_POINTS,
    KAFKA: faultpoints.KAFKA_POINTS,
}


@row(
    "SIGKILL at a random moment, each child and the parent in turn",
    long=True,
    within_seconds=CHILD_SECONDS,
)
def kills(trial: Trial) -> None:
    """The test restarts the parent at once, as an orchestrator would."""
    kill_in_turn(trial, trial.times(200, at_least=4))


@row(
    "the same, with 3 partitions and the key of a field", on=(KAFKA,), within_seconds=CHILD_SECONDS
)
def kills_keyed(trial: Trial) -> None:
    """Repeated events must be recognised in every partition, and keys must keep their partition."""
    kill_in_turn(
        trial, trial.times(30, at_least=3), "--kafka.partitions=3", "--kafka.keyField=wiki"
    )


def kill_in_turn(trial: Trial, times: int, *more_flags: str) -> None:
    """Kill each child of a parent in turn, then the parent."""
    upstream = trial.simulate(rate=RATE, faults=Faults(cut_every_seconds=5))
    flags = [*trial.flags(upstream), "--parsers=2", *SHORT_OVERLAP, *more_flags]
    relay = trial.relay(*flags)
    trial.wait_for_more(relay)
    for number in range(times):
        trial.wait_for_upstream(upstream, trial.chance.randrange(RATE // 2))
        turn = TURNS[number % len(TURNS)]
        if turn != "parent":
            victim = relay.child(turn)
            with trial.recovery(upstream, relay):
                victim.kill()
        else:
            orphans = relay.children()
            with trial.recovery(upstream):
                relay.signal(signal.SIGKILL)
                relay.wait()
                relay = trial.relay(*flags)
            assert not psutil.wait_procs(orphans, timeout=5)[1], "children outlived their parent"
        trial.survived()
    trial.finish(upstream, relay)


@row(
    "SIGKILL inside a queue's write, a transaction, a commit, a checkpoint's replace",
    within_seconds=CHILD_SECONDS,
)
def kill_points(trial: Trial) -> None:
    """The kills come between two steps that belong together: see `runtime.faultpoints`."""
    there = [*faultpoints.COMMON_POINTS, *OWN_POINTS[trial.destination.name]]
    armed = trial.folder / "armed"
    armed.mkdir()
    upstream = trial.simulate(rate=RATE, faults=Faults(cut_every_seconds=5))
    flags = [*trial.flags(upstream), *SHORT_OVERLAP]
    # Each five times; in a short run a random selection.
    kills = trial.times(5 * len(there), at_least=SHORT_KILLS)
    while kills:
        points = trial.chance.sample(there, min(kills, len(there)))
        kills -= len(points)
        for start in range(0, len(points), KILLS_IN_A_LIFE):
            life = points[start : start + KILLS_IN_A_LIFE]
            relay = trial.relay(*flags, environment={faultpoints.FOLDER_VARIABLE: str(armed)})
            trial.wait_for_more(relay)
            for point in life:
                trial.wait_for_upstream(upstream, trial.chance.randrange(RATE // 4))
                died = restarts(relay)
                (armed / point).touch()
                if point.endswith("resume"):
                    # It is passed once per process, at the start.
                    relay.child("reader").kill()
                    died += 1
                trial.wait(lambda: not (armed / point).exists(), f"a process at {point}", relay)  # noqa: B023  # waited for here
                with trial.recovery(upstream, relay):
                    pass
                assert restarts(relay) == died + 1, relay.log
                trial.survived()
            assert relay.stop() == 0, relay.log
    trial.finish(upstream, trial.relay(*flags))


@row("SIGSTOP of each child for longer than its heartbeat allows")
def frozen_child(trial: Trial) -> None:
    """The parent kills a hung child and restarts the pipeline."""
    # A commit may take a minute, and a child may freeze in one: at this rate few commits are long.
    upstream = trial.simulate(rate=RATE / 5)
    quick = ["--hangTimeout=3s", "--upstream.idleTimeout=1s"]
    roles = ["reader", "parser-0", "publisher"]
    frozen = trial.times(2 * len(roles), at_least=1)
    while frozen:
        # In a short run one of them, chosen at random.
        chosen = trial.chance.sample(roles, min(frozen, len(roles)))
        frozen -= len(chosen)
        relay = trial.relay(*trial.flags(upstream), *quick)
        trial.wait_for_more(relay)
        for role in chosen:
            # A process is checked when it is silent beyond its announced wait;
            # `Supervisor._first_to_end` decides which one is named.
            died = restarts(relay)
            victim = relay.child(role)
            victim.suspend()
            # A busy machine may make another process look hung first, but this one must end.
            trial.wait(lambda: not victim.is_running(), f"the end of {role}", relay)  # noqa: B023  # waited for here
            trial.wait(restarted(relay, died + 1), f"the restart after {role} froze", relay)
            with trial.recovery(upstream, relay):
                pass
            trial.survived()
        assert relay.log.count(" hangs: no sign of life") >= len(chosen), relay.log
        assert relay.stop() == 0
    trial.finish(upstream, trial.relay(*trial.flags(upstream)))


@row("SIGSTOP of all processes for 60 s, the parent too", long=True)
def frozen_relay(trial: Trial) -> None:
    """Like a suspended machine or a paused container."""
    upstream = trial.simulate(rate=RATE)
    relay = trial.relay(*trial.flags(upstream), "--hangTimeout=2s")
    trial.wait_for_more(relay)
    family = [psutil.Process(relay.process.pid), *relay.children()]
    for process in family:
        process.suspend()
    frozen_seconds = trial.seconds(60, at_least=4)
    trial.wait_for_upstream(upstream, int(RATE * frozen_seconds))
    with trial.recovery(upstream, relay):
        for process in reversed(family):
            process.resume()
    trial.survived()
    trial.note(f"frozen for {frozen_seconds:.0f} s, {restarts(relay)} restarts")
    trial.finish(upstream, relay)
