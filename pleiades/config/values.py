"""Readers of single values. Each raises ValueError with a sentence that can follow the flag's name."""

from __future__ import annotations

import math
import os
import re
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from pleiades.core.sse_id import MAX_TIMESTAMP_MS
from pleiades.core.units import parse_duration, parse_iso_time_ms

MAX_PORT = 65_535
OPENSSL_VARIABLES = ("OPENSSL_CONF", "OPENSSL_MODULES")
MAX_STREAMS = 64
# A stream's name becomes part of a URL and of a file name.
_STREAM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# The name by which OpenSSL finds a certificate in a folder.
_HASHED = re.compile(r"[0-9a-f]{8}\.[0-9]+")
_SIZE = re.compile(r"([0-9]{1,15}) ?(B|[KMG]B|[KMG]iB)", re.ASCII)
_SIZE_UNITS = {"B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3}
_SIZE_UNITS |= {"KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_BOOLEANS = dict.fromkeys(("true", "yes", "on", "1"), True)
_BOOLEANS |= dict.fromkeys(("false", "no", "off", "0"), False)


class Reader(NamedTuple):
    """Turns text into a value."""

    unit: str
    """Shown in the help; `a|b` lists all values."""
    read: Callable[[str], Any]

    def __call__(self, text: str) -> Any:
        """Read one value."""
        return self.read(text)


def boolean(text: str) -> bool:
    """`true` or `false`, also yes/no, on/off, 1/0."""
    value = _BOOLEANS.get(text.strip().lower())
    if value is None:
        raise ValueError(f"{text!r} is neither true nor false")
    return value


def duration(least_seconds: float = 0.0, most_seconds: float = math.inf) -> Reader:
    """Reads `90s` or `10m` as seconds."""

    def read(text: str) -> float:
        seconds = parse_duration(text)
        if seconds < least_seconds:
            raise ValueError(f"{text!r} is too short: at least {least_seconds:g}s")
        if seconds > most_seconds:
            raise ValueError(f"{text!r} is too long: at most {most_seconds:g}s")
        return seconds

    return Reader("duration", read)


def integer(least: int, most: int, unit: str = "number") -> Reader:
    """Reads a whole number within bounds."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise ValueError(f"{text!r} is not a whole number") from None
        if not least <= number <= most:
            raise ValueError(f"{number} is not between {least} and {most}")
        return number

    return Reader(unit, read)


def size(least: int, most: int) -> Reader:
    """Reads `512MB` or `64KiB` as bytes."""

    def read(text: str) -> int:
        match = _SIZE.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text!r} is no size, such as 512MB or 64KiB")
        size_bytes = int(match[1]) * _SIZE_UNITS[match[2]]
        if not least <= size_bytes <= most:
            raise ValueError(f"{text!r} is not between {least:,} and {most:,} bytes")
        return size_bytes

    return Reader("size", read)


def choice(*allowed: str) -> Reader:
    """Reads one of a few words."""

    def read(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"{text!r} is none of {', '.join(allowed)}")
        return text

    return Reader("|".join(allowed), read)


def optional(reader: Reader) -> Reader:
    """Reads what `reader` does; empty: None."""
    return Reader(reader.unit, lambda text: reader.read(text) if text else None)


def path(text: str) -> Path:
    """Reads a path, which need not exist."""
    if not text or "\0" in text:
        raise ValueError("needs the path of a file or directory")
    return Path(text)


def certificates(text: str) -> Path | None:
    """Reads the path of a PEM file of certificates, and loads the file; empty: None."""
    if not text:
        return None
    if reason := unusable_openssl() or unusable_certificates(str(path(text))):
        raise ValueError(f"{text!r} can't be used: {reason}")
    return Path(text).absolute()


def unusable_openssl() -> str:
    """Why there can be no TLS at all, and what to do; empty: there can."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    except ssl.SSLError as error:
        given = " or ".join(name for name in OPENSSL_VARIABLES if os.environ.get(name))
        culprit = f"the environment variable {given}" if given else "openssl.cnf"
        return f"TLS can't be set up: {error}. Correct or unset {culprit}"
    return ""


def unusable_certificates(file: str | None = None, folder: str | None = None) -> str:
    """Why certificate authorities can't be loaded; empty: they can.

    Args:
        file: PEM.
        folder: one of hashed names (c_rehash), or several, joined by colons.
    """
    try:
        # `create_default_context` would also open the file of SSLKEYLOGFILE.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file, folder)
    except ssl.SSLError:
        return "it holds no certificate in PEM form"
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    if folder is None:
        return ""
    # OpenSSL looks into them later, and is silent about one that is not there.
    names = [name for each in folder.split(":") for name in _names_in(each)]
    hashed = any(_HASHED.fullmatch(name) for name in names)
    return "" if hashed else "no certificate with a hashed name (c_rehash) is there"


def _names_in(folder: str) -> list[str]:
    try:
        return [entry.name for entry in Path(folder).iterdir()]
    except (OSError, ValueError):
        return []


def streams(text: str) -> tuple[str, ...]:
    """Reads names of streams, joined by commas."""
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if _STREAM.fullmatch(name) is None:
            raise ValueError(f"{name!r} is no name of a stream, such as recentchange")
    if len(set(names)) < len(names):
        raise ValueError(f"{text!r} names a stream twice")
    if len(names) > MAX_STREAMS:
        raise ValueError(f"names {len(names)} streams; at most {MAX_STREAMS} fit")
    return names


def base_url(text: str) -> str:
    """Reads an HTTP URL without query and fragment."""
    try:
        parts = urlsplit(text)
        readable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        # The rest of a password with a plain slash would be taken for the path, and shown.
        readable = readable and "@" not in parts.path
    except ValueError:
        readable = False
    if not readable:
        # Before the last @ there may be a password, with or without a scheme in front of it.
        shown = re.sub(r"^([a-zA-Z]*://)?.*@", r"\1…@", text, flags=re.DOTALL)
        raise ValueError(f"{shown!r} is no URL such as http://127.0.0.1:8080/v2/stream")
    if parts.query or parts.fragment:
        raise ValueError("must be a base URL without ? and #; the relay appends the streams")
    return text.rstrip("/")


def has_credentials(url: str) -> bool:
    """True if a base URL may hold a user or a password, also if it can't be read."""
    return "@" in url


def contact(text: str) -> str:
    """Reads what goes into the parentheses of the User-Agent (RFC 9110 §10.1.5, comment)."""
    plain = text.isascii() and text.isprintable() and not set(text) & set("()\\")
    if not plain or not text.strip():
        raise ValueError(f"{text!r} can't stand in a User-Agent: plain ASCII without parentheses")
    if not ("@" in text or "://" in text):
        raise ValueError(f"{text!r} is no way to reach you: give a URL or a mail address")
    return text


def moment(text: str, now: datetime | None = None) -> int | None:
    """Reads `now`, an ISO 8601 time (UTC where it names no zone), `-2h`, or ms since 1970.

    Returns ms since 1970; None for now.
    """
    text = text.strip()
    if text in ("now", ""):
        return None
    if text.isascii() and text.isdigit():
        milliseconds = int(text[:16])
    elif text.startswith("-"):
        ago_seconds = parse_duration(text[1:])
        milliseconds = int(((now or datetime.now(UTC)).timestamp() - ago_seconds) * 1000)
    else:
        try:
            milliseconds = parse_iso_time_ms(text)
        except (ValueError, OverflowError):
            raise ValueError(
                f"{text!r} is no time: give ISO 8601 (2026-01-31T12:00:00Z), -2h, or ms since 1970"
            ) from None
    if not 0 <= milliseconds <= MAX_TIMESTAMP_MS:
        raise ValueError(f"{text!r} lies before 1970 or after 9999")
    return milliseconds


def since(text: str, now: datetime | None = None) -> int | None:
    """Reads a start as `moment` does; refuses one in the future."""
    now = now or datetime.now(UTC)
    milliseconds = moment(text, now)
    if milliseconds is not None and milliseconds > now.timestamp() * 1000:
        raise ValueError(
            f"{text.strip()!r} lies in the future: the upstream would skip the events until then"
        )
    return milliseconds
