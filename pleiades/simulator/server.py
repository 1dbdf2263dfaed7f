"""The EventStreams protocol over HTTP.

Law: everything here runs in one event loop. A reader that is slow only slows itself down: a batch is
composed when the one before it has left, so a connection holds one batch at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import orjson

from pleiades.runtime.errors import UsageError

try:
    from aiohttp import web
except ModuleNotFoundError as missing:
    raise UsageError(
        "the local upstream needs aiohttp, which is not installed; "
        "install it with: pip install 'pleiades[simulate]'"
    ) from missing

from pleiades.simulator.body import Body, CutShort
from pleiades.simulator.faults import Plan, plan
from pleiades.simulator.feed import Feed
from pleiades.simulator.request import (
    Refusal,
    asked_for,
    check_user_agent,
    failure,
    since_ms,
    too_many_connections,
    topics_for,
)
from pleiades.simulator.settings import Cut, Faults
from pleiades.simulator.upstream import LocalUpstream

log = logging.getLogger(__name__)

TICK_SECONDS = 0.005
"""The least time between two rounds of appending; at 1,000 events/s five events a round."""
MAX_HEADER_BYTES = 16 * 1024
"""As much as Node takes: a `Last-Event-ID` of many topics is long."""
STREAM_PATH = "/v2/stream"


@dataclass(slots=True)
class Stats:
    """What has happened so far."""

    requests_total: int = 0
    """Requests for a stream, refused ones included."""
    connections_total: int = 0
    """Streams that were opened."""
    connections_open: int = 0
    refused_total: int = 0
    """Requests answered otherwise, whatever the status."""
    cuts_total: int = 0
    """Streams that were cut, `error` events included."""
    events_appended_total: int = 0
    events_served_total: int = 0
    """Whole events given to the network; a cut may have lost some of them."""
    bytes_served_total: int = 0
    """Of bodies, as written (compressed)."""


class Server:
    """Serves a `LocalUpstream`.

    Args:
        upstream: what it serves.
        monotonic: seconds since the upstream's start.
        changed: called after every change of `stats`; must be cheap.
        stats: counters to go on with; None: from 0.
    """

    def __init__(
        self,
        upstream: LocalUpstream,
        monotonic: Callable[[], float],
        changed: Callable[[], None] = lambda: None,
        stats: Stats | None = None,
    ) -> None:
        self.stats = Stats() if stats is None else stats
        self.faults: Faults = upstream.settings.faults
        self._upstream = upstream
        self._now = monotonic
        self._changed = changed
        self._grown = asyncio.Event()
        self._open: set[Body] = set()
        self._planned = 0
        self._runner: web.AppRunner | None = None
        self._appending: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port.

        Raises:
            OSError: the address can't be used.
        """
        application = web.Application()
        application.router.add_get(STREAM_PATH + "/{streams}", self._serve, allow_head=False)
        application.router.add_get("/simulator/journal", self._serve_journal)
        application.router.add_get("/simulator/stats", self._serve_stats)
        application.on_response_prepare.append(_without_content_type)
        # Without handler_cancellation an idle stream would not notice that its client has left.
        runner = web.AppRunner(
            application,
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=0.0,
            max_field_size=MAX_HEADER_BYTES,
            max_line_size=MAX_HEADER_BYTES,
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port, ssl_context=self._upstream.settings.tls).start()
        except OSError:
            await runner.cleanup()
            raise
        self._runner = runner
        if self._upstream.settings.rate > 0:
            self._appending = asyncio.create_task(self._append_when_due())
        self.stats.events_appended_total = self._upstream.log.appended_total
        address = runner.addresses[0]
        return int(address[1])

    async def stop(self) -> None:
        """Close all connections as they are, without a final chunk."""
        if self._appending is not None:
            self._appending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._appending
            self._appending = None
        for body in list(self._open):
            body.abandon(Cut.CLOSE)
        if self._runner is not None:
            serving = self._runner.server
            for handler in [] if serving is None else serving.connections:
                # Closed, TLS would go on waiting for each client's goodbye, and the loop ends before.
                if handler.transport is not None:
                    handler.transport.abort()
            await self._runner.cleanup()
            self._runner = None

    def cut_all(self, cut: Cut) -> int:
        """Cut every open stream now; returns how many."""
        bodies = list(self._open)
        for body in bodies:
            body.abandon(cut)
        self.stats.cuts_total += len(bodies)
        self._changed()
        return len(bodies)

    def grown(self) -> None:
        """Tell the connections that there is more in the log."""
        self.stats.events_appended_total = self._upstream.log.appended_total
        self._grown.set()
        self._grown = asyncio.Event()
        self._changed()

    async def _append_when_due(self) -> None:
        while (due := self._upstream.due_seconds) is not None:
            await asyncio.sleep(max(due - self._now(), TICK_SECONDS))
            if self._upstream.append_due(self._now()):
                self.grown()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.stats.requests_total += 1
        self._changed()
        try:
            return await self._stream(request)
        except Refusal as refusal:
            self.stats.refused_total += 1
            self._changed()
            return _answer(refusal)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        faults, uri = self.faults, request.path_qs
        if faults.check_user_agent:
            check_user_agent(request.headers.get("User-Agent", ""))
        if 0 < faults.max_connections <= len(self._open):
            raise too_many_connections(uri, faults.retry_after_seconds)
        topics = topics_for(request.match_info["streams"], self._upstream.streams, uri)
        since = since_ms(request.query.get("since"), uri)
        asked = asked_for(
            request.headers.get("Last-Event-ID"),
            since,
            topics,
            self._upstream.partitions,
            faults.missing_topics,
        )
        self._planned += 1
        planned = plan(faults, self._upstream.settings.seed, self._planned)
        if planned.refuse_status is not None:
            raise failure(planned.refuse_status, uri, faults.retry_after_seconds)
        if planned.hang:
            await asyncio.Event().wait()
        compress = faults.gzip and "gzip" in request.headers.get("Accept-Encoding", "")
        body = Body(request, planned, faults, compress=compress)
        cluster = self._upstream.cluster(planned.data_centre, faults.mirror_lag_seconds)
        feed = Feed(cluster, asked, planned.rng, self._now(), faults.deaf_seconds)
        self._open.add(body)
        self.stats.connections_total += 1
        self.stats.connections_open += 1
        self._changed()
        try:
            await body.start()
            # Only an exception ends this: a cut, the client's leaving, the server's stop.
            await self._pump(feed, body, planned, faults)
        except CutShort:
            if not body.abandoned:
                self.stats.cuts_total += 1
        except ConnectionError:
            # The client left; aiohttp takes note of it when it ends the answer.
            pass
        finally:
            self._open.discard(body)
            self.stats.connections_open -= 1
            self._changed()
        return body.response

    async def _pump(self, feed: Feed, body: Body, planned: Plan, faults: Faults) -> None:
        stats, rng = self.stats, planned.rng
        if planned.silent:
            await body.wait(asyncio.Event(), None)
        while True:
            grown = self._grown
            batch, events = feed.next_batch(self._now())
            if not events:
                await body.wait(grown, feed.wait_seconds(self._now()))
                continue
            if faults.stall_rate > 0 and rng.random() < faults.stall_rate:
                await body.wait(asyncio.Event(), faults.stall_seconds)
            if faults.error_event_rate > 0 and rng.random() < faults.error_event_rate:
                await body.write(batch)
                await body.write(_error_event(feed))
                body.end(Cut.CLEAN)
            before = body.bytes_total
            try:
                await body.write(batch)
                stats.events_served_total += events
            finally:
                stats.bytes_served_total += body.bytes_total - before
                self._changed()

    async def _serve_journal(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        for chunk in self._upstream.journal.chunks():
            await response.write(chunk)
        return response

    async def _serve_stats(self, _: web.Request) -> web.Response:
        return web.Response(body=orjson.dumps(asdict(self.stats)), content_type="application/json")


def _error_event(feed: Feed) -> bytes:
    error = {
        "message": "Local: Broker transport failure",
        "origin": "kafka",
        "name": "Error",
        "code": -195,
    }
    return b"event: error\n" + feed.id_line() + b"\ndata: " + orjson.dumps(error) + b"\n\n"


class _Untyped(web.Response):
    """An answer without a content type."""


def _answer(refusal: Refusal) -> web.Response:
    headers: dict[str, Any] = {}
    if refusal.retry_after_seconds is not None:
        headers["Retry-After"] = str(refusal.retry_after_seconds)
    if refusal.content_type is not None:
        headers["Content-Type"] = refusal.content_type
    answer = _Untyped if refusal.content_type is None else web.Response
    return answer(status=refusal.status, reason=refusal.reason, body=refusal.body, headers=headers)


async def _without_content_type(_: web.Request, response: web.StreamResponse) -> None:
    # aiohttp adds a content type of its own before it calls this.
    if isinstance(response, _Untyped):
        response.headers.popall("Content-Type", None)


def monotonic_since(start: float) -> Callable[[], float]:
    """A clock that counts seconds from a value of `time.monotonic`."""
    return lambda: time.monotonic() - start
