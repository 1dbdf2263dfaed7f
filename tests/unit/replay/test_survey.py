"""The survey of the upstream before a replay writes anything."""

from __future__ import annotations

from collections.abc import Callable

import orjson
import pytest

from pleiades.config.settings import Settings
from pleiades.core.range import Bound, Range
from pleiades.replay.command import _tell_of_gaps
from pleiades.replay.survey import Survey
from pleiades.runtime.errors import HistoryMissing
from tests.harness.answers import Held, Server

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
SOURCE = ("eqiad.x", 0)
BEGIN = 1_760_000_000_000
SPAN = Range(Bound(BEGIN), Bound(2 * BEGIN))


def event(timestamp_ms: int, offset: int | None = None) -> bytes:
    sse_id = orjson.dumps([{"topic": SOURCE[0], "partition": 0, "timestamp": timestamp_ms}])
    data = orjson.dumps({"meta": {"offset": offset}})
    return HEAD + b"event: message\nid: " + sse_id + b"\ndata: " + data + b"\n\n"


def test_one_silence_is_not_taken_for_an_answer(settings_of: Callable[..., Settings]) -> None:
    """When its own Kafka is down, the upstream's connections just fall silent."""
    server = Server(Held(HEAD), event(BEGIN + 5), Held(HEAD), event(BEGIN - 7))
    settings = settings_of(f"--upstream.url={server.url}", "--idleTimeout=300ms")
    found = Survey(settings.upstream).look(SOURCE, SPAN)
    server.close()
    assert found.first_ms == BEGIN + 5
    assert len(server.requests) == 4


def test_two_are(settings_of: Callable[..., Settings]) -> None:
    server = Server(Held(HEAD))
    settings = settings_of(f"--upstream.url={server.url}", "--idleTimeout=300ms")
    found = Survey(settings.upstream).look(SOURCE, SPAN)
    server.close()
    assert found.first_ms is None
    assert len(server.requests) == 4


@pytest.mark.parametrize(("offset", "missing_until_ms"), [(0, None), (7, BEGIN + 4)])
def test_a_history_that_begins_at_the_offset_0_lacks_nothing(
    settings_of: Callable[..., Settings], offset: int, missing_until_ms: int | None
) -> None:
    """A topic may be younger than the begin of the range."""
    server = Server(event(BEGIN + 5, offset), event(BEGIN + 5, offset))
    settings = settings_of(f"--upstream.url={server.url}", "--idleTimeout=300ms")
    found = Survey(settings.upstream).look(SOURCE, SPAN)
    server.close()
    assert found.missing_until_ms == missing_until_ms


def test_a_topic_that_is_gone_is_missing_history(
    settings_of: Callable[..., Settings], caplog: pytest.LogCaptureFixture
) -> None:
    body = b'{"name":"TopicNotAvailableError","message":"Topics eqiad.x are not available"}'
    server = Server(b"HTTP/1.1 404 No\r\n\r\n" + body)
    settings = settings_of(f"--upstream.url={server.url}", "--idleTimeout=300ms")
    found = {SOURCE: Survey(settings.upstream).look(SOURCE, SPAN)}
    server.close()
    assert found[SOURCE].gone
    with pytest.raises(HistoryMissing, match=r"eqiad\.x/0 is gone.*Nothing was written"):
        _tell_of_gaps(found, False)
    assert _tell_of_gaps(found, True)
    assert "eqiad.x/0 is gone" in caplog.text
