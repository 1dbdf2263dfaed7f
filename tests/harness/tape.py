"""An upstream scripted by the test: its log, its answers, and where each answer breaks off.

The local upstream of `pleiades.simulator` generates its own events and draws its faults at random. A
tape can be told "the fifth event, up to its 117th byte, then a reset", and records when each request
came.

It resolves a request as the real service does: per topic, a timestamp resolves to the earliest event at
or after it, or to the end, which the ids then report as `offset: -1`.
"""

from __future__ import annotations

import random
import select
import socket
import struct
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

import orjson

from pleiades.core.units import parse_iso_time_ms
from pleiades.simulator.log import LATEST, JournalEntry
from pleiades.simulator.simulator import STREAM_PATH
from pleiades.simulator.upstream import Stats
from tests.harness.authority import authority
from tests.harness.script import Answer, Body, Ending, Say, Stream

HOME = "eqiad.mediawiki.recentchange"
OTHER = "codfw.mediawiki.recentchange"
OTHERS_TURN = 5
"""One in this many of the events written by `write_on` belongs to the other data centre."""
BATCH_EVENTS = 100
LOOK_SECONDS = 0.05
"""Time to notice that a client has left while there is nothing to send."""
MAX_REQUEST_BYTES = 64 * 1024
THREAD_END_SECONDS = 10.0
_NO_LINGER = struct.pack("ii", 1, 0)


class Request(NamedTuple):
    """A received request."""

    came: float
    """`time.monotonic()`"""
    asked: dict[str, int] | None
    """The timestamps per topic from `Last-Event-ID`; None without that header."""


class _Written(NamedTuple):
    entry: JournalEntry
    data: bytes


class _Left(Exception):
    """The connection is over: the client left, `cut_all` was called, or the tape ends."""


class Tape:
    """Serves from its creation to the end of the `with` block.

    Args:
        seed: for the identities.
        topics: of the stream, one partition each.
    """

    def __init__(self, seed: int, topics: Iterable[str] = (HOME, OTHER)) -> None:
        self.started_ms = _now_ms()
        self.requests: list[Request] = []
        self._topics = tuple(topics)
        self._chance = random.Random(seed)
        self._offsets = dict.fromkeys(self._topics, 0)
        self._log: list[_Written] = []
        self._first = 0
        self._answers: deque[Answer] = deque()
        self._stats = Stats()
        self._changed = threading.Condition()
        """Guards all of the above."""
        self._generation = 0
        """The number of `cut_all` calls; connections of an earlier generation end."""
        self._closing = threading.Event()
        self._resting = threading.Event()
        self._writers: list[threading.Thread] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._socket.getsockname()[1]}{STREAM_PATH}"
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def __enter__(self) -> Tape:
        return self

    def __exit__(self, *_: object) -> None:
        self.rest()
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
        # Closing alone does not wake accept().
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for thread in self._threads:
            thread.join(THREAD_END_SECONDS)

    def _start(self, target: Callable[..., None], *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    # ---- the log ----

    def write(
        self, topic: str = HOME, timestamp_ms: int | None = None, text: str = "", times: int = 1
    ) -> None:
        """Append events.

        Args:
            topic: the topic of the events.
            timestamp_ms: Kafka's; None: now.
            text: part of their data.
            times: the number of events.
        """
        with self._changed:
            for _ in range(times):
                self._log.append(
                    self._event(topic, _now_ms() if timestamp_ms is None else timestamp_ms, text)
                )
            self._stats.events_appended_total = len(self._log)
            self._changed.notify_all()

    def _event(self, topic: str, timestamp_ms: int, text: str) -> _Written:
        offset = self._offsets[topic]
        self._offsets[topic] = offset + 1
        identity = str(uuid.UUID(int=self._chance.getrandbits(128), version=4))
        dt = datetime.fromtimestamp(timestamp_ms / 1000, UTC).isoformat(timespec="milliseconds")
        meta = {
            "id": identity,
            "dt": dt.replace("+00:00", "Z"),
            "domain": "en.wikipedia.org",
            "topic": topic,
            "partition": 0,
            "offset": offset,
        }
        data = {"$schema": "/mediawiki/recentchange/1.0.0", "meta": meta, "comment": text}
        entry = JournalEntry(topic, 0, offset, timestamp_ms, identity, canary=False)
        return _Written(entry, orjson.dumps(data))

    def append(self, data: bytes, identity: str = "", topic: str = HOME) -> None:
        """Append an event with exactly these bytes, dated now."""
        with self._changed:
            offset = self._offsets[topic]
            self._offsets[topic] = offset + 1
            entry = JournalEntry(topic, 0, offset, _now_ms(), identity, canary=False)
            self._log.append(_Written(entry, data))
            self._stats.events_appended_total = len(self._log)
            self._changed.notify_all()

    def write_on(self, rate: float, topics: Iterable[str] = (HOME, OTHER)) -> None:
        """Write `rate` events per second in the background, mostly to the first topic."""
        self._writers.append(self._start(self._write_on, rate, tuple(topics)))

    def rest(self) -> None:
        """Stop the background writers."""
        self._resting.set()
        for writer in self._writers:
            writer.join(THREAD_END_SECONDS)

    def _write_on(self, rate: float, topics: tuple[str, ...]) -> None:
        number = 0
        while not self._resting.wait(1 / rate):
            number += 1
            self.write(topics[0 if number % OTHERS_TURN else -1])

    def forget(self, events: int) -> None:
        """Expire the first `events` events ever written."""
        with self._changed:
            self._first = events

    def frame(self, place: int) -> bytes:
        """An event's frame for a client that has received nothing of any other topic."""
        return _frame(self._log[place], dict.fromkeys(self._topics, b'"offset":-1'))

    def __len__(self) -> int:
        """The number of events ever written."""
        return len(self._log)

    def values(self) -> list[bytes]:
        """The data of all events."""
        return [written.data for written in self._log]

    def journal(self) -> list[JournalEntry]:
        """The entries of all events, including expired ones."""
        return [written.entry for written in self._log]

    def stats(self) -> Stats:
        """A copy; served events are not counted."""
        with self._changed:
            return replace(self._stats)

    # ---- the answers ----

    def answer(self, *answers: Answer) -> None:
        """Queue answers to the next requests, one each; later requests get the usual answer."""
        with self._changed:
            self._answers.extend(answers)

    def unanswered(self) -> int:
        """The number of unused answers."""
        return len(self._answers)

    def cut_all(self) -> None:
        """Reset every open stream."""
        with self._changed:
            self._generation += 1
            self._changed.notify_all()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        try:
            # Otherwise batches wait for each other's acknowledgement.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Each write is a TLS record.
            connection = authority().server.wrap_socket(connection, server_side=True)
        except OSError:
            connection.close()
            return
        with connection:
            try:
                target, request = _read_request(connection)
                with self._changed:
                    self.requests.append(request)
                    self._stats.requests_total += 1
                    answer = self._answers.popleft() if self._answers else Stream()
                    generation = self._generation
                    self._stats.refused_total += not isinstance(answer, Stream)
                if isinstance(answer, Say):
                    connection.sendall(answer.wire)
                else:
                    self._stream(connection, answer, generation, self._asked(target, request))
            except (OSError, _Left):
                # The cause does not matter: the destination shows the result.
                return

    def _asked(self, target: str, request: Request) -> dict[str, int]:
        """The timestamp per requested topic; `LATEST` for new events only."""
        if request.asked is not None:
            return request.asked
        since = parse_qs(urlsplit(target).query).get("since", [])
        return dict.fromkeys(self._topics, parse_iso_time_ms(since[0]) if since else LATEST)

    def _stream(
        self, connection: socket.socket, answer: Stream, generation: int, asked: dict[str, int]
    ) -> None:
        with self._changed:
            self._stats.connections_total += 1
            starts, entries = self._resolve(asked, answer.behind)
            place = min(starts.values(), default=len(self._log))
        body = Body(connection, answer.chunked)
        body.start()
        body.write(answer.first)
        while True:
            waiting = self._behind(place, generation)
            if self._over(generation):
                self._end(connection, body, Ending.RESET, generation)
            if not waiting and _has_left(connection):
                raise _Left
            lines: list[bytes] = []
            for written in waiting:
                topic = written.entry.topic
                wanted = topic in starts and place >= starts[topic]
                if answer.stop is not None and place >= answer.stop.place:
                    body.write(*lines)
                    if wanted:
                        rest = _frame(written, entries)
                        body.write_part(rest[: answer.stop.byte], answer.stop.ending)
                    self._end(connection, body, answer.stop.ending, generation)
                place += 1
                if wanted:
                    entries |= _delivered(written)
                    lines += _frame(written, entries).splitlines(keepends=True)
            body.write(*lines)

    def _behind(self, place: int, generation: int) -> list[_Written]:
        """The next events; empty if none came within `LOOK_SECONDS`."""
        with self._changed:
            self._changed.wait_for(
                lambda: len(self._log) > place or self._over(generation), LOOK_SECONDS
            )
            return self._log[place : place + BATCH_EVENTS]

    def _resolve(
        self, asked: Mapping[str, int], behind: frozenset[str]
    ) -> tuple[dict[str, int], dict[str, bytes]]:
        """Each topic's start in the log, and its entry in the ids until it delivers something."""
        starts: dict[str, int] = {}
        entries: dict[str, bytes] = {}
        for topic, timestamp_ms in asked.items():
            starts[topic] = len(self._log)
            entries[topic] = b'"offset":%d' % LATEST
            if timestamp_ms == LATEST or topic in behind:
                continue
            for place in range(self._first, len(self._log)):
                entry = self._log[place].entry
                if entry.topic == topic and entry.timestamp >= timestamp_ms:
                    starts[topic] = place
                    entries[topic] = b'"offset":%d' % entry.offset
                    break
        return starts, entries

    def _over(self, generation: int) -> bool:
        return self._closing.is_set() or generation < self._generation

    def _end(self, connection: socket.socket, body: Body, ending: Ending, generation: int) -> None:
        """End a connection; always raises `_Left`."""
        if ending is Ending.SILENT:
            self._stay(connection, generation)
        with self._changed:
            self._stats.cuts_total += 1
        if ending is Ending.RESET:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        elif ending is Ending.CLEAN:
            body.end()
        raise _Left

    def _stay(self, connection: socket.socket, generation: int) -> None:
        """Send nothing until the client leaves; always raises `_Left`."""
        while not self._over(generation) and not _has_left(connection, LOOK_SECONDS):
            pass
        raise _Left


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _delivered(written: _Written) -> dict[str, bytes]:
    return {written.entry.topic: b'"timestamp":%d' % (written.entry.timestamp + 1)}


def _frame(written: _Written, entries: Mapping[str, bytes]) -> bytes:
    """An event's frame; its id has these entries and the event's own."""
    id_entries = (
        b'{"topic":"%b","partition":0,%b}' % (topic.encode(), entry)
        for topic, entry in {**entries, **_delivered(written)}.items()
    )
    return b"event: message\nid: [%b]\ndata: %b\n\n" % (b",".join(id_entries), written.data)


def _read_request(connection: socket.socket) -> tuple[str, Request]:
    """Return a request's target, and the parsed request."""
    text = b""
    while b"\r\n\r\n" not in text and len(text) < MAX_REQUEST_BYTES:
        part = connection.recv(MAX_REQUEST_BYTES)
        if not part:
            raise _Left
        text += part
    came = time.monotonic()
    first, *headers = text.decode("latin-1").split("\r\n")
    named = dict(header.split(": ", 1) for header in headers if ": " in header)
    last_event_id = named.get("Last-Event-ID")
    asked = None
    if last_event_id is not None:
        asked = {
            entry["topic"]: entry.get("timestamp", LATEST) for entry in orjson.loads(last_event_id)
        }
    return first.split(" ")[1], Request(came, asked)


def _has_left(connection: socket.socket, timeout_seconds: float = 0.0) -> bool:
    """True if the client has closed its side; a client sends nothing after its request."""
    return bool(select.select([connection], [], [], timeout_seconds)[0])
