"""S3, Google Cloud Storage and Azure Blob Storage, by obstore (the extra `archive`).

A segment is created by one conditional request: `If-None-Match: *` for S3 and Azure, generation 0 for
Google. The request is not split into parts, because not every store creates an object from parts
conditionally; its body is the mapped file, which takes no memory of its own (measured: 9 MB beside the
page cache, whatever the size). S3 checks the SHA-256 that the request is signed with.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from obstore import exceptions
from obstore.store import AzureStore, GCSStore, S3Store

from pleiades.sinks.archive.target import (
    MAX_MANIFEST_BYTES,
    OWN_FOLDER,
    SCHEMES,
    Changed,
    Exists,
    Found,
    Location,
    Read,
    Reader,
    TargetError,
)

CONNECT_SECONDS = 10
ANSWER_SECONDS = 60
"""For a request, and in addition the time of its body at `LEAST_RATE`."""
LEAST_RATE = 50_000
"""Bytes per second. A slower upload is taken for a connection that is dead."""
PIECE_BYTES = 1 << 20
MAX_TEXT = 300

_STORES: dict[str, Any] = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a web identity, or the machine's role",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or the machine's service account",
    "az": "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_KEY, "
    "or a managed identity",
}
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT")
_CODE = re.compile(r"<Code>([A-Za-z]{1,60})</Code>")
_STATUS = re.compile(r"non-2xx status code: (\d{3}[A-Za-z ]{0,40})")
_NO_CREDENTIALS = re.compile(
    r"169\.254\.|metadata\.google|latest/api/token|Missing (?:Access|Secret)|Account must be"
)
# A text that is the same at every attempt is logged once.
_NOISE = re.compile(
    r"Generic \w+ error: |Error performing (?:list request: )?| in [0-9.]+(?:ns|µs|ms|s)\b"
)
# The body of an answer quotes the request, and with it the name of the key.
_BODY = re.compile(r"(?s)(?:: )?<\?xml.*|: \{.*")


class ObjectTarget:
    """A bucket, or what begins with a prefix in it."""

    def __init__(self, location: Location) -> None:
        self.place = str(location)
        self._location = location
        self._usual = self._store(0)

    def _store(self, body_bytes: int) -> Any:
        """A store whose requests may take as long as a body of this size needs."""
        seconds = ANSWER_SECONDS + body_bytes // LEAST_RATE
        plain = any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS)
        try:
            return _STORES[self._location.scheme].from_url(
                self.place,
                client_options={
                    "timeout": timedelta(seconds=seconds),
                    "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
                    "allow_http": plain,
                },
                # The caller repeats, and says why.
                retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=seconds)},
            )
        except (exceptions.BaseError, ValueError) as error:
            raise self._explain(error) from None

    def create(self, name: str, content: memoryview) -> None:
        """See `Target.create`."""
        store = self._store(len(content))
        try:
            store.put(name, content, mode="create", use_multipart=False)
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
            raise Exists(f"{self.place}/{name} exists") from None
        except Exception as error:
            raise self._explain(error) from None

    def read(self, name: str) -> Read | None:
        """See `Target.read`; the version is for `replace`."""
        try:
            got = self._usual.get(name)
            if got.meta["size"] > MAX_MANIFEST_BYTES:
                raise TargetError(f"{self.place}/{name} is too large for a manifest")
            return Read(bytes(got.bytes()), _version(got.meta))
        except FileNotFoundError as error:
            if _is_missing_object(error):
                return None
            raise self._explain(error) from None
        except TargetError:
            raise
        except Exception as error:
            raise self._explain(error) from None

    def replace(self, name: str, content: bytes, version: object) -> object:
        """See `Target.replace`."""
        mode = "create" if version is None else version
        try:
            put = self._store(len(content)).put(name, content, mode=mode, use_multipart=False)
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
            raise Changed(f"{self.place}/{name} was replaced or removed by somebody else") from None
        except FileNotFoundError as error:
            if version is not None and _is_missing_object(error):
                raise Changed(f"{self.place}/{name} was removed by somebody else") from None
            raise self._explain(error) from None
        except Exception as error:
            raise self._explain(error) from None
        return _version(put)

    def size(self, name: str) -> int | None:
        """See `Target.size`."""
        try:
            size: int = self._usual.head(name)["size"]
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._explain(error) from None
        return size

    @contextmanager
    def open(self, name: str) -> Iterator[Reader]:
        """See `Target.open`."""
        try:
            got = self._usual.get(name)
        except FileNotFoundError:
            raise
        except Exception as error:
            raise self._explain(error) from None
        yield _Stream(iter(got.stream(PIECE_BYTES)), self._explain)

    def list(self) -> Iterator[Found]:
        """See `Target.list`."""
        try:
            for found in self._usual.list():
                for each in found:
                    if not each["path"].startswith(f"{OWN_FOLDER}/"):
                        yield Found(each["path"], each["size"])
        except Exception as error:
            raise self._explain(error) from None

    def delete(self, name: str) -> None:
        """See `Target.delete`."""
        try:
            self._usual.delete(name)
        except Exception as error:
            raise self._explain(error) from None

    def is_same_file(self, _name: str, _path: Path) -> bool:
        """See `Target.is_same_file`."""
        return False

    def close(self) -> None:
        """See `Target.close`."""

    def _explain(self, error: Exception) -> TargetError:
        """An error of the library in words, without its secrets and its internals."""
        text, _, _ = str(error).partition("\n\nDebug source")
        shown = _NOISE.sub("", _BODY.sub("", text)).strip()[:MAX_TEXT]
        code, status = _CODE.search(text), _STATUS.search(text)
        name = code[1] if code else ""
        said = " ".join(word for word in (status and status[1].strip(), name) if word)
        kind = SCHEMES[self._location.scheme]
        bucket = self._location.path.partition("/")[0]
        credentials = _CREDENTIALS[self._location.scheme]
        if _NO_CREDENTIALS.search(shown):
            return TargetError(
                f"there are no credentials for {kind}: give the relay's environment {credentials}"
            )
        if name in ("NoSuchBucket", "ContainerNotFound") or "bucket does not exist" in text:
            return TargetError(
                f"there is no bucket {bucket} ({said}): create it, or correct --archive.upload"
            )
        refused = isinstance(
            error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError
        )
        if refused or name.endswith("UserNotFound") or said[:3] in ("401", "403"):
            return TargetError(
                f"{kind} refuses the credentials or what they may do ({said}): the relay needs to list, "
                f"read and write below {self.place}. It takes them from {credentials}"
            )
        if isinstance(error, FileNotFoundError) and said:
            return TargetError(f"{kind} answers {said}: does {bucket} exist there?")
        answer = f" ({name})" if name else ""
        if "error sending request" in shown:
            answer = ": there is no connection, or no answer in time. Is the address right?"
        return TargetError(f"{kind}: {shown}{answer}")


def _version(meta: Any) -> dict[str, str]:
    """The version of an object; the library takes no None."""
    return {name: meta[name] for name in ("e_tag", "version") if meta.get(name) is not None}


def _is_missing_object(error: Exception) -> bool:
    """True if the bucket answers, and lacks the object."""
    code = _CODE.search(str(error))
    return code is None or code[1] in ("NoSuchKey", "BlobNotFound")


class _Stream:
    """Pieces as they come → pieces of the size that is asked for."""

    def __init__(self, pieces: Iterator[Any], explain: Callable[[Exception], TargetError]) -> None:
        self._pieces = pieces
        self._explain = explain
        self._left = memoryview(b"")

    def read(self, size: int) -> bytes:
        """See `Reader.read`."""
        parts = []
        missing = size
        while missing > 0:
            if not self._left:
                try:
                    piece = next(self._pieces, None)
                except Exception as error:
                    raise self._explain(error) from None
                if piece is None:
                    break
                self._left = memoryview(bytes(piece))
            taken = self._left[:missing]
            self._left = self._left[len(taken) :]
            missing -= len(taken)
            parts.append(bytes(taken))
        return b"".join(parts)
