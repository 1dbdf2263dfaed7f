"""What a request asks for, and the words in which the service refuses it.

Law: pure; from the request's strings to a list of `Asked`, or a `Refusal`. The checks come in the
order of the real service: connections, streams, `since`, then `Last-Event-ID`.

Sources: https://github.com/wikimedia/mediawiki-services-eventstreams (routes/stream.js) and
https://github.com/wikimedia/KafkaSSE (lib/KafkaSSE.js, lib/utils.js).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from pleiades.core.units import parse_iso_time_ms
from pleiades.core.wire import TopicPartition
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
    """Where one topic-partition is to start: exactly one of the two is not None."""

    source: TopicPartition
    offset: int | None
    """-1 is the end, -2 the beginning."""
    timestamp_ms: int | None


class Refusal(Exception):
    """An answer other than the stream.

    Attributes:
        status: HTTP status.
        reason: HTTP reason phrase, None for the usual one.
        body: what the service says.
        content_type: None: the answer has no such header, as KafkaSSE's have none.
        retry_after_seconds: for the header of this name; None: no header.
    """

    def __init__(
        self,
        status: int,
        body: bytes,
        content_type: str | None,
        retry_after_seconds: int | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(status)
        self.status = status
        self.body = body
        self.content_type = content_type
        self.retry_after_seconds = retry_after_seconds
        self.reason = reason


def http_error(
    status: int,
    kind: str,
    title: str,
    detail: str,
    uri: str,
    retry_after_seconds: int | None = None,
) -> Refusal:
    """An error of the EventStreams service itself (its `HTTPError`)."""
    body = {
        "status": status,
        "type": kind,
        "title": title,
        "detail": detail,
        "method": "GET",
        "uri": uri,
    }
    return Refusal(
        status, orjson.dumps(body), "application/json; charset=utf-8", retry_after_seconds
    )


def too_many_connections(uri: str, retry_after_seconds: int) -> Refusal:
    """More open streams than one address may have."""
    return http_error(
        429,
        "too_many_requests",
        "Too Many Concurrent Connections From Your Client IP",
        "Your HTTP client is likely opening too many concurrent connections.",
        uri,
        retry_after_seconds,
    )


def failure(status: int, uri: str, retry_after_seconds: int) -> Refusal:
    """A 500 of the service or a 503 of what stands before it."""
    if status == 503:  # noqa: PLR2004
        page = b"<!DOCTYPE html>\n<title>Wikimedia Error</title>\n<p>Our servers are busy.</p>\n"
        return Refusal(status, page, "text/html; charset=utf-8", retry_after_seconds)
    return http_error(status, "internal_error", "Error", "Local: Broker transport failure", uri)


def _kafka_error(status: int, name: str, message: str, **more: object) -> Refusal:
    """An error of KafkaSSE: JSON and a line end, without a content type."""
    body = {"message": message, "origin": "KafkaSSE", "name": name, **more, "statusCode": status}
    # The reason phrase is the error's text upstream; a line end in it would split the header.
    reason = re.sub(r"[^ -~]", "?", f"{name}: {message}")[:200]
    try:
        said = orjson.dumps(body)
    except orjson.JSONEncodeError:
        # It reads what is nested deeper than it writes; then it is not repeated.
        said = orjson.dumps({**body, **dict.fromkeys(more)})
    return Refusal(status, said + b"\n", None, reason=reason)


def check_user_agent(agent: str) -> None:
    """The policy on agents: describe yourself, and leave a way to reach you.

    Raises:
        Refusal: 403, for no agent or a library's default one without contact details.
    """
    if agent.strip() and (not _LIBRARY_AGENT.match(agent.strip()) or _CONTACT.search(agent)):
        return
    raise Refusal(
        403,
        b"Please set a user-agent and respect our robot policy "
        b"https://foundation.wikimedia.org/wiki/Policy:Wikimedia_Foundation_User-Agent_Policy\n",
        "text/plain; charset=utf-8",
    )


def topics_for(path: str, streams: Collection[str], uri: str) -> list[str]:
    """The topics of the comma-separated streams in a path.

    Raises:
        Refusal: 400, one of them is not there.
    """
    requested = path.split(",")
    unknown = [name for name in requested if name.removeprefix("mediawiki.") not in streams]
    if unknown:
        raise http_error(
            400, "not_found", "Stream Not Found", f"Invalid streams: {','.join(unknown)}", uri
        )
    topics = [topic for name in requested for topic in topics_of(name.removeprefix("mediawiki."))]
    return list(dict.fromkeys(topics))


def since_ms(text: str | None, uri: str) -> int | None:
    """The `since` parameter in ms since 1970; None means the end of the log.

    A number, which is meant to be ms since 1970, becomes 0: the service hands it on as a string, which
    its Kafka client takes for that. So all there is comes.

    Raises:
        Refusal: 400, it is neither a number nor a date.
    """
    if not text:
        return None
    if _is_number(text):
        return 0
    milliseconds = _date_ms(text)
    if milliseconds is None:
        raise http_error(
            400,
            "invalid_timestamp",
            "Invalid timestamp",
            f"since timestamp is not a UTC milliseconds unix epoch and was not parseable: '{text}'",
            uri,
        )
    return milliseconds


def _is_number(text: str) -> bool:
    try:
        return abs(float(text.replace("_", "?"))) <= MAX_TIMESTAMP_MS
    except ValueError:
        return False


def _date_ms(text: str) -> int | None:
    try:
        return parse_iso_time_ms(text.strip())
    except (ValueError, OverflowError):
        return None


def asked_for(
    last_event_id: str | None,
    since: int | None,
    topics: Sequence[str],
    partitions: Mapping[str, Collection[int]],
    gone: Collection[str] = (),
) -> list[Asked]:
    """Where each topic-partition is to start.

    Args:
        last_event_id: the header as it came; None: there was none. It wins over `since`.
        since: what `since_ms` gave.
        topics: those of the requested streams.
        partitions: the partitions that each topic has.
        gone: those of the topics that there are not, or no more.

    Raises:
        Refusal: 400, the header is no array of assignments; 404, another topic is asked for, or one
            that is gone; 500, all of them are.
    """
    given: Any = list(topics) if last_event_id is None else _parsed(last_event_id)
    if isinstance(given, str):
        given = given.split(",")
    if not isinstance(given, list) or not given or not all(map(_is_assignment, given)):
        raise _kafka_error(
            400,
            "InvalidAssignmentError",
            "Must provide either an array topic names, or  an array of objects with topic, "
            "partition and offset|timestamp.",
            originalName="Error",
            assignments=given,
        )
    named = dict.fromkeys(a if isinstance(a, str) else a["topic"] for a in given)
    available = [topic for topic in topics if topic not in gone]
    if not available:
        raise _kafka_error(
            500,
            "ConfigurationError",
            "No topics available for consumption. This likely means that the configured "
            "allowedTopics do not currently exist.",
            allowedTopics=list(topics),
        )
    missing = [topic for topic in named if topic not in available]
    if missing:
        raise _kafka_error(
            404,
            "TopicNotAvailableError",
            f"Topics {', '.join(missing)} are not available for consumption.",
            availableTopics=available,
        )
    return _without_both_keys(_expanded(given, since, partitions))


def _parsed(last_event_id: str) -> Any:
    try:
        return orjson.loads(last_event_id.encode(errors="surrogateescape"))
    except orjson.JSONDecodeError as error:
        raise _kafka_error(
            400,
            "InvalidAssignmentError",
            str(error),
            originalName="SyntaxError",
            last_event_id=last_event_id.encode(errors="replace").decode(),
        ) from None


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
            offset, timestamp_ms = entry.get("offset"), entry.get("timestamp")
            asked.append(
                Asked(
                    source,
                    int(offset) if _is_integer(offset) else None,
                    int(timestamp_ms) if _is_integer(timestamp_ms) else None,
                )
            )
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
