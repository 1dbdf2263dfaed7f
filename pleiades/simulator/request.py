"""The meaning of a request, and the refusals of the service.

Law: pure. The checks come in the order of the real service: connections, streams, `since`, then
`Last-Event-ID`.

Sources: https://github.com/wikimedia/mediawiki-services-eventstreams (routes/stream.js) and
https://github.com/wikimedia/KafkaSSE (lib/KafkaSSE.js, lib/utils.js).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from pleiades.core.sse_id import TopicPartition
from pleiades.core.units import parse_iso_time_ms
from pleiades.simulator.log import LATEST
from pleiades.simulator.settings import topics_of

MAX_TIMESTAMP_MS = 2**53
"""JavaScript's integers end here."""

_POLICY = b"""Please set a user-agent and respect our robot policy \
https://foundation.wikimedia.org/wiki/Policy:Wikimedia_Foundation_User-Agent_Policy
"""
_LIBRARY_AGENT = re.compile(
    r"\s*(python-requests|python-urllib3?|python-httpx|python/|go-http-client|curl|wget|libcurl|"
    r"java/|okhttp|apache-httpclient|axios|node|undici|libwww-perl|ruby|php|sseclient|aiohttp|$)",
    re.IGNORECASE,
)
_CONTACT = re.compile(r"https?://[^\s/]|[^\s@]@[^\s@]")


class Asked(NamedTuple):
    """The start of one topic-partition: exactly one of the two is not None."""

    source: TopicPartition
    offset: int | None
    """-1 is the end, -2 the beginning."""
    timestamp_ms: int | None


@dataclass(eq=False)
class Refusal(Exception):
    """An answer other than the stream."""

    status: int
    body: bytes | dict[str, Any]
    """A dict lacks the request's method and URI, and is sent as JSON."""
    headers: dict[str, str]
    """KafkaSSE sends no `Content-Type`."""
    reason: str | None = None
    """HTTP reason phrase; None: the usual one."""


def http_error(status: int, kind: str, title: str, detail: str) -> Refusal:
    """An error of the EventStreams service itself (its `HTTPError`)."""
    body = {"status": status, "type": kind, "title": title, "detail": detail}
    return Refusal(status, body, {"Content-Type": "application/json; charset=utf-8"})


def too_many_connections() -> Refusal:
    """The address has as many open streams as it may."""
    title = "Too Many Concurrent Connections From Your Client IP"
    detail = "Your HTTP client is likely opening too many concurrent connections."
    return http_error(429, "too_many_requests", title, detail)


def failure(status: int) -> Refusal:
    """A 500 of the service, or a 503 of the proxy before it."""
    if status == 503:  # noqa: PLR2004
        page = b"<!DOCTYPE html>\n<title>Wikimedia Error</title>\n<p>Our servers are busy.</p>\n"
        return Refusal(status, page, {"Content-Type": "text/html; charset=utf-8"})
    return http_error(status, "internal_error", "Error", "Local: Broker transport failure")


def _kafka_error(status: int, name: str, message: str, **more: object) -> Refusal:
    """An error of KafkaSSE: JSON and a line end, without a content type."""
    body = {"message": message, "origin": "KafkaSSE", "name": name, **more, "statusCode": status}
    # Upstream's reason phrase is the error's text; a line end in it would split the header.
    reason = re.sub(r"[^ -~]", "?", f"{name}: {message}")[:200]
    return Refusal(status, orjson.dumps(body) + b"\n", {}, reason)


def check_user_agent(agent: str) -> None:
    """Refuse (403) no agent, and a library's default one without contact details."""
    if _LIBRARY_AGENT.match(agent) and not _CONTACT.search(agent):
        raise Refusal(403, _POLICY, {"Content-Type": "text/plain; charset=utf-8"})


def topics_for(path: str, streams: Collection[str]) -> list[str]:
    """The topics of the comma-separated streams in a path; refuses (400) an unknown one."""
    requested = {name: name.removeprefix("mediawiki.") for name in path.split(",")}
    if unknown := [name for name, stream in requested.items() if stream not in streams]:
        detail = f"Invalid streams: {','.join(unknown)}"
        raise http_error(400, "not_found", "Stream Not Found", detail)
    topics = [topic for stream in requested.values() for topic in topics_of(stream)]
    return list(dict.fromkeys(topics))


def since_ms(text: str | None) -> int | None:
    """The `since` parameter in ms since 1970, None for the end of the log; refuses (400) other text.

    A number is passed on as a string, which the service's Kafka client takes for 0.
    """
    if not text:
        return None
    try:
        if abs(float(text.replace("_", "?"))) <= MAX_TIMESTAMP_MS:
            return 0
    except ValueError:
        pass
    try:
        return parse_iso_time_ms(text.strip())
    except (ValueError, OverflowError):
        detail = (
            f"since timestamp is not a UTC milliseconds unix epoch and was not parseable: '{text}'"
        )
        raise http_error(400, "invalid_timestamp", "Invalid timestamp", detail) from None


def asked_for(
    last_event_id: str | None,
    since: int | None,
    topics: Sequence[str],
    sources: Collection[TopicPartition],
) -> list[Asked]:
    """The start of each topic-partition.

    Args:
        last_event_id: the header as received, which has precedence over `since`; None: none.
        topics: those of the requested streams.
        sources: the topic-partitions that Kafka has.

    Raises:
        Refusal: 400, the header is no array of assignments; 404, it names a topic outside of these.
    """
    given: Any = list(topics)
    error = (
        "Must provide either an array topic names, or  an array of objects with topic, "
        "partition and offset|timestamp."
    )
    if last_event_id is not None:
        try:
            given = orjson.loads(last_event_id.encode(errors="surrogateescape"))
        except orjson.JSONDecodeError as invalid:
            given, error = None, str(invalid)
    if isinstance(given, str):
        given = given.split(",")
    if not isinstance(given, list) or not given or not all(map(_is_assignment, given)):
        raise _kafka_error(400, "InvalidAssignmentError", error)
    kafkas = {topic for topic, _ in sources}
    available = [topic for topic in topics if topic in kafkas]
    named = dict.fromkeys(entry if isinstance(entry, str) else entry["topic"] for entry in given)
    if missing := [topic for topic in named if topic not in available]:
        message = f"Topics {', '.join(missing)} are not available for consumption."
        raise _kafka_error(404, "TopicNotAvailableError", message, availableTopics=available)
    asked: list[Asked] = []
    for entry in given:
        if isinstance(entry, str):
            start = (LATEST, None) if since is None else (None, since)
            asked += [Asked(source, *start) for source in sources if source[0] == entry]
        else:
            partition, offset, time = (
                _whole(entry, k) for k in ("partition", "offset", "timestamp")
            )
            asked.append(Asked((entry["topic"], partition or 0), offset, time))
    # KafkaSSE's assignmentsForTimesAsync keeps entries with an offset and no timestamp, and adds
    # those with a timestamp and no offset: an entry with both is lost, and its topic with it.
    # Only where it has no timestamp to look up does it return early, and then the offset counts.
    if any(entry.offset is None for entry in asked):
        asked = [entry for entry in asked if entry.offset is None or entry.timestamp_ms is None]
    else:
        asked = [entry._replace(timestamp_ms=None) for entry in asked]
    return list({entry.source: entry for entry in asked}.values())


def _is_assignment(entry: object) -> bool:
    if not isinstance(entry, dict):
        return isinstance(entry, str)
    place = (_whole(entry, "offset"), _whole(entry, "timestamp"))
    named = isinstance(entry.get("topic"), str) and _whole(entry, "partition") is not None
    return named and place != (None, None)


def _whole(entry: dict[str, Any], key: str) -> int | None:
    """A member that is a whole number, as JavaScript tells; else None."""
    number: Any = entry.get(key)
    return int(number) if type(number) in (int, float) and number == number // 1 else None
