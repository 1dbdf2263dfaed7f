"""One HTTP connection to EventStreams: connect, be refused, read bytes."""

from __future__ import annotations

import http.client
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urljoin, urlsplit

import requests
import requests.utils
import urllib3

from pleiades import __version__
from pleiades.config.settings import REDIRECTS_ANY, UpstreamSettings
from pleiades.core.backoff import retry_after_seconds
from pleiades.core.units import iso_time
from pleiades.runtime.errors import RefusedByUpstream, Transient
from pleiades.runtime.logs import printable
from pleiades.upstream.body import Body, refuse_codings
from pleiades.upstream.refusals import (
    TopicsNotAvailable,
    about_length,
    about_topics,
    advice,
    cause_of,
    explanation,
    not_available,
    short,
)
from pleiades.upstream.transport import Answer, Deadline, Session

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_SECONDS = 10.0
MAX_RETRY_AFTER_SECONDS = 900.0
"""The longest that a Retry-After is obeyed."""
MAX_REDIRECTS = 5


class Connection:
    """An open event stream."""

    def __init__(self, response: requests.Response, body: Body) -> None:
        self._response = response
        self._body = body
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
            Transient: see `Body.pieces`.
        """
        return self._body.pieces()

    def unread_bytes(self) -> int:
        """Bytes of this connection that wait to be read on this machine."""
        return self._body.unread_bytes()

    def close(self) -> None:
        """Give the connection up."""
        self._response.close()


class Upstream:
    """Knows how to ask."""

    def __init__(self, settings: UpstreamSettings) -> None:
        self._settings = settings
        self._url = f"{settings.url}/{','.join(settings.streams)}"
        self.address = _without_password(self._url)
        """What is asked, fit to be shown."""
        self._session = Session()
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
            TopicsNotAvailable: the upstream does not have some of the topics in the id.
            RefusedByUpstream: the request will never be served as it is.
            Transient: anything that another try may mend.
        """
        headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
        query = {"since": iso_time(since_ms)} if last_event_id is None else {}
        response = self._answer(query, headers)
        try:
            return self._opened(response, last_event_id)
        except BaseException:
            response.close()
            raise

    def _answer(self, query: dict[str, str], headers: dict[str, str]) -> requests.Response:
        """The answer, or that of where it sends us.

        Raises:
            Transient: there is none.
        """
        seconds = CONNECT_TIMEOUT_SECONDS + self._settings.idle_timeout_seconds
        with Deadline(seconds) as deadline:
            try:
                response = self._followed(query, headers)
                if deadline.expired:
                    # To http.client, headers that break off have ended.
                    response.close()
                    raise TimeoutError
            except (
                OSError,
                urllib3.exceptions.HTTPError,
                http.client.HTTPException,
                ValueError,
            ) as error:
                # Those of requests are OSErrors. The others it lets through, of a redirect to nowhere.
                cause = cause_of(error)
                said = f"no answer within {seconds:.0f} s" if deadline.expired else short(cause)
                raise Transient(
                    f"can't reach {self.address}: {said}; nothing is lost while the upstream keeps its "
                    f"history. {advice(cause, self._proxy())}",
                    "connect",
                ) from None
        return response

    def _followed(self, query: dict[str, str], headers: dict[str, str]) -> requests.Response:
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

    def _proxy(self) -> str | None:
        """The proxy between us and the upstream, fit to be shown."""
        proxies = requests.utils.get_environ_proxies(self._url)
        proxy = requests.utils.select_proxy(self._url, proxies)
        return None if proxy is None else printable(_without_password(proxy))

    def _redirected(self, url: str, location: str) -> str:
        """Where we are sent; with what we are known by only if that is the same host."""
        target = urlsplit(urljoin(url, location))
        source = urlsplit(url)
        leaves = target.hostname != source.hostname or (source.scheme, target.scheme) == (
            "https",
            "http",
        )
        if leaves and self._settings.redirects != REDIRECTS_ANY:
            raise Transient(
                f"{self.address} redirects to {printable(_without_password(target.geturl()))}, which is "
                "another host, or not protected by TLS: not followed, and nothing is lost. Check "
                "--upstream.url, or allow it with --upstream.redirects=any",
                "redirect",
            )
        known_by, at, _ = urlsplit(url).netloc.rpartition("@")
        if at and "@" not in target.netloc:
            elsewhere = self._session.should_strip_auth(url, target.geturl())  # type: ignore[no-untyped-call]  # untyped in the library
            if not elsewhere:
                target = target._replace(netloc=f"{known_by}@{target.netloc}")
        return target.geturl()

    def _opened(self, response: requests.Response, last_event_id: str | None) -> Connection:
        """The stream, if the answer is one."""
        status = response.status_code
        if status == requests.codes.ok:
            kind = response.headers.get("Content-Type", "")
            if kind.partition(";")[0].strip().lower() != "text/event-stream":
                raise Transient(
                    f"{self.address} answered with {printable(kind or 'no content type')} instead of "
                    "an event stream; a proxy or a maintenance page may be in the way",
                    "content_type",
                )
            answer = response.raw._original_response  # noqa: SLF001  # urllib3 has no public name for it
            if not isinstance(answer, Answer):
                raise AssertionError("every pool of the session makes such answers")  # a bug
            refuse_codings(answer, self.address)
            return Connection(response, Body(answer, self._settings.idle_timeout_seconds))
        words, body = explanation(response)
        said = printable(words, 300)
        if status == requests.codes.proxy_authentication_required:
            raise Transient(
                f"the proxy {self._proxy()} refused the connection to {self.address} with status 407: "
                f"{said}. Nothing is lost while the upstream keeps its history. Check the user and "
                "password in HTTPS_PROXY or HTTP_PROXY",
                "proxy",
            )
        if status in (408, 425, 429) or status >= 500:  # noqa: PLR2004  # statuses of RFC 9110
            raise Transient(
                f"the upstream answered {status}: {said}",
                "throttled" if status == 429 else f"status_{status // 100}xx",  # noqa: PLR2004  # as above
                retry_after_seconds(
                    response.headers.get("Retry-After"), datetime.now(UTC), MAX_RETRY_AFTER_SECONDS
                ),
            )
        refusal = (
            f"the upstream refused {self.address} with status {status}: {said}. Nothing was lost; "
            "the position is kept. Check --upstream.stream, --upstream.url and --upstream.contact"
            + about_length(status, last_event_id)
            + about_topics(last_event_id)
        )
        if status == requests.codes.not_found and last_event_id is not None:
            gone = not_available(body, last_event_id)
            if gone:
                raise TopicsNotAvailable(refusal, gone)
        raise RefusedByUpstream(refusal)


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
