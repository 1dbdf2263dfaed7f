"""One request to EventStreams: a stream, or the error that the answer means."""

from __future__ import annotations

import http.client
import time
from contextlib import closing, suppress
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from pleiades import __version__
from pleiades.config.settings import REDIRECTS_ANY, UpstreamSettings
from pleiades.core.units import iso_time
from pleiades.runtime.errors import Transient, UsageError
from pleiades.runtime.logs import printable
from pleiades.upstream.body import GZIP_CODINGS, Connection, header
from pleiades.upstream.environment import Proxy, authorities, proxy_of, unusable
from pleiades.upstream.refusals import refusal, unreachable
from pleiades.upstream.transport import StreamSession

CONNECT_TIMEOUT_SECONDS = 10.0
ERROR_BODY_SECONDS = 2.0
"""The longest wait for more of a refusal's explanation, and for all of it."""
MAX_ERROR_BODY_BYTES = 64 << 10
"""Enough for a refusal that names all topics of a stream."""
MAX_REDIRECTS = 5
IDENTITY_CODINGS = ("", "identity")


class Upstream:
    """Knows how to ask."""

    def __init__(self, settings: UpstreamSettings) -> None:
        self._settings = settings
        self._url = f"{settings.url}/{','.join(settings.streams)}"
        self.address = _without_password(self._url)
        """The address of requests, without credentials."""
        self._session = StreamSession(authorities(settings.ca))
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
        response, proxy = self._get(query, headers)
        try:
            if response.status_code != requests.codes.ok:
                body = _error_body(response)
                raise refusal(self.address, proxy, response, body, last_event_id)
            self._check_type(response)
            return Connection(response, self._settings.idle_timeout_seconds)
        except BaseException:
            response.close()
            raise

    def _get(
        self, query: dict[str, str], headers: dict[str, str]
    ) -> tuple[requests.Response, Proxy | None]:
        """The answer, or that of where redirects lead; and the proxy that it came through."""
        url = self._url
        for _ in range(MAX_REDIRECTS + 1):
            response, proxy = self._ask(url, query, headers)
            if not response.is_redirect:
                return response, proxy
            response.close()
            url = self._redirected(url, response.headers["Location"])
            if urlsplit(url).query:
                query = {}
        raise Transient(
            f"{self.address} answers with more than {MAX_REDIRECTS} redirects in a row; nothing is lost "
            "while the upstream keeps its history. Check --upstream.url",
            "connect",
        )

    def _ask(
        self, url: str, query: dict[str, str], headers: dict[str, str]
    ) -> tuple[requests.Response, Proxy | None]:
        proxy = None
        try:
            proxy = proxy_of(url)
            response = self._session.open(
                url,
                proxy,
                params=query,
                headers=headers,
                timeout=(CONNECT_TIMEOUT_SECONDS, self._settings.idle_timeout_seconds),
            )
        # Those of requests are OSErrors. The others it lets through, of a redirect to nowhere.
        except (
            OSError,
            UsageError,
            urllib3.exceptions.HTTPError,
            http.client.HTTPException,
            ValueError,
        ) as error:
            # Files that were there at the start may be gone.
            for wrong in unusable(url, self._settings.ca):
                raise Transient(
                    f"can't ask {self.address}: {wrong}. Nothing is lost while the upstream keeps its "
                    "history",
                    "environment",
                ) from None
            raise unreachable(self.address, proxy, error) from None
        return response, proxy

    def _redirected(self, url: str, location: str) -> str:
        """The target of a redirect; with the credentials of this URL only if it is the same host."""
        source = urlsplit(url)
        try:
            target = urlsplit(urljoin(url, location))
        except ValueError as error:
            raise unreachable(self.address, None, error) from None
        # Credentials are the settings' alone.
        target = target._replace(netloc=target.netloc.rpartition("@")[2])
        is_unprotected = (source.scheme, target.scheme) == ("https", "http")
        if (target.hostname != source.hostname or is_unprotected) and (
            self._settings.redirects != REDIRECTS_ANY
        ):
            raise Transient(
                f"{self.address} redirects to {printable(target.geturl())}, which is "
                "another host, or not protected by TLS: not followed, and nothing is lost. Check "
                "--upstream.url, or allow it with --upstream.redirects=any",
                "redirect",
            )
        credentials, at, _ = source.netloc.rpartition("@")
        if at:
            elsewhere = self._session.should_strip_auth(url, target.geturl())  # type: ignore[no-untyped-call]  # untyped in the library
            if not elsewhere:
                target = target._replace(netloc=f"{credentials}@{target.netloc}")
        return target.geturl()

    def _check_type(self, response: requests.Response) -> None:
        """Refuse an answer that is no event stream, or that can't be read.

        Raises:
            Transient: it is another document, or compressed or framed in a way that was not asked for.
        """
        kind = response.headers.get("Content-Type", "")
        if kind.partition(";")[0].strip().lower() != "text/event-stream":
            raise Transient(
                f"{self.address} answered with {printable(kind or 'no content type')} instead of an "
                "event stream; a proxy or a maintenance page may be in the way",
                "content_type",
            )
        for name, codings in (
            ("Content-Encoding", (*IDENTITY_CODINGS, *GZIP_CODINGS)),
            ("Transfer-Encoding", (*IDENTITY_CODINGS, "chunked")),
        ):
            coding = header(response, name)
            if coding not in codings:
                raise Transient(
                    f"{self.address} answered with {name} {printable(coding, 40)}, which was not asked "
                    "for and can't be read; a proxy may be in the way. Nothing is lost while the "
                    "upstream keeps its history",
                    "encoding",
                )


def _error_body(response: requests.Response) -> bytes:
    """The explanation of a refusal, as far as it comes soon."""
    body = bytearray()
    deadline = time.monotonic() + ERROR_BODY_SECONDS
    with suppress(Transient), closing(Connection(response, ERROR_BODY_SECONDS)) as connection:
        for piece in connection.chunks():
            body += piece
            if len(body) >= MAX_ERROR_BODY_BYTES or time.monotonic() > deadline:
                break
    return bytes(body[:MAX_ERROR_BODY_BYTES])


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
