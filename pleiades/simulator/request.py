"""The meaning of a request, and the refusals of the service.

Law: pure. The checks come in the order of the real service: connections, streams, `since`, then
`Last-Event-ID`.

Sources: https://github.com/wikimedia/mediawiki-services-eventstreams (routes/stream.js) and
https://github.com/wikimedia/KafkaSSE (lib/KafkaSSE.js, lib/utils.js).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from pleiades.core.sse_id import TopicPartition
from pleiades.core.units import parse_iso_time_ms
from pleiades.simulator.log import LATEST
from pleiades.simulator.settings import topics_of

MAX_TIMESTAMP_MS = 2**53
"""JavaScript's integers end here."""

# https://foundation.wikimedia.org/wiki/Policy:Wikimedia_Foundation_User-Agent_Policy
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
    body: bytes
    content_type: str | None = None
    """None: no such header, as in the answers of KafkaSSE."""
    retry_after_seconds: int | None = None
    reason: str | None = None
    """HTTP reason phrase; None: the usual one."""


def _http_error(
    status: int,
    kind: str,
    title: str,
    detail: str,
    uri: str,
    retry_after_seconds: int | None = None,
) -> Refusal:
    """An error of the EventStreams service itself (its `HTTPError`)."""
    body = {"status": status, "type": kind, "title": title, "detail": detail}
    body |= {"method": "GET", "uri": uri}
    json = "application/json; charset=utf-8"
    return Refusal(status, orjson.dumps(body), json, retry_after_seconds)


def too_many_connections(uri: str, retry_after_seconds: int) -> Refusal:
    """The address has as many open streams as it may."""
    return _http_error(
        429,
        "too_many_requests",
        "Too Many Concurrent Connections From Your Client IP",
        "Your HTTP client is likely opening too many concurrent connections.",
        uri,
        retry_after_seconds,
    )


def failure(status: int, uri: str, retry_after_seconds: int) -> Refusal:
    """A 500 of the service, or a 503 of the proxy before it."""
    if status == 503:  # noqa: PLR2004
        page = b"<!DOCTYPE html>\n<title>Wikimedia Error</title>\n<p>Our servers are busy.</p>\n"
        return Refusal(status, page, "text/html; charset=utf-8", retry_after_seconds)
    return _http_error(status, "internal_error", "Error", "Local: Broker transport failure", uri)


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


def _invalid_assignment(message: str, original: str, **more: object) -> Refusal:
    return _kafka_error(400, "InvalidAssignmentError", message, originalName=original, **more)


def check_user_agent(agent: str) -> None:
    """Apply the policy on user agents.

    Raises:
        Refusal: 403, for no agent or a library's default one without contact details.
    """
    if not agent.strip() or (_LIBRARY_AGENT.match(agent.strip()) and not _CONTACT.search(agent)):
        raise Refusal(
            403,
            b"Please set a user-agent and respect our robot policy "
            b"https://foundation.wikimedia.org/wiki/Policy:Wikimedia_Foundation_User-Agent_Policy\n",
            "text/plain; charset=utf-8",
        )


def topics_for(path: str, streams: Collection[str], uri: str) -> list[str]:
    """The topics of the comma-separated streams in a path.

    Raises:
        Refusal: 400, a stream does not exist.
    """
    requested = path.split(",")
    unknown = [name for name in requested if name.removeprefix("mediawiki.") not in streams]
    if unknown:
        detail = f"Invalid streams: {','.join(unknown)}"
        raise _http_error(400, "not_found", "Stream Not Found", detail, uri)
    topics = [topic for name in requested for topic in topics_of(name.removeprefix("mediawiki."))]
    return list(dict.fromkeys(topics))


def since_ms(text: str | None, uri: str) -> int | None:
    """The `since` parameter in ms since 1970; None means the end of the log.

    A number, meant as ms since 1970, gives 0, and so all of the history: the service passes it to its
    Kafka client as a string, which the client takes for 0.

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
        raise _http_error(
            400, "invalid_timestamp", "Invalid timestamp", f"{detail}: '{text}'", uri
        ) from None


def asked_for(
    last_event_id: str | None,
    since: int | None,
    topics: Sequence[str],
    partitions: Mapping[str, Collection[int]],
    gone: Collection[str] = (),
) -> list[Asked]:
    """The start of each topic-partition.

    Args:
        last_event_id: the header as received; None: there was none. It has precedence over `since`.
        since: the result of `since_ms`.
        topics: those of the requested streams.
        partitions: the partitions of each topic.
        gone: the topics that Kafka does not have, or no longer has.

    Raises:
        Refusal: 400, the header is no array of assignments; 404, it names another topic, or one that is
            gone; 500, all topics are gone.
    """
    given: Any = list(topics)
    if last_event_id is not None:
        try:
            given = orjson.loads(last_event_id.encode(errors="surrogateescape"))
        except orjson.JSONDecodeError as error:
            shown = last_event_id.encode(errors="replace").decode()
            raise _invalid_assignment(str(error), "SyntaxError", last_event_id=shown) from None
    if isinstance(given, str):
        given = given.split(",")
    if not isinstance(given, list) or not given or not all(map(_is_assignment, given)):
        message = (
            "Must provide either an array topic names, or  an array of objects with topic, "
            "partition and offset|timestamp."
        )
        raise _invalid_assignment(message, "Error", assignments=given)
    available = [topic for topic in topics if topic not in gone]
    if not available:
        raise _kafka_error(
            500,
            "ConfigurationError",
            "No topics available for consumption. This likely means that the configured "
            "allowedTopics do not currently exist.",
            allowedTopics=list(topics),
        )
    named = dict.fromkeys(a if isinstance(a, str) else a["topic"] for a in given)
    missing = [topic for topic in named if topic not in available]
    if missing:
        message = f"Topics {', '.join(missing)} are not available for consumption."
        raise _kafka_error(404, "TopicNotAvailableError", message, availableTopics=available)
    return _without_both_keys(_expanded(given, since, partitions))


def _is_assignment(entry: object) -> bool:
    if isinstance(entry, str):
        return True
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("topic"), str)
        and _is_integer(entry.get("partition"))
        and (_is_integer(entry.get("offset")) or _is_integer(entry.get("timestamp")))
    )


def _is_integer(number: object) -> bool:
    return type(number) is int or (type(number) is float and number.is_integer())


def _expanded(
    given: list[Any], since: int | None, partitions: Mapping[str, Collection[int]]
) -> list[Asked]:
    asked: list[Asked] = []
    for entry in given:
        if isinstance(entry, str):
            start = (LATEST, None) if since is None else (None, since)
            asked.extend(Asked((entry, partition), *start) for partition in partitions[entry])
        else:
            source = (entry["topic"], int(entry["partition"]))
            offset, timestamp_ms = (
                int(number) if _is_integer(number) else None
                for number in (entry.get("offset"), entry.get("timestamp"))
            )
            asked.append(Asked(source, offset, timestamp_ms))
    return asked


def _without_both_keys(asked: list[Asked]) -> list[Asked]:
    # KafkaSSE's assignmentsForTimesAsync keeps entries with an offset and no timestamp, and adds
    # those with a timestamp and no offset: an entry with both is lost, and its topic with it.
    # Only where it has no timestamp to look up does it return early, and then the offset counts.
    if any(entry.offset is None for entry in asked):
        asked = [entry for entry in asked if entry.offset is None or entry.timestamp_ms is None]
    by_source = {
        entry.source: entry if entry.offset is None else entry._replace(timestamp_ms=None)
        for entry in asked
    }
    return list(by_source.values())
