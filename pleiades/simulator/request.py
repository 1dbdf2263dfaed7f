"""The meaning of a request, and the refusals of the service.

Law: pure. The checks come in the order of the real service: connections, streams, `since`, then
`Last-Event-ID`.

Sources: https://github.com/wikimedia/mediawiki-services-eventstreams (routes/stream.js) and
https://github.com/wikimedia/KafkaSSE (lib/KafkaSSE.js, lib/utils.js).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from pleiades.core.sse_id import TopicPartition
from pleiades.core.units import parse_iso_time_ms
from pleiades.simulator.log import LATEST
from pleiades.simulator.settings import topics_of

MAX_TIMESTAMP_MS = 2**53
"""JavaScript's integers end here."""

# https://foundation.wikimedia.org/wiki/Policy:Wikimedia_Foundation_User-Agent_Policy
_POLICY = b"""Please set a user-agent and respect our robot policy \
https://foundation.wikimedia.org/wiki/Policy:Wikimedia_Foundation_User-Agent_Policy
"""
_LIBRARY_AGENT = re.compile(
    r"(python-requests|python-urllib3?|python-httpx|python/|go-http-client|curl|wget|libcurl|"
    r"java/|okhttp|apache-httpclient|axios|node|undici|libwww-perl|ruby|php|sseclient|aiohttp)",
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
    headers: dict[str, str] = field(default_factory=dict)
    """The answers of KafkaSSE have no content type."""
    reason: str | None = None
    """HTTP reason phrase; None: the usual one."""


def _http_error(status: int, kind: str, title: str, detail: str) -> Refusal:
    """An error of the EventStreams service itself (its `HTTPError`)."""
    body = {"status": status, "type": kind, "title": title, "detail": detail}
    return Refusal(status, body, {"Content-Type": "application/json; charset=utf-8"})


def too_many_connections() -> Refusal:
    """The address has as many open streams as it may."""
    return _http_error(
        429,
        "too_many_requests",
        "Too Many Concurrent Connections From Your Client IP",
        "Your HTTP client is likely opening too many concurrent connections.",
    )


def failure(status: int) -> Refusal:
    """A 500 of the service, or a 503 of the proxy before it."""
    if status == 503:  # noqa: PLR2004
        page = b"<!DOCTYPE html>\n<title>Wikimedia Error</title>\n<p>Our servers are busy.</p>\n"
        return Refusal(status, page, {"Content-Type": "text/html; charset=utf-8"})
    return _http_error(status, "internal_error", "Error", "Local: Broker transport failure")


def _kafka_error(status: int, name: str, message: str, **more: object) -> Refusal:
    """An error of KafkaSSE: JSON and a line end, without a content type."""
    body = {"message": message, "origin": "KafkaSSE", "name": name, **more, "statusCode": status}
    # Upstream's reason phrase is the error's text; a line end in it would split the header.
    reason = re.sub(r"[^ -~]", "?", f"{name}: {message}")[:200]
    try:
        text = orjson.dumps(body)
    except orjson.JSONEncodeError:
        # orjson reads deeper nesting than it writes.
        text = orjson.dumps({**body, **dict.fromkeys(more)})
    return Refusal(status, text + b"\n", reason=reason)


def check_user_agent(agent: str) -> None:
    """Apply the policy on user agents.

    Raises:
        Refusal: 403, for no agent or a library's default one without contact details.
    """
    if not agent.strip() or (_LIBRARY_AGENT.match(agent.strip()) and not _CONTACT.search(agent)):
        raise Refusal(403, _POLICY, {"Content-Type": "text/plain; charset=utf-8"})


def topics_for(path: str, streams: Collection[str]) -> list[str]:
    """The topics of the comma-separated streams in a path.

    Raises:
        Refusal: 400, a stream does not exist.
    """
    requested = {name: name.removeprefix("mediawiki.") for name in path.split(",")}
    if unknown := [name for name, stream in requested.items() if stream not in streams]:
        detail = f"Invalid streams: {','.join(unknown)}"
        raise _http_error(400, "not_found", "Stream Not Found", detail)
    found = [topic for stream in requested.values() for topic in topics_of(stream)]
    return list(dict.fromkeys(found))


def since_ms(text: str | None) -> int | None:
    """The `since` parameter in ms since 1970; None means the end of the log.

    The real service passes a number on as a string, which its Kafka client takes for 0.

    Raises:
        Refusal: 400, it is neither a number nor a date.
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
        detail = "since timestamp is not a UTC milliseconds unix epoch and was not parseable"
        detail = f"{detail}: '{text}'"
        raise _http_error(400, "invalid_timestamp", "Invalid timestamp", detail) from None


def asked_for(
    last_event_id: str | None,
    since: int | None,
    topics: Sequence[str],
    partitions: Mapping[str, Collection[int]],
) -> list[Asked]:
    """The start of each topic-partition.

    Args:
        last_event_id: the header as received; None: there was none. It has precedence over `since`.
        since: the result of `since_ms`.
        topics: those of the requested streams.
        partitions: the partitions of each topic that Kafka has.

    Raises:
        Refusal: 400, the header is no array of assignments; 404, it names a topic outside of these.
    """
    given: Any = list(topics)
    if last_event_id is not None:
        try:
            given = orjson.loads(last_event_id.encode(errors="surrogateescape"))
        except orjson.JSONDecodeError as error:
            shown = last_event_id.encode(errors="replace").decode()
            origin = {"originalName": "SyntaxError", "last_event_id": shown}
            raise _kafka_error(400, "InvalidAssignmentError", str(error), **origin) from None
    if isinstance(given, str):
        given = given.split(",")
    if not isinstance(given, list) or not given or not all(map(_is_assignment, given)):
        message = (
            "Must provide either an array topic names, or  an array of objects with topic, "
            "partition and offset|timestamp."
        )
        origin = {"originalName": "Error", "assignments": given}
        raise _kafka_error(400, "InvalidAssignmentError", message, **origin)
    available = [topic for topic in topics if topic in partitions]
    named = dict.fromkeys(entry if isinstance(entry, str) else entry["topic"] for entry in given)
    if missing := [topic for topic in named if topic not in available]:
        message = f"Topics {', '.join(missing)} are not available for consumption."
        raise _kafka_error(404, "TopicNotAvailableError", message, availableTopics=available)
    asked: list[Asked] = []
    for entry in given:
        if isinstance(entry, str):
            start = (LATEST, None) if since is None else (None, since)
            asked += [Asked((entry, partition), *start) for partition in partitions[entry]]
        else:
            source = (entry["topic"], int(entry["partition"]))
            asked.append(
                Asked(source, *map(_integer, (entry.get("offset"), entry.get("timestamp"))))
            )
    # KafkaSSE's assignmentsForTimesAsync keeps entries with an offset and no timestamp, and adds
    # those with a timestamp and no offset: an entry with both is lost, and its topic with it.
    # Only where it has no timestamp to look up does it return early, and then the offset counts.
    if any(entry.offset is None for entry in asked):
        asked = [entry for entry in asked if entry.offset is None or entry.timestamp_ms is None]
    else:
        asked = [entry._replace(timestamp_ms=None) for entry in asked]
    return list({entry.source: entry for entry in asked}.values())


def _is_assignment(entry: object) -> bool:
    if isinstance(entry, str):
        return True
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("topic"), str)
        and _integer(entry.get("partition")) is not None
        and any(_integer(entry.get(key)) is not None for key in ("offset", "timestamp"))
    )


def _integer(number: object) -> int | None:
    """The number if it is whole, as JavaScript tells; else None."""
    if type(number) is int or (type(number) is float and number.is_integer()):
        return int(number)
    return None
