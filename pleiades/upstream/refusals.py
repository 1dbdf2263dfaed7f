"""What an upstream that refuses or can't be reached tells an operator, and what to look at then."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
import threading
from collections.abc import Collection

import orjson
import requests
import urllib3

from pleiades.core.wire import MalformedId, parse_id
from pleiades.runtime.errors import RefusedByUpstream
from pleiades.runtime.logs import printable

ERROR_BODY_SECONDS = 2.0
"""So long the explanation of a refusal is waited for, and no longer, however it trickles in."""
MAX_ERROR_BODY_BYTES = 64 << 10
"""Enough for a refusal that names all topics of a stream."""
MAX_SHOWN_ID = 1000
MAX_SHOWN_TOPICS = 5
USUAL_HEADER_BYTES = 7 << 10
"""What every server takes: the least limits are 8 KiB, for name, value and line end."""


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


def not_available(body: bytes, last_event_id: str) -> frozenset[str]:
    """Which of the topics in an id the upstream does not have, by what a 404 says.

    KafkaSSE names them in its message, and those that it has in `availableTopics`. The latter is
    believed first: it is no sentence.
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


def explanation(response: requests.Response) -> tuple[str, bytes]:
    """What the upstream says of a refusal, as far as it says it soon; in words, and as it came."""
    body = bytearray()

    done = threading.Event()

    def gather() -> None:
        # Also what http.client raises, now or when the connection is closed under it.
        with contextlib.suppress(Exception):
            while len(body) < MAX_ERROR_BODY_BYTES:
                piece = response.raw.read1(MAX_ERROR_BODY_BYTES - len(body), decode_content=True)
                if not piece:
                    break
                body.extend(piece)
        done.set()

    threading.Thread(target=gather, name="error-body", daemon=True).start()
    try:
        # Not join(): a thread whose join a stop request has interrupted counts as ended.
        done.wait(ERROR_BODY_SECONDS)
    finally:
        if not done.is_set():
            _end_reading(response)
            done.wait()
    return _explained(bytes(body)), bytes(body)


def _end_reading(response: requests.Response) -> None:
    """Whatever another thread waits for: to close what somebody reads would wait for it, too."""
    # The latter two: it has come to its end just now.
    with (
        contextlib.suppress(OSError, AttributeError, ValueError),
        socket.socket(fileno=os.dup(response.raw.fileno())) as own,
    ):
        own.shutdown(socket.SHUT_RDWR)


def _explained(body: bytes) -> str:
    try:
        answer = orjson.loads(body)
        said = [answer.get(key) for key in ("type", "name", "detail", "message")]
        text = ", ".join(str(part) for part in said if part)
    # RecursionError: what orjson reads can be nested deeper than Python shows.
    except (orjson.JSONDecodeError, AttributeError, RecursionError):
        text = body.decode(errors="replace")
    return text or "(it gave no explanation)"


TOO_LONG = (413, 414, 431)
"""Statuses of a server that takes no request of this length. nginx and HAProxy answer 400."""


def about_length(status: int, last_event_id: str | None) -> str:
    """Whether a request may have been too long for the server."""
    size = len(last_event_id or "")
    if status not in TOO_LONG and not (status == 400 and size > USUAL_HEADER_BYTES):  # noqa: PLR2004  # a status of RFC 9110
        return ""
    return (
        f". The request names its topics in {size} bytes, which may be more than this server or a proxy "
        "before it takes: read fewer streams with one instance, or let the proxy take longer headers"
    )


def about_topics(last_event_id: str | None) -> str:
    """What else can be wrong with a request for what comes after an id."""
    if last_event_id is None:
        return ""
    return (
        f". It was asked for what comes after {printable(last_event_id, MAX_SHOWN_ID)}: if one of these "
        "topics is not, or no longer, of the stream, start once with --resume=false --since=TIME, a "
        "little before the last event that was published"
    )


def cause_of(error: BaseException) -> BaseException:
    """What lies behind the wrappers of requests and urllib3."""
    inner = error.args[0] if error.args else None
    reason = getattr(inner, "reason", inner)
    return reason if isinstance(reason, BaseException) else error


def advice(cause: BaseException, proxy: str | None) -> str:
    """What an operator should look at; `proxy`: the one that was used."""
    if isinstance(cause, urllib3.exceptions.NameResolutionError):
        return "This host is not known: check its spelling in --upstream.url, and the DNS"
    if isinstance(cause, (urllib3.exceptions.SSLError, ssl.SSLError)):
        return (
            "TLS handshake failed: check --upstream.url and this machine's clock. If the upstream or a "
            "proxy has a certificate of a private authority, name that authority with --upstream.ca"
        )
    if isinstance(cause, urllib3.exceptions.ProxyError):
        return f"Check the proxy {proxy}, which HTTPS_PROXY or HTTP_PROXY names"
    return "Check the network and --upstream.url if this goes on"


def short(error: BaseException) -> str:
    """An error in a few words, fit to be shown."""
    if isinstance(error, ValueError) and not isinstance(error, ssl.SSLError):
        # It quotes what it can't read, which may be a password.
        return (
            f"{type(error).__name__}: an address can't be read, that of a redirect or a proxy's in "
            "HTTPS_PROXY or HTTP_PROXY"
        )
    return printable(f"{type(error).__name__}: {error}", 160)
