from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from pleiades.runtime.errors import UsageError
from pleiades.simulator.recorded import read_recorded, replayed
from pleiades.simulator.settings import SimulatorSettings

RECORDINGS = Path(__file__).parents[3].parent / "shared" / "data"
TOPIC = "eqiad.mediawiki.recentchange"
CODFW = "codfw.mediawiki.recentchange"


def line(
    number: int, topic: str = TOPIC, dt: str = "2024-09-01T17:56:58Z", **meta: object
) -> bytes:
    members = {"dt": dt, "id": f"id-{number}", "topic": topic, "partition": 0, **meta}
    return orjson.dumps({"meta": members, "text": "a\u2028b\u0085c", "n": number})


def test_lines_come_out_byte_for_byte(tmp_path: Path) -> None:
    # Members in an unusual order, escapes and spaces that re-serialising would lose.
    odd = b'{ "meta" : {"topic":"%b","id":"x\\u0041"},"n":1.0}' % TOPIC.encode()
    path = tmp_path / "events.ndjson"
    path.write_bytes(line(1) + b"\n" + odd + b"\r\n\n" + line(2) + b"\nnot JSON at all\n[1]")
    events = read_recorded(path, TOPIC)
    assert [e.payload for e in events] == [line(1), odd, line(2), b"not JSON at all", b"[1]"]
    assert [e.identity for e in events] == ["id-1", "xA", "id-2", "", ""]


def test_timestamps_come_from_meta_dt(tmp_path: Path) -> None:
    path = tmp_path / "events.ndjson"
    path.write_bytes(line(1) + b"\n" + line(2, dt="2018-10-19T11:24:51+00:00") + b"\n{}\n")
    times = [e.timestamp_ms for e in read_recorded(path, TOPIC)]
    # An event without a date has that of the previous one.
    assert times == [1_725_213_418_000, 1_539_948_291_000, 1_539_948_291_000]


def test_captures_are_dated_by_their_ids_less_one_ms(tmp_path: Path) -> None:
    sse_id = orjson.dumps(
        [
            {"topic": CODFW, "partition": 0, "timestamp": 99},
            {"topic": TOPIC, "partition": 0, "timestamp": 1_539_948_291_001},
        ]
    )
    path = tmp_path / "capture.sse"
    path.write_bytes(
        b":ok\n\nevent: message\nid: " + sse_id + b"\ndata: " + line(1) + b"\n\n"
        b"event: error\ndata: {}\n\n"
        b"data: [1,\ndata: 2]\n\n"
        b"data: " + line(3) + b"\n\n"
        b"id: [broken\ndata: " + line(2) + b"\n\n"
        b"data: cut sh"
    )
    events = read_recorded(path, TOPIC)
    assert [e.payload for e in events] == [line(1), b"[1,\ndata: 2]", line(3), line(2)]
    # An event without an id has the previous one's, as SSE specifies.
    assert [e.timestamp_ms for e in events[:3]] == [1_539_948_291_000] * 3
    assert events[3].timestamp_ms == 1_725_213_418_000


def test_topics_come_from_meta_and_only_legal_ones(tmp_path: Path) -> None:
    path = tmp_path / "events.ndjson"
    path.write_bytes(
        b"\n".join((line(1, CODFW), line(2, "evil\ntopic"), line(3, CODFW, partition=2), b"{}"))
    )
    sources = [e.source for e in read_recorded(path, TOPIC)]
    assert sources == [(CODFW, 0), (TOPIC, 0), (CODFW, 2), (TOPIC, 0)]


def test_canaries_are_known_by_their_domain(tmp_path: Path) -> None:
    path = tmp_path / "events.ndjson"
    path.write_bytes(line(1, domain="canary") + b"\n" + line(2, domain="en.wikipedia.org"))
    assert [e.canary for e in read_recorded(path, TOPIC)] == [True, False]


@pytest.mark.parametrize("text", [b"", b"\n\n"])
def test_a_file_without_events_is_a_mistake(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "events.ndjson"
    path.write_bytes(text)
    with pytest.raises(UsageError, match="holds no events"):
        read_recorded(path, TOPIC)


def test_a_missing_file_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="check --file"):
        read_recorded(tmp_path / "nowhere.ndjson", TOPIC)


def test_shifted_timestamps_keep_their_disorder(tmp_path: Path) -> None:
    path = tmp_path / "events.ndjson"
    path.write_bytes(
        line(1, dt="2024-01-01T00:00:10Z")
        + b"\n"
        + line(2, dt="2024-01-01T00:00:07Z")
        + b"\n"
        + line(3, dt="2024-01-01T00:00:11Z")
    )
    events = read_recorded(path, TOPIC)
    settings = SimulatorSettings(rate=10, history_events=1, shift_timestamps=True)
    fresh = list(replayed(events, settings, 1_000_000))
    assert [f.timestamp_ms for f in fresh] == [999_900, 997_000, 1_000_100]
    assert [f.due_ms for f in fresh] == [-100, 0, 100]
    as_recorded = SimulatorSettings(rate=10, history_events=1)
    assert [f.timestamp_ms for f in replayed(events, as_recorded, 1_000_000)] == [
        e.timestamp_ms for e in events
    ]


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason="the recordings are not here")
@pytest.mark.parametrize(
    ("name", "count"), [("recentchange.ndjson", 408), ("recentchange-2018-10-19.sse", 223)]
)
def test_real_recordings(name: str, count: int) -> None:
    path = RECORDINGS / name
    events = read_recorded(path, TOPIC)
    assert len(events) == count
    assert {e.source for e in events} == {(TOPIC, 0)}
    assert len({e.identity for e in events}) == count
    text = path.read_bytes()
    assert all(event.payload in text for event in events)
    assert all(1_400_000_000_000 < event.timestamp_ms < 1_900_000_000_000 for event in events)
