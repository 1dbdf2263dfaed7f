"""Errors for answers that are no event stream, and what an operator can do about them."""

from __future__ import annotations

import re
import ssl
from collections.abc import Collection
from datetime import UTC, datetime

import orjson
import requests
import urllib3

from pleiades.core.backoff import retry_after_seconds
from pleiades.core.sse_id import MalformedId, parse_id
from pleiades.runtime.errors import RefusedByUpstream, Transient
from pleiades.runtime.logs import printable
from pleiades.upstream.environment import Proxy

MAX_RETRY_AFTER_SECONDS = 900.0
"""The longest that a Retry-After is obeyed."""
MAX_SHOWN_CHARACTERS = 300
"""The longest explanation that is quoted."""
MAX_SHOWN_ID = 1000
MAX_SHOWN_TOPICS = 5
USUAL_HEADER_BYTES = 7 << 10
"""Every server takes so much: the lowest limits are 8 KiB, for name, value and line end."""
TOO_LONG = (413, 414, 431)
"""Statuses of a server that takes no request of this length. nginx and HAProxy answer 400."""


# How urllib3 begins its errors: a connection object, whose address is shown anyway.
_CONNECTION = re.compile(r"^\w+\(host=[^)]*\): ")


class TopicsNotAvailable(RefusedByUpstream):
    """The upstream does not have some of the topics that it was asked for.

    Attributes:
        topics: those.
        brief: what happened, in a few words.
    """

    def __init__(self, message: str, topics: frozenset[str]) -> None:
        super().__init__(message)
        self.topics = topics
        self.brief = f"the upstream does not have {named(topics)}"


def named(topics: Collection[str]) -> str:
    """Some topics, fit to be shown: a few of them and how many more."""
    shown = ", ".join(sorted(topics)[:MAX_SHOWN_TOPICS])
    more = len(topics) - MAX_SHOWN_TOPICS
    return f"{shown} and {more} more" if more > 0 else shown


def refusal(
    address: str,
    proxy: Proxy | None,
    response: requests.Response,
    body: bytes,
    last_event_id: str | None,
) -> Transient | RefusedByUpstream:
    """The error for an answer with a status other than 200.

    Args:
        address: of the upstream, fit to be shown.
        proxy: that the answer came through.
        body: as much as was read of the explanation.
    """
    status = response.status_code
    said = printable(_explanation(body), MAX_SHOWN_CHARACTERS).rstrip(".")
    if status == requests.codes.proxy_authentication_required:
        # A server that is no proxy may answer so, too.
        shown, variable = (
            ("", "") if proxy is None else (f" {proxy.address}", f" in {proxy.variable}")
        )
        return Transient(
            f"the proxy{shown} refused the connection to {address} with status 407: {said}. Nothing is "
            f"lost while the upstream keeps its history. Check the user and password{variable}",
            "proxy",
        )
    if status in (408, 425, 429) or status >= 500:  # noqa: PLR2004  # statuses of RFC 9110
        advice = (
            "The service allows few connections for each address: look for others of yours"
            if status == requests.codes.too_many_requests
            else "The service's Kafka may be away: the relay goes on by itself"
        )
        return Transient(
            f"the upstream answered {status}: {said}. Nothing is lost while the upstream keeps its "
            f"history. {advice}",
            "throttled" if status == 429 else f"status_{status // 100}xx",  # noqa: PLR2004  # as above
            retry_after_seconds(
                response.headers.get("Retry-After"), datetime.now(UTC), MAX_RETRY_AFTER_SECONDS
            ),
        )
    message = (
        f"the upstream refused {address} with status {status}: {said}. Nothing was lost; the position "
        "is kept. Check --upstream.stream, --upstream.url and --upstream.contact"
    )
    if last_event_id is None:
        return RefusedByUpstream(message)
    missing = _not_available(body, last_event_id) if status == requests.codes.not_found else None
    if missing:
        return TopicsNotAvailable(
            f"the upstream does not have {named(missing)} (status {status}): {said}. Nothing was lost; "
            "the position is kept. If the stream has moved to other topics, start once with "
            "--resume=false --since=TIME, a little before the last event that was published. Otherwise "
            "start the relay again once the upstream has them, within the time that it keeps events (at "
            "least 7 days); ask Wikimedia if it takes days",
            missing,
        )
    size = len(last_event_id)
    if status in TOO_LONG or (status == requests.codes.bad_request and size > USUAL_HEADER_BYTES):
        message += (
            f". The request names its topics in {size} bytes, which may be more than this server or a "
            "proxy before it takes: read fewer streams with one instance, or let the proxy take longer "
            "headers"
        )
    message += (
        f". It was asked for events after {printable(last_event_id, MAX_SHOWN_ID)}: if one of these "
        "topics is not, or no longer, part of the stream, start once with --resume=false --since=TIME, "
        "a little before the last event that was published"
    )
    return RefusedByUpstream(message)


def _not_available(body: bytes, last_event_id: str) -> frozenset[str]:
    """Topics in an id that the upstream does not have, by the body of a 404.

    KafkaSSE names them in its message, and those that it has in `availableTopics`. The latter is
    believed first, because it is no sentence.
    Source: https://github.com/wikimedia/KafkaSSE (lib/KafkaSSE.js, `_checkTopicsAvailable`).
    """
    try:
        answer = orjson.loads(body)
        if answer.get("name") != "TopicNotAvailableError":
            return frozenset()
        available, message = answer.get("availableTopics"), str(answer.get("message"))
        asked = frozenset(topic for (topic, _), _ in parse_id(last_event_id.encode()))
    # RecursionError: what orjson reads can be nested deeper than Python shows.
    except (orjson.JSONDecodeError, AttributeError, RecursionError, MalformedId):
        return frozenset()
    if isinstance(available, list) and all(isinstance(topic, str) for topic in available):
        return asked.difference(available)
    return asked.intersection(re.split(r"[\s,]+", message))


def _explanation(body: bytes) -> str:
    try:
        answer = orjson.loads(body)
        said = [answer.get(key) for key in ("type", "name", "detail", "message")]
        text = ", ".join(str(part) for part in said if part)
    # RecursionError: as above.
    except (orjson.JSONDecodeError, AttributeError, RecursionError):
        text = body.decode(errors="replace")
    return text or "(it gave no explanation)"


def unreachable(address: str, proxy: Proxy | None, error: Exception) -> Transient:
    """The error for a request that got no answer."""
    # The cause behind the wrappers of requests and urllib3.
    inner = error.args[0] if error.args else None
    reason = getattr(inner, "reason", inner)
    cause = reason if isinstance(reason, BaseException) else error
    if isinstance(cause, urllib3.exceptions.NameResolutionError):
        advice = "This host is not known: check its spelling in --upstream.url, and the DNS"
    elif isinstance(cause, (urllib3.exceptions.SSLError, ssl.SSLError)):
        advice = (
            "TLS handshake failed: check --upstream.url and this machine's clock. If the upstream or a "
            "proxy has a certificate of a private authority, name that authority with --upstream.ca"
        )
    elif proxy and (proxy.is_socks or isinstance(cause, urllib3.exceptions.ProxyError)):
        advice = f"Check the proxy {proxy.address}, which the variable {proxy.variable} names"
    elif isinstance(cause, urllib3.exceptions.ReadTimeoutError):
        advice = (
            "It took the request and did not answer, as when the service's Kafka is away: the relay "
            "goes on by itself. Check --upstream.url if no request is ever answered"
        )
    else:
        advice = "Check the network and --upstream.url if this goes on"
    return Transient(
        f"can't reach {address}: {short(cause)}; nothing is lost while the upstream keeps its history. "
        f"{advice}",
        "connect",
    )


def short(error: BaseException) -> str:
    """An error in a few words, fit to be shown."""
    if isinstance(error, ValueError) and not isinstance(error, ssl.SSLError):
        # It quotes what it can't read, which may be a password.
        return (
            f"{type(error).__name__}: an address can't be read, that of a redirect or that in "
            "--upstream.url"
        )
    text, is_urllib3s = _CONNECTION.subn("", str(error))
    return printable(text if is_urllib3s else f"{type(error).__name__}: {text}", 160)
