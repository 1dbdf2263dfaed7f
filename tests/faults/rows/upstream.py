"""The upstream cuts connections, misdates events, switches data centres, or loses history."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from itertools import chain, cycle, islice

from pleiades.simulator.settings import Cut
from tests.faults.matrix import row
from tests.faults.taped import all_published, finish, reconnect, recovery_of, tape
from tests.faults.trial import Trial
from tests.harness.relay import Relay
from tests.harness.script import Answer, Ending, Stop, Stream, refusal
from tests.harness.tape import HOME, OTHER, Tape

LEAST = ["--upstream.overlap=1ms", "--dedup.window=1ms"]
"""The least for which the guarantee holds, so that a larger overlap hides no error."""
QUICK = [*LEAST, "--upstream.idleTimeout=300ms"]
ROW_OF_CUTS = 3
"""This many connections in a row are cut. After longer runs the reader pauses ever longer, to spare an
upstream that ends all connections. A silent connection does not add to the pauses, and the next run
begins."""
LEAST_SHARE = 0.8
"""At least this share of the planned cuts must occur."""
CUTS = (Ending.RESET, Ending.CLOSE, Ending.CLEAN)

BURST_EVENTS = 200
RUN_EVENTS = 100
"""One per millisecond, between two misdated events."""
FEW_EVENTS = 20
OTHERS_SHARE = 0.2
BACK_MS = 20_000
YEARS_MS = 8 * 365 * 86_400_000
HOUR_MS = 3_600_000
RATE = 200
HISTORY_EVENTS = 2000
HISTORY_SECONDS = 50.0

AWKWARD = 'Zürich \u2028 東京 \u2029 🦀 \x85 "é"'
"""UTF-8 of two, three and four bytes, characters that some take for line ends, and an escape."""
JOINED = ("eqiad.mediawiki.page-create", "codfw.mediawiki.page-create")
"""A second stream's topics."""


def cuts_at(stops: Iterable[tuple[int, int]]) -> list[Answer]:
    """A cut at each (place, byte), in all ways in turn, with a silence after every few cuts."""
    answers: list[Answer] = []
    chunked = cycle((True, False))
    for number, ((place, byte), ending) in enumerate(zip(stops, cycle(CUTS), strict=False), 1):
        answers.append(Stream(Stop(place, byte, ending), next(chunked)))
        if number % ROW_OF_CUTS == 0:
            answers.append(Stream(Stop(place, 0, Ending.SILENT)))
    return answers


def through_cuts(trial: Trial, upstream: Tape, relay: Relay, planned: int) -> dict[str, int]:
    """Publish everything despite these cuts, the upstream's answers; returns what `finish` does."""
    seen = finish(trial, upstream, relay)
    # On a busy machine the relay sometimes takes a late answer for silence, and leaves before it is
    # cut.
    cut = upstream.stats().cuts_total
    assert planned * LEAST_SHARE <= cut <= planned, f"{cut} cuts instead of {planned}"
    if cut < planned:
        trial.note(f"the relay left before {planned - cut} of {planned} cuts")
    trial.survived(cut)
    return seen


# ---- cuts ----


@row("Cut at every byte of an event, by reset, close and clean end, chunked or not", long=True)
def cut_every_byte(trial: Trial) -> None:
    """A published half event is corrupt; an event whose id counts too early is lost.

    Each connection sends the event in which the last one was cut, and is cut in the next event, a byte
    later.
    """
    upstream = tape(trial)
    first_ms = upstream.started_ms - RUN_EVENTS
    upstream.write(timestamp_ms=first_ms, text=AWKWARD)
    length = len(upstream.frame(0))
    step = max(length // trial.times(length, at_least=length // 16), 1)
    places = range(trial.chance.randrange(step), length + 1, step)
    for number in range(1, len(places) + 1):
        upstream.write(timestamp_ms=first_ms + number, text=AWKWARD)
    upstream.answer(*cuts_at((number, byte) for number, byte in enumerate(places, 1)))
    relay = trial.relay(*trial.flags(upstream), *QUICK)
    seen = through_cuts(trial, upstream, relay, len(places))
    assert seen["cut"], seen
    assert seen["closed"], seen
    trial.note(f"an event of {length} bytes, cut at {len(places)} places")


@row("Bursts of 200 events of one millisecond, cut inside")
def bursts(trial: Trial) -> None:
    """An id is the event's millisecond + 1: resuming from it skips the rest of the burst."""
    upstream = tape(trial)
    stops: list[tuple[int, int]] = []
    bursts = trial.times(60, at_least=6)
    for number in range(bursts):
        first = len(upstream)
        upstream.write(timestamp_ms=upstream.started_ms - bursts + number, times=BURST_EVENTS)
        upstream.write(OTHER, upstream.started_ms - bursts + number)
        inside = sorted(trial.chance.sample(range(first + 1, first + BURST_EVENTS), 2))
        stops += [(place, trial.chance.randrange(len(upstream.frame(place)))) for place in inside]
    upstream.answer(*cuts_at(stops))
    relay = trial.relay(*trial.flags(upstream), *QUICK)
    through_cuts(trial, upstream, relay, len(stops))


# ---- dates ----


def misdated(trial: Trial, by_ms: int) -> None:
    """One misdated event after each run of usual ones; a cut soon after it and a cut in the run."""
    upstream = tape(trial)
    runs = trial.times(20, at_least=4)
    first_ms = upstream.started_ms - (runs + 1) * RUN_EVENTS
    stops: list[tuple[int, int]] = []
    for run in range(runs + 1):
        for number in range(RUN_EVENTS):
            topic = OTHER if trial.chance.random() < OTHERS_SHARE else HOME
            upstream.write(topic, first_ms + run * RUN_EVENTS + number)
        if run == runs:
            break
        place = len(upstream)
        upstream.write(OTHER if run % 2 else HOME, first_ms + (run + 1) * RUN_EVENTS + by_ms)
        # The first cut comes before any event but the misdated one.
        stops += [(place + 1, 0), (place + trial.chance.randrange(2, RUN_EVENTS), 7)]
    upstream.answer(*cuts_at(stops))
    relay = trial.relay(*trial.flags(upstream), *QUICK)
    through_cuts(trial, upstream, relay, len(stops))


@row("Timestamps 20 s back, cut after them")
def timestamps_back_20_seconds(trial: Trial) -> None:
    """A position that follows the timestamps repeats 20 s of events, which a small window has
    forgotten."""
    misdated(trial, -BACK_MS)


@row("Timestamps 1 h ahead, cut after them")
def timestamps_ahead_1_hour(trial: Trial) -> None:
    """Each reconnect during that hour repeats everything since: more than a fixed number of identities
    holds, and more than a window that follows only the clock."""
    misdated(trial, HOUR_MS)


@row("Timestamps 8 years back, cut after them")
def timestamps_back_8_years(trial: Trial) -> None:
    """An imported edit: a position that follows it repeats all of upstream's history."""
    misdated(trial, -YEARS_MS)


@row("The first event of a topic is 8 years old, and there is history from before the start")
def first_event_8_years_back(trial: Trial) -> None:
    """All events that the topic delivered are older than the start. To lose nothing, the relay must ask
    from their time on, and must ignore the earlier events that it then receives."""
    upstream = tape(trial)
    before_ms = upstream.started_ms - HOUR_MS
    for number in range(RUN_EVENTS):
        upstream.write(OTHER, before_ms + number)
    history = range(len(upstream))
    upstream.write()
    relay = trial.relay(*trial.flags(upstream), *LEAST)
    trial.wait_for_more(relay)
    with recovery_of(trial, 1, relay):
        upstream.write(OTHER, upstream.started_ms - YEARS_MS)
    for _ in range(trial.times(20, at_least=3)):
        with recovery_of(trial, 1, relay):
            upstream.write()
        with recovery_of(trial, RUN_EVENTS, relay):
            upstream.cut_all()
            upstream.write(OTHER, upstream.started_ms - YEARS_MS + 1, times=RUN_EVENTS)
        trial.survived()
    seen = finish(trial, upstream, relay, without=history)
    dropped = seen["before_start_events_dropped"]
    assert dropped >= len(history), seen
    trial.note(f"{dropped} events from before the start were dropped")


# ---- data centres ----


@row("The service moves to the other data centre: other offsets, a mirror 30 s behind", long=True)
def switch_of_data_centre(trial: Trial) -> None:
    """Offsets differ there, and the latest events are not mirrored yet: an id contains `offset: -1` for
    a topic that had delivered, and delivered events come again once they are mirrored."""
    behind_seconds = trial.seconds(30, at_least=1)
    # Older than the window: a relay that returns to the start publishes it twice.
    upstream = trial.simulate(
        rate=RATE, second_share=0.5, history_events=HISTORY_EVENTS, history_seconds=HISTORY_SECONDS
    )
    upstream.set_faults(mirror_lag_seconds=behind_seconds)
    # The other data centre continues behind the position by its mirroring delay.
    window = f"--dedup.window={behind_seconds + 2:.0f}s"
    relay = trial.relay(*trial.flags(upstream), "--upstream.overlap=100ms", window)
    trial.wait_for_more(relay, HISTORY_EVENTS)
    for number in range(trial.times(4, at_least=4)):
        # Some switches come during the repetition, some after new events.
        stay_seconds = behind_seconds * trial.chance.uniform(0, 1.5)
        trial.wait_for_upstream(upstream, int(RATE * stay_seconds))
        with trial.recovery(upstream, relay):
            upstream.set_faults(other_cluster_rate=float(number % 2 == 0))
            upstream.cut_all(trial.chance.choice(list(Cut)))
        trial.survived()
    repeated = relay.metric("pleiades_duplicate_events_dropped_total")
    trial.note(f"the mirror is {behind_seconds:g} s behind, {repeated:.0f} repeated events dropped")
    assert repeated > 0, "each data centre repeats what the other has mirrored"
    trial.finish(upstream, relay)
    assert "Traceback" not in relay.log, relay.log


@row("An idle data centre wakes while the relay is away", long=True)
def idle_data_centre_wakes(trial: Trial) -> None:
    """Its entry in the id is `offset: -1`, the end: resuming from it loses the events in between.

    At first the topic has no event at all. Later it has some, but the next data centre has not mirrored
    them, so that the ids contain `offset: -1` again.
    """
    upstream = tape(trial, (HOME, OTHER, *JOINED))
    upstream.write_on(RATE, [HOME])
    flags = [*trial.flags(upstream), *LEAST]
    relay = trial.relay(*flags)
    idle = (OTHER, *JOINED)
    woken: set[str] = set()
    first = zip(idle, (signal.SIGTERM, signal.SIGKILL, None), strict=True)
    again = [(OTHER, signal.SIGKILL), (JOINED[1], None), (JOINED[0], signal.SIGTERM), (OTHER, None)]
    for topic, ending in chain(first, islice(cycle(again), trial.times(15, at_least=2))):
        trial.wait_for_more(relay, FEW_EVENTS)
        if topic in woken:
            reconnect(trial, upstream, relay, Stream(behind=frozenset(idle)))
            trial.wait_for_more(relay, FEW_EVENTS)
        if ending is None:
            reconnect(trial, upstream, relay, refusal(503))
        else:
            relay.signal(ending)
            relay.wait()
        upstream.write(topic, times=FEW_EVENTS)
        woken.add(topic)
        with trial.recovery(upstream):
            if ending is not None:
                relay = trial.relay(*flags)
        trial.survived()
    finish(trial, upstream, relay)


# ---- history ----


@row("The position is older than what the upstream still has")
def history_gone(trial: Trial) -> None:
    """Lost events cannot be restored: the relay reports the loss and publishes everything else."""
    upstream = tape(trial)
    first_ms = upstream.started_ms - 3 * RUN_EVENTS
    flags = [*trial.flags(upstream), *LEAST]

    def write() -> range:
        first = len(upstream)
        for place in range(first, first + RUN_EVENTS):
            upstream.write(HOME if place % 2 else OTHER, first_ms + place)
        return range(first, len(upstream))

    write()
    relay = trial.relay(*flags)
    all_published(trial, upstream, relay)
    assert relay.stop() == 0, relay.log
    gone = write()
    write()
    upstream.forget(gone.stop)
    with recovery_of(trial, RUN_EVENTS):
        relay = trial.relay(*flags)
    trial.survived()
    seen = finish(trial, upstream, relay, without=gone)
    assert seen["upstream_gaps"] == len((HOME, OTHER)), seen
    for topic in (HOME, OTHER):
        assert relay.log.count(f"{topic}/0: the upstream no longer has") == 1, relay.log
    trial.note(f"{len(gone)} events had expired: the relay reported their loss")
