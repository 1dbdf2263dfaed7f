"""Places at which a test can have a process killed: between two steps that must not come apart.

A test names a folder in the environment and creates an empty file in it, named like a point. The first
process that comes by removes the file and dies by SIGKILL. Without the variable, as in any real run,
passing a point costs one comparison.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import NoReturn

FOLDER_VARIABLE = "PLEIADES_FAULT_POINTS"
_folder = os.environ.get(FOLDER_VARIABLE)

SENT = "channel-half-written-"  # and the channel's name: half of a message is in the pipe
WRITTEN = "publisher-written"  # the sink has a batch that is not committed
COMMITTED = "publisher-committed"  # the commit is durable, and nobody knows of it yet
STAGED = "files-staged"  # an event of the batch is in the staging folder, others are not
JOURNALED = "files-journaled"  # all are in the staging folder and in the identity log
SYNCED = "files-synced"  # all are on the disk, and the checkpoint is the old one
NAMED = "files-named"  # the checkpoint covers the batch; an event has its name, others have not
PUBLISHED = "files-published"  # all have their names
CHECKPOINT_STAGED = "checkpoint-staged"  # the new checkpoint lies beside the old one
CHECKPOINT_REPLACED = "checkpoint-replaced"  # the new one is in its place; its folder is not synced
APPENDED = "archive-appended"  # all are in the raw files, and in no identity log
COMPACTED = "archive-compacted"  # the file for readers is complete, and nobody knows of it yet
LISTED = "archive-listed"  # a closed segment is in the manifest, and has no name
RENAMED = "archive-renamed"  # it has its name; its raw file is still there
PRODUCED = "kafka-produced"  # events are in the transaction, the position is not
POSITION_SENT = "kafka-position-sent"  # so is the position, and the transaction is not committed
UPLOAD_STAGED = "upload-staged"  # a segment is copied beside the target, and has no name there
UPLOAD_CREATED = "upload-created"  # a segment is at the target, whose manifest does not name it
UPLOAD_NAMED = "upload-named"  # the target's manifest names it; the state file does not count it
UPLOAD_STATE_STAGED = "upload-state-staged"  # the new state file lies beside the old one
UPLOAD_STATE_REPLACED = "upload-state-replaced"  # the new one is in its place
UPLOAD_REMOVED = "upload-removed"  # a local segment is removed; the state file does not count it

FILES_POINTS = (STAGED, JOURNALED, SYNCED, CHECKPOINT_STAGED, CHECKPOINT_REPLACED, NAMED, PUBLISHED)
ARCHIVE_POINTS = (APPENDED, SYNCED, CHECKPOINT_STAGED, CHECKPOINT_REPLACED, LISTED, RENAMED)
CLOSING_POINTS = (*ARCHIVE_POINTS, COMPACTED)
"""Some of them in the finisher, which is no part of the pipeline."""
KAFKA_POINTS = (PRODUCED, POSITION_SENT)
UPLOAD_POINTS = (
    *(UPLOAD_STAGED, UPLOAD_CREATED, UPLOAD_NAMED),
    *(UPLOAD_STATE_STAGED, UPLOAD_STATE_REPLACED, UPLOAD_REMOVED),
)
"""Of the uploader, which is no part of the pipeline."""
CHANNEL_POINTS = (f"{SENT}resume", f"{SENT}frames-0", f"{SENT}batches-0")
COMMON_POINTS = (*CHANNEL_POINTS, WRITTEN, COMMITTED)
POINTS = (*COMMON_POINTS, *dict.fromkeys(FILES_POINTS + ARCHIVE_POINTS), *KAFKA_POINTS)


def passing(point: str) -> None:
    """Die here if a test wants it."""
    if _folder is not None and armed(point):
        die()


def armed(point: str) -> bool:
    """Return whether a test wants this process to die at this point; true once."""
    if _folder is None:
        return False
    try:
        (Path(_folder) / point).unlink()
    except OSError:
        return False
    return True


def die() -> NoReturn:
    """SIGKILL: nothing is closed, flushed or logged."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("survived SIGKILL")
