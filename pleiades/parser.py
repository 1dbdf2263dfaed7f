"""Process 2: frames → events. It keeps no state between batches, so several can run in parallel."""

from __future__ import annotations

import logging

from pleiades.core.decoding import Decoded, decode
from pleiades.core.event import Batch, Delivered, End, Frames, PositionRequest
from pleiades.core.range import Part, within
from pleiades.core.units import plural
from pleiades.runtime.channel import POLL_SECONDS, Channel
from pleiades.runtime.child import ChildContext
from pleiades.runtime.logs import Throttle, printable
from pleiades.runtime.metrics import Metrics

log = logging.getLogger(__name__)


_error_warnings = Throttle()
_id_warnings = Throttle()


def run(
    child: ChildContext,
    metrics: Metrics,
    keep_canaries: bool,
    frames: Channel[Frames | PositionRequest | End],
    batches: Channel[Batch | End],
    delivered: Channel[Delivered],
    part: Part | None = None,
) -> None:
    """Turn each `Frames` into one batch, until the end marker; answer the reader's requests.

    Args:
        part: the range of a replay; None: everything is published.
    """
    child.ready = True
    since = Delivered({})
    while True:
        child.beat()
        received = frames.get(POLL_SECONDS)
        metrics.queue_depth.labels(frames.name).set(frames.depth())
        if received is None:
            continue
        if isinstance(received, End):
            batches.put(received, child.beat)
            return
        if isinstance(received, PositionRequest):
            delivered.put(since, child.beat)
            since = Delivered({})
            continue
        decoded = decode(received, keep_canaries, part is not None and part.more_topics)
        since = since.and_then(decoded.batch, decoded.retry_ms)
        batches.put(_batch(decoded, metrics, part), child.beat)
        metrics.queue_depth.labels(batches.name).set(batches.untaken())


def _batch(decoded: Decoded, metrics: Metrics, part: Part | None) -> Batch:
    batch = decoded.batch
    metrics.recv_events.inc(len(batch.events))
    if part is not None and batch.source is not None:
        batch, outside = within(batch, part.range, batch.source)
        metrics.outside_range_dropped.inc(outside)
    for kind, lines in decoded.lines.items():
        metrics.recv_lines.labels(kind).inc(lines)
    if decoded.canaries:
        metrics.canaries_dropped.inc(decoded.canaries)
    if decoded.replaced_identities:
        metrics.identities_replaced.inc(decoded.replaced_identities)
    if decoded.malformed_ids:
        metrics.recv_errors.labels("id").inc(decoded.malformed_ids)
        if _id_warnings.due():
            log.warning(
                "%d events had no readable SSE id: they are published, but do not move the position",
                decoded.malformed_ids,
            )
    errors = decoded.upstream_errors
    if errors:
        metrics.recv_errors.labels("upstream").inc(len(errors))
        if _error_warnings.due():
            log.warning(
                "the upstream reports %s in the stream: its Kafka may be away. No event is lost while "
                "it keeps its history: the relay goes on by itself. The first: %s",
                plural(len(errors), "error"),
                printable(errors[0]),
            )
    return batch
