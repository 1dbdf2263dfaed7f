"""Finishes a sealed segment: recompresses it as one frame, or makes a Parquet file of it.

Laws:
- The raw file is only read, and the output is complete and on the disk when it is reported.
- Whoever is killed here leaves nothing that the same job, done again, does not replace.
- Memory does not grow with the segment.

It is a program of its own, because it would take the publisher's time and memory otherwise:
`python -P -m pleiades.sinks.archive.finish` reads a `Job` from its standard input and answers on its
standard output, both as JSON. It dies with the thread that started it.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import orjson

from pleiades.runtime import faultpoints
from pleiades.runtime.startup import STOP_SIGNALS, die_with_parent
from pleiades.sinks import disk
from pleiades.sinks.archive import layout
from pleiades.sinks.archive.codecs import DamagedSegment, decompressed, encoder

COMMAND = (sys.executable, "-P", "-m", "pleiades.sinks.archive.finish")
NICENESS = 10
"""Relaying comes first."""
_READ_BYTES = 1024 * 1024


class Job(NamedTuple):
    """A sealed segment, and the file to make of it."""

    raw: str
    """Path of the sealed segment."""
    length: int
    """Its valid length in bytes."""
    codec: str
    """Of the sealed segment, one of `codecs.CODECS`."""
    output: str
    """Path of the new file, which replaces one of this name. Empty: only hash the sealed segment."""
    format: str
    """Of the new file, one of `layout.FORMATS`."""
    salvage: bool = False
    """The sealed segment is damaged: take the lines before the damage."""

    def encoded(self) -> bytes:
        """The input of the program."""
        return orjson.dumps(self._asdict())


class Finished(NamedTuple):
    """The file that can become the closed segment."""

    bytes: int
    sha256: str
    events: int
    """-1 if the sealed segment was only hashed."""
    text_bytes: int
    """The size of its lines, uncompressed; -1 if the sealed segment was only hashed."""


def read_answer(answer: bytes) -> Finished:
    """Read what the program wrote to its standard output.

    Raises:
        OSError: the program had it, for example because the disk is full.
        DamagedSegment: the sealed segment is damaged.
        ValueError: it is no answer, for the program was killed, or it crashed.
    """
    fields: dict[str, Any] = orjson.loads(answer)
    if "damaged" in fields:
        raise DamagedSegment(fields["damaged"])
    if "errno" in fields:
        raise OSError(fields["errno"], fields["error"], fields["path"])
    return Finished(**fields)


def finish(job: Job) -> Finished:
    """Do a job.

    Raises:
        OSError: a file can't be read or written.
        DamagedSegment: the sealed segment is shorter than it should be, or not what was written. Not
            with `Job.salvage`.
    """
    descriptor = disk.open_own(Path(job.raw), os.O_RDONLY)
    try:
        raw = _Raw(descriptor, job)
        return _recode(raw.read, job) if job.output else _hash(raw.read)
    finally:
        os.close(descriptor)


class _Raw:
    """Reads a sealed segment up to its valid length."""

    def __init__(self, descriptor: int, job: Job) -> None:
        self._descriptor = descriptor
        self._job = job
        self._at = 0

    def read(self, size: int) -> bytes:
        """The next bytes, at most so many; none at the end."""
        job = self._job
        content = os.read(self._descriptor, min(size, job.length - self._at))
        self._at += len(content)
        if not content and self._at < job.length and not job.salvage:
            raise DamagedSegment(f"it has {self._at} of {job.length} bytes")
        return content


def _hash(read: Callable[[int], bytes]) -> Finished:
    digest = hashlib.sha256()
    size = 0
    while content := read(_READ_BYTES):
        digest.update(content)
        size += len(content)
    return Finished(size, digest.hexdigest(), -1, -1)


def _recode(read: Callable[[int], bytes], job: Job) -> Finished:
    output = Output(Path(job.output))
    try:
        writer = _writer(job.format, output)
        events = text_bytes = 0
        last = b"\n"
        for text in decompressed(read, job.codec, job.salvage):
            writer.write(text)
            events += text.count(b"\n")
            text_bytes += len(text)
            last = text[-1:] or last
        if last != b"\n":
            raise DamagedSegment("its last line has no end")
        writer.end()
        output.sync()
        faultpoints.passing(faultpoints.COMPACTED)
    except BaseException:
        output.discard()
        raise
    finally:
        output.close()
    return Finished(output.size, output.sha256(), events, text_bytes)


class Output:
    """A new file: written, hashed and synced."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digest = hashlib.sha256()
        self.size = 0
        self._descriptor = disk.create_again(path)

    def write(self, content: bytes) -> None:
        """Append bytes."""
        try:
            disk.write_all(self._descriptor, content)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from None
        self._digest.update(content)
        self.size += len(content)

    def sync(self) -> None:
        """Bring the file and its name to the disk."""
        disk.sync_file(self._descriptor)
        disk.sync_directory(self._path.parent)

    def sha256(self) -> str:
        """Of everything written, in hexadecimal digits."""
        return self._digest.hexdigest()

    def discard(self) -> None:
        """Remove the file: on a full disk it takes the room that commits need."""
        with suppress(OSError):
            if disk.is_in_place(self._path, self._descriptor):
                self._path.unlink()

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


class Writer(Protocol):
    """Makes a file of text."""

    def write(self, text: bytes) -> None:
        """Take text, which may end within a line."""

    def end(self) -> None:
        """Write the rest."""


class _Recompressed:
    def __init__(self, output: Output, codec: str) -> None:
        self._output = output
        self._encoder = encoder(codec)

    def write(self, text: bytes) -> None:
        self._output.write(self._encoder.compress(text))

    def end(self) -> None:
        self._output.write(self._encoder.flush())


def _writer(wanted: str, output: Output) -> Writer:
    if wanted != layout.PARQUET:
        return _Recompressed(output, layout.CODEC_OF[wanted])
    # Only here: it takes 50 MB, and is an extra.
    from pleiades.sinks.archive.parquet import ParquetFile

    return ParquetFile(output)


def main() -> int:
    """Do the job of the standard input; returns the exit status."""
    for number in STOP_SIGNALS:
        # A terminal sends them to the whole process group; the relay decides when to end.
        signal.signal(number, signal.SIG_IGN)
    die_with_parent()
    os.nice(NICENESS)
    answer: dict[str, Any]
    try:
        answer = finish(Job(**orjson.loads(sys.stdin.buffer.read())))._asdict()
    except DamagedSegment as error:
        answer = {"damaged": str(error)}
    except OSError as error:
        answer = {"error": error.strerror, "errno": error.errno, "path": error.filename}
    # The relay may have ended. Then nobody wants the answer.
    with suppress(BrokenPipeError):
        os.write(sys.stdout.fileno(), orjson.dumps(answer) + b"\n")
    return int("sha256" not in answer)


if __name__ == "__main__":
    sys.exit(main())
