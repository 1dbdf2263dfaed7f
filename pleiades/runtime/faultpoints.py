"""Places at which a test can have a process killed: between two steps that must not come apart.

A test names a folder in the environment and puts an empty file into it, named like a point. The first
process that comes by removes it and dies by SIGKILL, as if somebody had done it from outside just then.
Without the variable, which is the usual case, passing a point costs one comparison.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import NoReturn

FOLDER_VARIABLE = "PLEIADES_FAULT_POINTS"
_folder = os.environ.get(FOLDER_VARIABLE)

SENT = "channel-half-written-"
"""And the channel's name: half of a message is in the pipe."""
WRITTEN = "publisher-written"
"""The sink has a batch, which is not committed."""
COMMITTED = "publisher-committed"
"""The commit is durable, and nobody knows of it yet."""
STAGED = "files-staged"
"""An event of the batch is in the staging folder, others are not."""
JOURNALED = "files-journaled"
"""All are in the staging folder and in the identity log."""
SYNCED = "files-synced"
"""All are on the disk, and the checkpoint is the old one."""
NAMED = "files-named"
"""The checkpoint covers the batch; an event of it has its name, others have not."""
PUBLISHED = "files-published"
"""All have their names."""
CHECKPOINT_STAGED = "checkpoint-staged"
"""The new checkpoint lies beside the old one."""
CHECKPOINT_REPLACED = "checkpoint-replaced"
"""The new one is in its place; its folder is not synced."""
PRODUCED = "kafka-produced"
"""Events are in the transaction, the position is not."""
POSITION_SENT = "kafka-position-sent"
"""The position is in the transaction too, and it is not committed."""

FILES_POINTS = (
    STAGED,
    JOURNALED,
    SYNCED,
    CHECKPOINT_STAGED,
    CHECKPOINT_REPLACED,
    NAMED,
    PUBLISHED,
)
KAFKA_POINTS = (PRODUCED, POSITION_SENT)
POINTS = (
    f"{SENT}resume",
    f"{SENT}frames-0",
    f"{SENT}batches-0",
    WRITTEN,
    COMMITTED,
    *FILES_POINTS,
    *KAFKA_POINTS,
)


def passing(point: str) -> None:
    """Die here if a test wants it."""
    if _folder is not None and armed(point):
        die()


def armed(point: str) -> bool:
    """Whether a test wants the process that asks to die at this point; it asks once."""
    if _folder is None:
        return False
    try:
        (Path(_folder) / point).unlink()
    except OSError:
        return False
    return True


def die() -> NoReturn:
    """SIGKILL: nothing is closed, flushed or said."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("survived SIGKILL")
