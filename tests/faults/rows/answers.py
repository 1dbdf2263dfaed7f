"""Unusual answers of the upstream: a refusal, a page, nothing, or far too much."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pleiades.simulator.simulator import Simulator
from tests.faults.matrix import row
from tests.faults.taped import finish, reconnect, tape
from tests.faults.trial import RECOVERY_SECONDS, Trial
from tests.harness.relay import Relay
from tests.harness.script import EVENT_STREAM, Answer, Say, Stream, refusal
from tests.harness.tape import Tape

RATE = 200
RETRY_AFTER_SECONDS = 2
REFUSED_BY_UPSTREAM = 3
"""The exit status for a request that will never be served."""
IDLE = "--upstream.idleTimeout=500ms"
PAGE = b"<!DOCTYPE html>\n<title>Wikimedia Error</title>\n<p>Our servers are busy.</p>\n"
THROTTLED = b'{"type":"too_many_requests","detail":"Your HTTP client opens too many connections."}'
FORBIDDEN = b"Please set a user-agent and respect our robot policy"

MEGABYTE = 1 << 20
LINE_MEGABYTES = 50
BOMB_MEGABYTES = 1024
MAX_GROWTH_BYTES = 24 * MEGABYTE
"""The reader's largest growth while any of these arrives: the longest incomplete frame is 8 MiB, held
once as received, once normalised, and once more while being copied."""


def growing(trial: Trial, *flags: str) -> tuple[Tape, Relay, list[str]]:
    """Return an upstream that writes events continuously, a relay that has published some, and its
    flags."""
    upstream = tape(trial)
    upstream.write_on(RATE)
    given = [*trial.flags(upstream), *flags]
    relay = trial.relay(*given)
    trial.wait_for_more(relay)
    return upstream, relay, given


def answered(trial: Trial, upstream: Tape, relay: Relay, *answers: Answer) -> int:
    """Cut the connection, give the next requests these answers, and measure from the last one.

    Returns the index of the first of these requests.
    """
    first = len(upstream.requests)
    reconnect(trial, upstream, relay, *answers)
    with trial.recovery(upstream, relay):
        pass
    trial.survived(len(answers))
    return first


@contextmanager
def waited_for(upstream: Simulator, counter: str, more: int) -> Iterator[None]:
    """Wait until a counter has grown by `more` since the beginning of the block."""
    goal = getattr(upstream.stats(), counter) + more
    yield
    upstream.wait_until(lambda stats: getattr(stats, counter) >= goal, RECOVERY_SECONDS)


# ---- refusals ----


@row("429 with Retry-After")
def throttled_429(trial: Trial) -> None:
    """The service throttles longer, or blocks, a client that asks again too soon."""
    upstream, relay, _ = growing(trial)
    for _ in range(trial.times(5, at_least=1)):
        throttled = refusal(
            429, THROTTLED, f"Retry-After: {RETRY_AFTER_SECONDS}", kind="application/json"
        )
        first = answered(trial, upstream, relay, throttled)
        refused, obeyed = upstream.requests[first : first + 2]
        waited = obeyed.came - refused.came
        assert waited >= RETRY_AFTER_SECONDS, f"asked again after {waited:.2f} s"
    assert relay.metric("pleiades_recv_errors_total", type="throttled") == trial.outcome.faults
    assert "the upstream answered 429: too_many_requests" in relay.log, relay.log
    finish(trial, upstream, relay)


@row("500 and 503, several in a row")
def errors_500(trial: Trial) -> None:
    """The service or its Kafka restarts."""
    upstream = trial.simulate(rate=RATE)
    relay = trial.relay(*trial.flags(upstream))
    trial.wait_for_more(relay)
    for _ in range(trial.times(5, at_least=1)):
        with waited_for(upstream, "refused_total", 2):
            upstream.set_faults(error_rate=1.0)
            upstream.cut_all()
        with trial.recovery(upstream, relay):
            upstream.set_faults(error_rate=0.0)
        trial.survived(2)
    assert relay.metric("pleiades_recv_errors_total", type="status_5xx") >= trial.outcome.faults
    trial.finish(upstream, relay)
    assert "Traceback" not in relay.log, relay.log


@row("502 with a page of HTML")
def bad_gateway_502(trial: Trial) -> None:
    """A proxy answers for the service; its page is neither an event nor the service's refusal."""
    upstream, relay, _ = growing(trial)
    for _ in range(trial.times(5, at_least=1)):
        answered(trial, upstream, relay, *[refusal(502, PAGE)] * 2)
    assert relay.metric("pleiades_recv_errors_total", type="status_5xx") == trial.outcome.faults
    finish(trial, upstream, relay)


@row("403, until the upstream relents")
def forbidden_403(trial: Trial) -> None:
    """Retrying would make it worse: the relay ends, gives the reason, and keeps the position."""
    upstream, relay, flags = growing(trial)
    for _ in range(trial.times(5, at_least=1)):
        upstream.answer(refusal(403, FORBIDDEN, kind="text/plain"))
        upstream.cut_all()
        assert relay.wait() == REFUSED_BY_UPSTREAM, relay.log
        assert FORBIDDEN.decode() in relay.log, relay.log
        assert "the position is kept" in relay.log, relay.log
        with trial.recovery(upstream):
            relay = trial.relay(*flags)
        trial.survived()
    finish(trial, upstream, relay)


@row("200, but a page of HTML and no event stream")
def not_an_event_stream(trial: Trial) -> None:
    """A captive portal or maintenance page, none of whose lines is an event."""
    upstream, relay, _ = growing(trial)
    pages = [refusal(200, PAGE), refusal(200, b"data: {}\n\n", kind="text/plain")]
    for _ in range(trial.times(5, at_least=1)):
        answered(trial, upstream, relay, *pages)
    assert relay.metric("pleiades_recv_errors_total", type="content_type") == trial.outcome.faults
    finish(trial, upstream, relay)


# ---- nothing ----


@row("No headers, for longer than the relay waits")
def no_headers(trial: Trial) -> None:
    """A new connection behaves so while the service's Kafka is down."""
    upstream = trial.simulate(rate=RATE)
    relay = trial.relay(*trial.flags(upstream), IDLE)
    trial.wait_for_more(relay)
    for _ in range(trial.times(5, at_least=1)):
        # The third shows that the relay gave up the first two.
        with waited_for(upstream, "requests_total", 3):
            upstream.set_faults(hang_rate=1.0)
            upstream.cut_all()
        with trial.recovery(upstream, relay):
            upstream.set_faults(hang_rate=0.0)
        trial.survived(2)
    assert relay.metric("pleiades_recv_errors_total", type="connect") >= trial.outcome.faults
    trial.finish(upstream, relay)
    assert "Traceback" not in relay.log, relay.log


@row("Silence on an open connection")
def silence(trial: Trial) -> None:
    """An open connection behaves so while the service's Kafka is down, or its peer is gone."""
    upstream = trial.simulate(rate=RATE)
    relay = trial.relay(*trial.flags(upstream), IDLE)
    trial.wait_for_more(relay)
    for _ in range(trial.times(5, at_least=1)):
        with waited_for(upstream, "connections_total", 3):
            upstream.set_faults(silence_rate=1.0)
            upstream.cut_all()
        with trial.recovery(upstream, relay):
            upstream.set_faults(silence_rate=0.0)
        trial.survived(2)
    idle = relay.metric("pleiades_upstream_reconnects_total", reason="idle")
    assert idle >= trial.outcome.faults, relay.log
    trial.finish(upstream, relay)
    assert "Traceback" not in relay.log, relay.log


# ---- too much ----


def bounded(trial: Trial, upstream: Tape, relay: Relay, answer: Answer) -> None:
    """Check that this answer neither grows nor ends the reader."""
    reader = relay.child("reader")
    before = peak_bytes(reader.pid)
    answered(trial, upstream, relay, answer)
    assert reader.is_running(), relay.log
    grown = peak_bytes(reader.pid) - before
    trial.note(f"the reader's peak: {before // MEGABYTE} MB, then {grown // MEGABYTE} MB more")
    assert grown < MAX_GROWTH_BYTES, f"the reader has grown by {grown // MEGABYTE} MB"


def peak_bytes(pid: int) -> int:
    """The peak resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert found, status
    return int(found[1]) * 1024


@row("A line of 50 MB in the middle of the stream")
def line_of_50_mb(trial: Trial) -> None:
    """No event is that long; waiting for its end would use up all memory."""
    upstream, relay, _ = growing(trial)
    line = b"data: " + b"x" * (LINE_MEGABYTES * MEGABYTE) + b"\n\n"
    bounded(trial, upstream, relay, Stream(first=line))
    assert relay.log.count("skipped an SSE frame of more than 8 MiB") == 1, relay.log
    seen = finish(trial, upstream, relay)
    assert seen["oversized_frames"] == 1, seen


@row("A gzip bomb: 2 kB, compressed twice, that become 1 GB")
def gzip_bomb(trial: Trial) -> None:
    """The limit on a frame must apply to the decompressed length."""
    upstream, relay, _ = growing(trial)
    piece = b"x" * MEGABYTE
    megabytes = trial.times(BOMB_MEGABYTES, at_least=BOMB_MEGABYTES // 8)
    once = gzipped(piece for _ in range(megabytes))
    for encodings in ("gzip", "gzip, gzip"):
        bomb = once if encodings == "gzip" else gzipped([once])
        head = EVENT_STREAM + f"Content-Encoding: {encodings}\r\n\r\n".encode()
        trial.note(f"{len(bomb):,} bytes become {megabytes} MB ({encodings})")
        bounded(trial, upstream, relay, Say(head + bomb))
    seen = finish(trial, upstream, relay)
    assert seen["oversized_frames"] == 1, seen
    # The relay requested no double encoding: it does not read that answer at all.
    assert "Content-Encoding gzip, gzip, which was not asked for" in relay.log, relay.log


def gzipped(pieces: Iterable[bytes]) -> bytes:
    """Compress as much as possible."""
    gzip = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    return b"".join([gzip.compress(piece) for piece in pieces]) + gzip.flush()
