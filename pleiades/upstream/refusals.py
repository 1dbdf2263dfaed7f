"""What an upstream that refuses or can't be reached tells an operator, and what to look at then."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading

import orjson
import requests
import urllib3

from pleiades.runtime.logs import printable

ERROR_BODY_SECONDS = 2.0
"""So long the explanation of a refusal is waited for, and no longer, however it trickles in."""
MAX_ERROR_BODY_BYTES = 4096
MAX_SHOWN_ID = 1000


def explanation(response: requests.Response) -> str:
    """What the upstream says of a refusal, as far as it says it soon."""
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
    return _explained(bytes(body))


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
