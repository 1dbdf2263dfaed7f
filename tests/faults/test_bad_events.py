"""Hostile and broken events: counted, kept, and the stream goes on."""

from __future__ import annotations

from pathlib import Path

import orjson

from tests.harness.answers import Server
from tests.harness.oracle import published_count
from tests.harness.relay import Relay

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n:ok\n\n"
START_MS = 1_790_000_000_000
NOT_JSON = [b"{", b"not json at all", b'{"a":\xff\xfe', b"[" * 100_000, b'"a string"', b"[1, 2]"]
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
]


def frame(number: int, data: bytes) -> bytes:
    sse_id = b'[{"topic":"eqiad.x","partition":0,"timestamp":%d}]' % (START_MS + number)
    return b"event: message\nid: " + sse_id + b"\ndata: " + data + b"\n\n"


def test_bad_events_are_set_apart_and_the_rest_is_published(tmp_path: Path) -> None:
    good = [orjson.dumps({"meta": {"id": f"good-{number}"}}) for number in range(20)]
    hostile = [orjson.dumps({"meta": {"id": identity, "n": identity}}) for identity in HOSTILE_IDS]
    deep = b'{"meta":{"id":"deep"},"a":' + b"[" * 200 + b"]" * 200 + b"}"
    large = b'{"meta":{"id":"large"},"a":"' + b"x" * 5_000_000 + b'"}'
    bare = [b"{}", b'{"meta":null}', b'{"meta":[]}', b'{"meta":{"id":7,"dt":{}}}']
    twice = b'{"meta":{"id":"first"},"meta":{"id":"second"}}'
    events = [*good, *hostile, deep, large, *bare, twice]
    bodies = [*events[:10], *NOT_JSON, *events[10:]]
    stream = b"".join(frame(number, data) for number, data in enumerate(bodies))
    server = Server(HEAD + stream)
    folder = tmp_path / "a" / "events"
    arguments = ["ingest", "--file.enable", f"--file.publishDir={folder}", "--since=2026-01-01"]
    arguments += [f"--upstream.url={server.url}", "--metricsPort=0", "--metricsHost=127.0.0.1"]
    try:
        with Relay(*arguments) as relay:
            relay.until(
                lambda: (
                    published_count(folder) >= len(events)
                    and relay.metric("pleiades_dead_letters_total", reason="not_json") >= 4
                ),
                "all events",
                60,
            )
            assert relay.metric("pleiades_dead_letters_total", reason="not_an_object") == 2
            assert relay.metric("pleiades_replaced_identities_total") >= len(HOSTILE_IDS)
            assert relay.stop() == 0
    finally:
        server.close()
    published = [path.read_bytes() for path in folder.glob("2*/*.json")]
    assert sorted(published) == sorted(data + b"\n" for data in events)
    dead = [path.read_bytes() for path in (folder / ".pleiades" / "dead-letters").iterdir()]
    assert len(dead) == len(NOT_JSON)
    assert b"not json at all" in dead
    outside = {path.name for path in tmp_path.rglob("*") if folder not in path.parents}
    assert outside == {"a", "events"}
    assert "Traceback" not in relay.log
