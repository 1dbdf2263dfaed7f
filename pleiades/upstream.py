"""One HTTP connection to EventStreams: connect, be refused, read bytes."""

from __future__ import annotations

import http.client
import logging
import random
import select
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TypeAlias
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from tenacity import RetryCallState, Retrying, retry_if_exception_type

from pleiades import __version__
from pleiades.core.backoff import retry_after_seconds
from pleiades.core.chunks import ChunkDecoder, MalformedChunk
from pleiades.core.gathering import Gathering
from pleiades.core.pauses import Pauses
from pleiades.core.units import iso_time
from pleiades.refusals import about_topics, advice, cause_of, explanation, short
from pleiades.runtime.errors import RefusedByUpstream, Transient
from pleiades.runtime.logs import printable
from pleiades.runtime.settings import UpstreamSettings

log = logging.getLogger(__name__)

Buffer: TypeAlias = bytes | memoryview

CONNECT_TIMEOUT_SECONDS = 10.0
MAX_RETRY_AFTER_SECONDS = 900.0
"""The longest that a Retry-After is obeyed."""
READ_BYTES = 256 * 1024
"""Read at most at a time; less than this and one read more is given on together."""
BULK_BYTES = 8 * 1024
"""So much at once is history, of which more waits. Less is given on as it comes."""
MAX_REDIRECTS = 5


class Connection:
    """An open event stream."""

    def __init__(self, response: requests.Response, idle_seconds: float) -> None:
        self._response = response
        self._idle_seconds = idle_seconds
        date = response.headers.get("Date")
        self.server_ms: int | None = None
        """The upstream's clock at the answer, ms since 1970, if it says."""
        try:
            self.server_ms = int(parsedate_to_datetime(date).timestamp() * 1000) if date else None
        except (ValueError, OverflowError):
            log.debug("unreadable Date header: %s", printable(str(date)))

    def chunks(self) -> Iterator[bytes]:
        """Bytes as they come, decompressed, until the upstream ends the connection.

        Raises:
            Transient: silence for longer than the idle timeout (`idle`), or a cut (`cut`).
        """
        raw = self._response.raw
        # The answer as http.client holds it, and the socket's file in there, of which it has read the
        # headers. Both are where they are since many years; without them there is the other way.
        under = getattr(getattr(raw, "_original_response", None), "fp", None)
        if under is not None and raw.chunked and "Content-Encoding" not in raw.headers:
            read = partial(_read_chunks, under.read1, ChunkDecoder(), self._idle_seconds)
            yield from self._in_bulk(read)
            return
        # read1: iter_content(n) would wait until n bytes are there if the body is not chunked.
        while chunk := _read(raw.read1):
            yield chunk

    def close(self) -> None:
        """Give the connection up."""
        self._response.close()

    def _in_bulk(self, read: Callable[[], list[Buffer]]) -> Iterator[bytes]:
        """As much as waits in the kernel.

        Args:
            read: gives what one read of the socket gave, in pieces; none at the end.
        """
        poll = select.poll()
        poll.register(self._response.raw, select.POLLIN)
        gathering = Gathering()
        while pieces := read():
            trouble: Transient | None = None
            total = more = sum(map(len, pieces))
            # History: everything after this costs less per event the more events come at once, and
            # TLS gives 16 KiB at a time.
            while more and BULK_BYTES <= total < READ_BYTES and poll.poll(0):
                try:
                    next_pieces = read()
                except Transient as error:
                    trouble = error
                    break
                more = sum(map(len, next_pieces))
                total += more
                pieces += next_pieces
            yield b"".join(pieces)
            if trouble is not None:
                raise trouble
            if not more:
                return
            # Within the caller's next(): so a stop request ends it as it ends a read.
            if pause_seconds := gathering.pause_seconds(total, time.monotonic()):
                time.sleep(pause_seconds)


def _read(read1: Callable[..., bytes]) -> bytes:
    try:
        return read1(READ_BYTES, decode_content=True)
    except urllib3.exceptions.ReadTimeoutError:
        raise _silent() from None
    except urllib3.exceptions.DecodeError as error:
        raise Transient(f"the compressed stream is damaged: {error}", "decode") from None
    except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError) as error:
        raise _cut(error) from None


def _read_chunks(
    read1: Callable[[int], bytes], decoder: ChunkDecoder, idle_seconds: float
) -> list[Buffer]:
    """Past http.client, which takes chunks one by one; it has read the headers."""
    body: list[Buffer] = []
    deadline = time.monotonic() + idle_seconds
    while not body and not decoder.ended:
        if time.monotonic() > deadline:
            # Bytes come, and none of them is of the stream.
            raise _silent()
        try:
            received = read1(READ_BYTES)
            if not received:
                raise http.client.IncompleteRead(b"")
            body += decoder.feed(received)
        except TimeoutError:
            raise _silent() from None
        except (http.client.HTTPException, MalformedChunk, OSError) as error:
            raise _cut(error) from None
    return body


def _silent() -> Transient:
    return Transient("the stream was silent", "idle")


def _cut(error: Exception) -> Transient:
    return Transient(f"the connection was cut: {short(error)}", "cut")


def retrying(
    pauses: Pauses,
    announce: Callable[[Transient, float], None],
    sleep: Callable[[float], None],
) -> Retrying:
    """Tries again after each `Transient`, for ever, with the pauses that are due.

    Args:
        announce: told before each pause: why, and for how many seconds.
        sleep: waits that many seconds; may raise to end it.
    """

    def failure(state: RetryCallState) -> Transient:
        error = state.outcome.exception() if state.outcome else None
        if not isinstance(error, Transient):
            raise AssertionError("only what is transient is tried again")  # noqa: TRY004  # a bug
        return error

    def wait_seconds(state: RetryCallState) -> float:
        # Jitter spreads out instances that failed together; it guards no secret.
        jitter = random.random()  # noqa: S311
        return pauses.after_failure(
            state.attempt_number, jitter, failure(state).retry_after_seconds
        )

    return Retrying(
        retry=retry_if_exception_type(Transient),
        wait=wait_seconds,
        before_sleep=lambda state: announce(failure(state), state.upcoming_sleep),
        sleep=sleep,
    )


class _Session(requests.Session):
    """Leaves redirects to us: requests reads what one says to its end, decompressed, and even if it is
    not to follow it.
    """

    def get_redirect_target(self, resp: requests.Response) -> None:
        """None: there is nowhere to go."""


class Upstream:
    """Knows how to ask."""

    def __init__(self, settings: UpstreamSettings) -> None:
        self._settings = settings
        self._url = f"{settings.url}/{','.join(settings.streams)}"
        self.address = _without_password(self._url)
        """What is asked, fit to be shown."""
        self._session = _Session()
        self._session.headers.update(
            {
                "Accept": "text/event-stream",
                "Accept-Encoding": "gzip",
                "Cache-Control": "no-store",
                # https://foundation.wikimedia.org/wiki/Policy:Wikimedia_Foundation_User-Agent_Policy
                "User-Agent": f"Pleiades/{__version__} ({settings.contact}) "
                f"python-requests/{requests.__version__}",
            }
        )

    def connect(self, last_event_id: str | None, since_ms: int) -> Connection:
        """Open the stream from an id on, or from a time where no topic is known yet.

        Raises:
            RefusedByUpstream: the request will never be served as it is.
            Transient: anything that another try may mend.
        """
        headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
        query = {"since": iso_time(since_ms)} if last_event_id is None else {}
        try:
            response = self._answer(query, headers)
        except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
            # The latter two: what requests lets through of a redirect to nowhere.
            cause = cause_of(error)
            raise Transient(
                f"can't reach {self.address}: {short(cause)}; nothing is lost while the upstream "
                f"keeps its history. {advice(cause)}",
                "connect",
            ) from None
        try:
            self._check(response, last_event_id)
        except BaseException:
            response.close()
            raise
        return Connection(response, self._settings.idle_timeout_seconds)

    def _answer(self, query: dict[str, str], headers: dict[str, str]) -> requests.Response:
        """The answer, or that of where it sends us."""
        url = self._url
        for _ in range(MAX_REDIRECTS + 1):
            response = self._session.get(
                url,
                params=query,
                headers=headers,
                stream=True,
                # Named here, because requests prefers its environment variables to the session's value.
                verify=None if self._settings.ca is None else str(self._settings.ca),
                timeout=(CONNECT_TIMEOUT_SECONDS, self._settings.idle_timeout_seconds),
            )
            if not response.is_redirect:
                return response
            response.close()
            url = self._redirected(url, response.headers["Location"])
            if urlsplit(url).query:
                query = {}
        raise requests.TooManyRedirects(f"more than {MAX_REDIRECTS} redirects")

    def _redirected(self, url: str, location: str) -> str:
        """Where we are sent; with what we are known by only if that is the same host."""
        target = urlsplit(urljoin(url, location))
        known_by, at, _ = urlsplit(url).netloc.rpartition("@")
        if at and "@" not in target.netloc:
            elsewhere = self._session.should_strip_auth(url, target.geturl())  # type: ignore[no-untyped-call]  # untyped in the library
            if not elsewhere:
                target = target._replace(netloc=f"{known_by}@{target.netloc}")
        return target.geturl()

    def _check(self, response: requests.Response, last_event_id: str | None) -> None:
        status = response.status_code
        if status == requests.codes.ok:
            kind = response.headers.get("Content-Type", "")
            if kind.partition(";")[0].strip().lower() != "text/event-stream":
                raise Transient(
                    f"{self.address} answered with {printable(kind or 'no content type')} instead of "
                    "an event stream; a proxy or a maintenance page may be in the way",
                    "content_type",
                )
            return
        said = printable(explanation(response), 300)
        if status in (408, 425, 429) or status >= 500:  # noqa: PLR2004  # statuses of RFC 9110
            raise Transient(
                f"the upstream answered {status}: {said}",
                "throttled" if status == 429 else f"status_{status // 100}xx",  # noqa: PLR2004  # as above
                retry_after_seconds(
                    response.headers.get("Retry-After"), datetime.now(UTC), MAX_RETRY_AFTER_SECONDS
                ),
            )
        raise RefusedByUpstream(
            f"the upstream refused {self.address} with status {status}: {said}. Nothing was lost; "
            "the position is kept. Check --upstream.stream, --upstream.url and --upstream.contact"
            + about_topics(last_event_id)
        )


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
