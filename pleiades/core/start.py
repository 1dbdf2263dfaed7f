"""Decides where a start of the relay begins: at a known checkpoint, or anew.

Laws:
- A stored checkpoint counts, unless a new start is asked for. `--since` outranks it only where that
  skips nothing: the stored start has received nothing yet, and lies later.
- Where nothing is stored, the last checkpoint that this program committed counts. `--since` outranks it.
- A new start into a destination that has a checkpoint keeps what that knows of published events.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from pleiades.core.checkpoint import Checkpoint, ReplayProgress
from pleiades.core.position import in_words
from pleiades.core.sse_id import TopicPartition
from pleiades.core.units import iso_time


class Start(NamedTuple):
    """The checkpoint to start from."""

    checkpoint: Checkpoint
    resumed: bool
    """False: it is a new start."""
    message: str
    """One sentence for the log."""
    position_lost: bool = False
    """The destination had a position, and has none any more."""


def choose_start(
    stored: Checkpoint | None,
    last: Checkpoint | None,
    *,
    resume: bool,
    since_ms: int | None,
    now_ms: int,
) -> Start:
    """The start of a live relay.

    Args:
        stored: by the destination.
        last: committed earlier by this program.
        resume: `--resume`.
        since_ms: `--since`, in ms since 1970; None: now.
        now_ms: what "now" means, in ms since 1970.
    """
    if resume and stored is not None and not _since_is_earlier(since_ms, stored):
        ignored = "" if since_ms is None else "; --since is ignored unless --resume=false is given"
        begun = f"relaying since {iso_time(stored.started_ms)}"
        message = (
            f"resuming from the stored position ({in_words(stored.position)}); {begun}{ignored}"
        )
        return Start(stored, True, message)
    if resume and stored is None and last is not None and since_ms is None:
        message = f"resuming from the last committed position ({in_words(last.position)})"
        return Start(last, True, message, position_lost=True)
    started_ms = now_ms if since_ms is None else since_ms
    origin = "now, less --upstream.overlap" if since_ms is None else "--since"
    return Start(
        Checkpoint({}, started_ms, 0) if stored is None else stored.restarted(started_ms),
        False,
        f"no stored position is used: starting with events from {iso_time(started_ms)} on ({origin})",
    )


def _since_is_earlier(since_ms: int | None, stored: Checkpoint) -> bool:
    received = any(stored.position.values()) or stored.clock_ms
    return since_ms is not None and not received and since_ms < stored.started_ms


def choose_replay_start(
    stored: Checkpoint | None,
    *,
    resume: bool,
    sources: Iterable[TopicPartition],
    resolved_ms: int,
    incomplete: bool,
) -> Start:
    """The start of a replay.

    Args:
        stored: by the destination, under the replay's own name.
        resume: false: the replay begins again.
        sources: the topic-partitions of the range. Each is in the position from the beginning, because
            it must be known of each whether it is finished.
        resolved_ms: see `ReplaySettings.resolved_ms`.
        incomplete: the upstream no longer has all of the range.
    """
    resumed = resume and stored is not None and stored.done is not None
    checkpoint = (
        stored
        if resumed and stored is not None
        else Checkpoint(dict.fromkeys(sources, 0), 0, resolved_ms, ReplayProgress())
    )
    done = checkpoint.done or ReplayProgress()
    message = (
        f"resuming from the stored position ({in_words(checkpoint.position)}); "
        f"{done.total} events are published"
        if resumed
        else "starting at --from"
    )
    if incomplete and not done.incomplete:
        checkpoint = replace(checkpoint, done=replace(done, incomplete=True))
    return Start(checkpoint, resumed, message)
