"""Events that are malformed or contain several: set apart or published unchanged, each once."""

from __future__ import annotations

from collections import Counter

import orjson

from tests.faults.matrix import row
from tests.faults.taped import tape
from tests.faults.trial import KAFKA, Trial, without_tracebacks
from tests.harness.tape import Tape

NOT_JSON = [
    b"{",
    b"not json at all",
    b"[" * 100_000 + b"]" * 100_000,
    b'{"meta":{"id":"deep"},"a":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
]
ODD_CHARACTERS = [
    # JavaScript writes this; it is passed on unchanged.
    b'{"meta":{"id":"half a pair: \\ud800"}}',
    # An event stream is UTF-8, and invalid bytes are read as U+FFFD (WHATWG, event stream format).
    b'{"meta":{"id":"half a pair, raw: \xed\xa0\x80"}}',
    b'{"meta":{"id":"invalid UTF-8: \xff\xfe"}}',
]
NO_OBJECTS = [b'"a string"', b"[1, 2]", b"7", b"null"]
HOSTILE_IDS = [
    "../../x",
    "/etc/passwd",
    "a\0b",
    "x" * 10_000,
    "",
    ".hidden",
    "a/b",
    "\u202egnp",
    "é",
    "line\nend",
    "\x1b[31mred",
    "%s%n",
]
NO_META = [b"{}", b'{"meta":null}', b'{"meta":[]}', b'{"meta":{"id":7,"dt":{}}}', b'{"meta":{}}']
TWICE = [
    b'{"meta":{"id":"first"},"meta":{"id":"second"}}',
    b'{"meta":{"id":"one","id":"other"}}',
    b'{"meta":{"id":"nested"},"a":' + b"[" * 200 + b"]" * 200 + b"}",
]
BEYOND_THE_LIMIT_BYTES = 10 * 1024 * 1024
LARGE = b'{"meta":{"id":"large"},"a":"' + b"x" * 5_000_000 + b'"}'
FILLERS = 20
EQUALS = 3
"""The number of identical events, usually within one millisecond."""


@row(
    "not JSON, 10 MB, nested 100,000 deep, no meta, hostile meta.id, lone surrogates, keys twice, and "
    "several that are equal"
)
def bad_events(trial: Trial) -> None:
    """Bad events among good ones; after a restart, the overlap repeats all of them."""
    upstream = tape(trial)
    odd = [orjson.dumps({"meta": {"id": identity, "n": identity}}) for identity in HOSTILE_IDS]
    odd += [*ODD_CHARACTERS, *NO_META, *TWICE, LARGE]
    apart = [*NOT_JSON, *NO_OBJECTS]
    everything = [*odd, *apart]
    trial.chance.shuffle(everything)
    upstream.write(times=FILLERS)
    for data in everything:
        upstream.append(data)
        upstream.write()
    for data in [*NO_META, *NOT_JSON[:2], *NO_OBJECTS]:
        for _ in range(EQUALS):
            upstream.append(data)
    apart += [*NOT_JSON[:2], *NO_OBJECTS] * EQUALS
    upstream.append(b'{"meta":{"id":"beyond"},"a":"' + b"x" * BEYOND_THE_LIMIT_BYTES + b'"}')
    upstream.write(times=FILLERS)
    relay = trial.relay(*trial.flags(upstream))
    expected = len(upstream) - len(apart) - 1
    trial.wait(lambda: trial.destination.count() >= expected, "all events", relay)
    assert relay.metric("pleiades_oversized_frames_total") == 1
    relay.child("publisher").kill()
    upstream.write(times=FILLERS)
    trial.wait(lambda: trial.destination.count() >= expected + FILLERS, "the rest", relay)
    trial.survived(len(everything) + (len(NO_META) + len(NO_OBJECTS) + 2) * EQUALS + 1)
    assert relay.stop() == 0, relay.log
    without_tracebacks([relay])
    _compare(trial, upstream, apart)


def _compare(trial: Trial, upstream: Tape, apart: list[bytes]) -> None:
    """Compare bytes, because the journal cannot identify events without their own identity."""
    wanted = Counter(
        value.decode(errors="replace").encode()
        for value in upstream.values()
        if len(value) < BEYOND_THE_LIMIT_BYTES
    )
    wanted -= Counter(apart)
    found = Counter(trial.destination.values())
    outcome = trial.outcome
    outcome.published = found.total()
    outcome.lost = (wanted - found).total()
    outcome.doubled = sum((found - wanted)[value] for value in wanted)
    outcome.broken = sum(count for value, count in found.items() if value not in wanted)
    outcome.dead_letters = trial.destination.dead_letters()
    # The oracle also knows the order of the events with an identity.
    known = [entry for entry in upstream.journal() if entry.identity]
    verdict = trial.destination.judge(known, upstream.started_ms, finished=True)
    outcome.disordered = len(verdict.disordered)
    assert not verdict.disordered
    assert found == wanted, f"{outcome}\n{trial.logs()}"
    assert outcome.dead_letters == len(apart), outcome.dead_letters
    if trial.destination.name != KAFKA:
        folder = trial.directory.folder
        outside = {path.name for path in folder.parent.iterdir()} - {folder.name}
        assert outside <= {"out"}, f"written outside the directory: {outside}"
