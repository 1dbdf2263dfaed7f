"""HTTP: the upstream's answers, and requests to the local upstream."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from unittest import mock

from pleiades.config.settings import UpstreamSettings
from pleiades.core.backoff import retry_after_seconds
from pleiades.runtime.errors import RefusedByUpstream, Transient
from pleiades.simulator.log import EARLIEST, Cluster, UpstreamLog
from pleiades.simulator.request import (
    Asked,
    Refusal,
    asked_for,
    check_user_agent,
    since_ms,
    topics_for,
)
from pleiades.upstream.body import READ_BYTES
from pleiades.upstream.http import Upstream
from pleiades.upstream.refusals import MAX_RETRY_AFTER_SECONDS
from tests.fuzz.target import lossless, parts

NOW = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)
MAX_CHUNKS = 16
"""A bomb of 4 kB, compressed twice, is gigabytes: an unbounded chunk shows soon."""
IDLE_SECONDS = 5.0
MAX_MESSAGE_CHARACTERS = 3000
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f]")


# ---- the upstream's answer ----


def retry_after(raw: bytes) -> None:
    """The header `Retry-After`, as http.client returns it."""
    pause = retry_after_seconds(raw.decode("latin-1"), NOW, MAX_RETRY_AFTER_SECONDS)
    assert pause is None or 0 <= pause <= MAX_RETRY_AFTER_SECONDS


def answer(raw: bytes) -> None:
    """All bytes of an answer from the status line on: a stream, `Transient` or a refusal."""
    with _answering(raw):
        ask("http://127.0.0.1:1/v2")


def ask(url: str, ca: Path | None = None) -> None:
    """Read whatever comes."""
    upstream = Upstream(
        UpstreamSettings(url, ("x",), "https://example.org/", 60, IDLE_SECONDS, False, ca)
    )
    with contextlib.closing(upstream._session):
        try:
            connection = upstream.connect(None, 5)
        except (Transient, RefusedByUpstream) as error:
            fit_to_be_shown(error)
            return
        assert connection.server_ms is None or type(connection.server_ms) is int
        try:
            for number, chunk in enumerate(connection.chunks()):
                assert 0 < len(chunk) <= READ_BYTES, "a chunk is not bounded"
                if number == MAX_CHUNKS:
                    break
        except Transient as error:
            fit_to_be_shown(error)
        finally:
            connection.close()


def fit_to_be_shown(error: Transient | RefusedByUpstream) -> None:
    """It is logged."""
    text = str(error)
    assert len(text) <= MAX_MESSAGE_CHARACTERS
    if isinstance(error, Transient):
        assert re.fullmatch(r"[a-z0-9_]+", error.kind)
        wait = error.retry_after_seconds
        assert wait is None or 0 <= wait <= MAX_RETRY_AFTER_SECONDS


@contextlib.contextmanager
def _answering(raw: bytes) -> Iterator[None]:
    """Each connection is half of a socket pair that already holds the answer: no server."""
    pairs: list[tuple[socket.socket, socket.socket]] = []

    def connected(*_: object, **__: object) -> socket.socket:
        ours, their = socket.socketpair()
        their.sendall(raw)
        their.shutdown(socket.SHUT_WR)
        pairs.append((ours, their))
        return ours

    try:
        with mock.patch("urllib3.util.connection.create_connection", connected):
            yield
    finally:
        for ours, their in pairs:
            their.close()
            # After an invalid redirect requests leaves it to the garbage collector.
            left = ours.detach()
            if left >= 0:
                os.close(left)


# ---- what the local upstream is asked ----

STREAMS = ("recentchange", "page-create")
PARTITIONS = 2


def request(raw: bytes) -> None:
    """Streams, `since`, `Last-Event-ID`, agent: a start, or a `Refusal` that can be sent."""
    streams, since, last_event_id, agent = map(lossless, parts(raw, 4))
    # Path and query come through yarl, which leaves invalid UTF-8 percent-encoded.
    streams, since = (text.encode(errors="replace").decode() for text in (streams, since))
    try:
        check_user_agent(agent)
        topics = topics_for(streams or ",".join(STREAMS), STREAMS)
        log = UpstreamLog([(topic, part) for topic in topics for part in range(PARTITIONS)], 1)
        asked = asked_for(last_event_id or None, since_ms(since), topics, log.partitions)
    except Refusal as refusal:
        assert 400 <= refusal.status < 500
        assert type(refusal.body) in (bytes, dict)
        # It is sent in the status line.
        assert refusal.reason is None or re.fullmatch(r"[ -~]{1,200}", refusal.reason)
        return
    assert len({entry.source for entry in asked}) == len(asked)
    view = Cluster(log, "eqiad", 1)
    for entry in asked:
        _sound(entry, topics)
        if entry.source in log.partitions:
            _can_be_served(entry, view)


def _sound(entry: Asked, topics: list[str]) -> None:
    assert entry.source[0] in topics
    assert type(entry.source[1]) is int
    assert (entry.offset is None) != (entry.timestamp_ms is None)
    assert type(entry.offset if entry.timestamp_ms is None else entry.timestamp_ms) is int


def _can_be_served(entry: Asked, view: Cluster) -> None:
    offset = entry.offset
    if offset is None:
        assert entry.timestamp_ms is not None
        offset = view.resolve_timestamp(entry.source, entry.timestamp_ms, 0.0)
    assert view.index_of(entry.source, offset, 0.0) == 0
    assert view.index_of(entry.source, EARLIEST, 0.0) == 0
