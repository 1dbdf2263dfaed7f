"""The place that closed segments are copied to, and that `pleiades verify` reads.

Laws:
- An object is created or it is not: nobody sees a part of one, and none is ever overwritten.
- The only object that is replaced is a manifest, and only while it is the one that was read.
- An error's text never quotes credentials.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import unquote, urlsplit

SCHEMES = {"s3": "S3", "gs": "Google Cloud Storage", "az": "Azure Blob Storage"}
MAX_MANIFEST_BYTES = 256 << 20
"""A larger one is not read: it would be the manifest of 30 years."""
OWN_FOLDER = ".pleiades"
"""The relay's files in an archive, which are no part of it."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# The rules of all three, without those that differ.
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,62}")
_PREFIX = re.compile(r"(?:[A-Za-z0-9!_.*'()=+@,-]+/)*[A-Za-z0-9!_.*'()=+@,-]+")


class TargetError(Exception):
    """A failure in words, with a remedy. A later attempt may succeed."""


class Exists(TargetError):
    """There is an object of this name."""


class Changed(TargetError):
    """The object is not the one that was read."""


class Found(NamedTuple):
    """An object in a listing."""

    name: str
    """Its path below the target."""
    bytes: int


class Read(NamedTuple):
    """A whole object."""

    content: bytes
    version: object
    """For `Target.replace`."""


class Reader(Protocol):
    """The content of an object, from its begin to its end."""

    def read(self, size: int, /) -> bytes:
        """The next so many bytes; fewer only at the end.

        Raises:
            TargetError: it can't be read to its end.
        """
        ...


class Target(Protocol):
    """An archive's copy, or an archive. All methods raise TargetError."""

    place: str
    """As a person knows it, such as `s3://bucket/prefix`."""

    def create(self, name: str, content: memoryview) -> None:
        """Write a new object; when this returns, it is durable.

        Raises:
            Exists: there is one of this name, which stays as it is.
        """

    def read(self, name: str) -> Read | None:
        """A small object; None: there is none."""

    def replace(self, name: str, content: bytes, version: object) -> object:
        """Replace the object that was read; returns its new version.

        Args:
            version: as it was read; None: there was none.

        Raises:
            Changed: somebody else replaced or removed it.
        """

    def size(self, name: str) -> int | None:
        """The size of an object; None: there is none."""

    def open(self, name: str) -> AbstractContextManager[Reader]:
        """Read an object in pieces.

        Raises:
            FileNotFoundError: there is none.
        """

    def list(self) -> Iterator[Found]:
        """All objects, but none in `OWN_FOLDER`."""

    def delete(self, name: str) -> None:
        """Remove an object."""

    def is_same_file(self, name: str, path: Path) -> bool:
        """True if an object and a local file are one and the same: then neither is a copy."""

    def close(self) -> None:
        """Let go of it."""


class Location(NamedTuple):
    """A target as the command line names it."""

    scheme: str
    """One of `SCHEMES`; empty: a directory."""
    path: str
    """Of the directory, or `bucket/prefix`."""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}" if self.scheme else self.path


def parse_location(text: str) -> Location:
    """Read `s3://bucket/prefix`, `gs://…`, `az://container/…`, `file:///…`, or a path.

    Raises:
        ValueError: it is none of these, or holds more, such as credentials.
    """
    found = _SCHEME.match(text)
    if found is None:
        if not text or "\0" in text:
            raise ValueError("needs s3://bucket/prefix, gs://…, az://…, or the path of a directory")
        return Location("", text)
    scheme = found[1].lower()
    if scheme == "file":
        url = urlsplit(text)
        if url.netloc not in ("", "localhost") or not url.path.startswith("/"):
            raise ValueError("needs three slashes and an absolute path: file:///srv/archive")
        return Location("", unquote(url.path))
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise ValueError(f"{scheme[:20]}:// is not known: use {known}, file:// or a path")
    bucket, _, prefix = text[found.end() :].partition("/")
    if "@" in bucket:
        raise ValueError(
            "takes no credentials: give them in the environment, as the provider's own tools take them"
        )
    if not _BUCKET.fullmatch(bucket):
        raise ValueError(f"names no bucket: write {scheme}://bucket/prefix")
    prefix = prefix.strip("/")
    if prefix and (not _PREFIX.fullmatch(prefix) or {".", ".."} & {*prefix.split("/")}):
        raise ValueError(
            "has a prefix with characters that not all stores and tools take: use letters, digits and "
            "._=-, with slashes between them"
        )
    return Location(scheme, f"{bucket}/{prefix}" if prefix else bucket)


def open_target(location: Location, writer: str = "") -> Target:
    """The target behind a location.

    Args:
        writer: the manifest that is to be written; empty: none.

    Raises:
        TargetError: it can't be used.
    """
    if not location.scheme:
        from pleiades.sinks.archive.directory import DirectoryTarget

        return DirectoryTarget(Path(location.path), writer)
    try:
        from pleiades.sinks.archive.objects import ObjectTarget
    except ImportError as error:
        raise TargetError(
            f"{location.scheme}:// needs what is not installed ({error.name}): "
            "pip install 'pleiades[archive]'"
        ) from None
    return ObjectTarget(location)
