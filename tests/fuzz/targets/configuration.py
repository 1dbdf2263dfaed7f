"""The operator's input: the configuration file, the file of Kafka's properties, single values."""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import requests

from pleiades.config import settings as limits
from pleiades.config import values as read
from pleiades.config.settings import Settings, UpstreamSettings
from pleiades.core.sse_id import MAX_TIMESTAMP_MS
from pleiades.core.units import iso_time, parse_duration, parse_iso_time_ms, rough_duration
from pleiades.runtime.errors import EXIT_USAGE, Transient, UsageError
from pleiades.runtime.logs import printable
from pleiades.sinks.files.destination import FilesDestination
from pleiades.sinks.kafka import properties
from pleiades.sinks.kafka.destination import (
    DEAD_LETTERS_SUFFIX,
    KafkaDestination,
    field_path,
    topic_name,
)
from pleiades.sinks.registry import relay_parser, relay_settings
from pleiades.upstream.environment import proxy_of, refuse_unusable
from pleiades.upstream.http import Upstream
from tests.fuzz.target import lossless, parts
from tests.harness.authority import authority

NOW = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)
SECRET = b"HUNTER2"
"""In capitals, so that it cannot be a property's name: no error may show it anywhere."""

CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f]")
MAX_SECONDS = 10**12 * 86_400
T = TypeVar("T")

FIRST_MS = -62_135_596_800_000
"""The year 1."""


@contextlib.contextmanager
def _file(content: bytes) -> Iterator[str]:
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        file.write(content)
        file.flush()
        yield file.name


@cache
def _parser() -> argparse.ArgumentParser:
    return relay_parser("ingest")


def _parsed(*arguments: str) -> argparse.Namespace:
    # Without the environment, which may contain anything.
    parse: Callable[..., argparse.Namespace] = _parser().parse_args
    return parse(arguments, env_vars={})


# ---- the configuration file ----


def config(raw: bytes) -> None:
    """The file of `--config`: settings, or one error with exit status 2."""
    said = io.StringIO()
    with _file(raw) as name, contextlib.redirect_stderr(said):
        try:
            settings = relay_settings(vars(_parsed("--config", name)))
        except UsageError as error:
            assert str(error)
            return
        except SystemExit as left:
            assert left.code == EXIT_USAGE
            assert said.getvalue().endswith("\nTry: pleiades help ingest\n")
            return
    _sound_settings(settings)


def _sound_settings(settings: Settings) -> None:
    assert isinstance(settings.destination, FilesDestination | KafkaDestination)
    assert settings.upstream.overlap_seconds >= limits.MIN_OVERLAP_SECONDS
    assert 1 <= settings.parsers <= limits.MAX_PARSERS
    assert 0 <= settings.metrics_port <= read.MAX_PORT
    assert all(SAFE_STREAM.fullmatch(stream) for stream in settings.upstream.streams)
    Upstream(settings.upstream)


SAFE_STREAM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


# ---- properties for Kafka ----


@cache
def _flags() -> dict[str, Any]:
    return vars(_parsed("--kafka.enable"))


def kafka_config(raw: bytes) -> None:
    """The file of `--kafka.config`: properties, or a `UsageError` that shows no value."""
    with _file(raw) as name:
        try:
            found = KafkaDestination.from_flags(_flags() | {"kafka.config": name}, "x").properties
        except UsageError as error:
            assert SECRET.decode() not in str(error), "a value is shown"
            return
    for key, value in found:
        assert re.fullmatch(r"[a-z0-9_.]+", key)
        # librdkafka takes C strings.
        assert "\0" not in key + value
        value.encode()
        shown = properties.without_values(f"wrong: '{value}'", found)
        assert not (value and properties.is_secret(key) and value in shown), "a secret is shown"
    properties.refuse(found)
    secret = properties.secret_in([f"--kafka.property={key}={value}" for key, value in found])
    assert (secret is not None) or not any(properties.is_secret(key) for key, _ in found)


# ---- single values ----


def values(raw: bytes) -> None:
    """A flag's value: accepted only as the flag promises; otherwise `ValueError` with a reason."""
    text = lossless(raw)
    seconds = _accepted(parse_duration, text)
    if seconds is not None:
        assert math.isfinite(seconds)
        assert 0 <= seconds <= MAX_SECONDS
        assert rough_duration(seconds)
    start = _accepted(lambda text: read.since(text, NOW), text)
    assert start is None or 0 <= start <= MAX_TIMESTAMP_MS
    number = _accepted(read.integer(1, 64).read, text)
    assert number is None or 1 <= number <= 64
    _accepted(read.duration(0.1, 9).read, text)
    _accepted(read.boolean, text)
    _accepted(read.choice("a", "b").read, text)
    _accepted(field_path, text)
    directory = _accepted(read.path, text)
    assert directory is None or Path(directory) == directory
    topic = _accepted(topic_name, text)
    assert topic is None or re.fullmatch(r"[A-Za-z0-9._-]{1,249}", topic + DEAD_LETTERS_SUFFIX)
    brokers = _accepted(properties.brokers, text)
    assert brokers is None or all(
        re.fullmatch(r".+:[0-9]{1,5}", broker) for broker in brokers.split(",")
    )
    _address(text)
    _time(text)
    _printable(raw, text)


def _accepted(reads: Callable[[str], T], text: str) -> T | None:
    try:
        return reads(text)
    except ValueError as error:
        assert str(error)
        return None


def _address(text: str) -> None:
    url = _accepted(read.base_url, text) or "http://localhost"
    streams = _accepted(read.streams, text) or ("recentchange",)
    contact = _accepted(read.contact, text) or "https://example.org"
    upstream = Upstream(UpstreamSettings(url, streams, contact, 60, 5, False))
    # These two are told apart from a bug when it connects.
    with contextlib.suppress(requests.RequestException, ValueError):
        upstream._session.prepare_request(requests.Request("GET", upstream._url))
    assert all(SAFE_STREAM.fullmatch(stream) for stream in streams)


def _time(text: str) -> None:
    try:
        time_ms = parse_iso_time_ms(text)
    except (ValueError, OverflowError):
        return
    assert FIRST_MS <= time_ms <= MAX_TIMESTAMP_MS
    assert parse_iso_time_ms(iso_time(time_ms)) == time_ms


def _printable(raw: bytes, text: str) -> None:
    for foreign in (raw, text):
        shown = printable(foreign, 40)
        # An escape has six characters.
        assert len(shown) <= 41 * 6
        assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\ud800-\udfff]", shown)
        shown.encode()


# ---- the environment ----

VARIABLES = ("HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "SSL_CERT_DIR")


def environment(raw: bytes) -> None:
    """The values of `VARIABLES`: obeyed, or named in an error that shows no password."""
    values = [lossless(value).replace("\0", "") for value in parts(raw, len(VARIABLES))]
    given = dict(zip(VARIABLES, values, strict=True))
    # Before an @ it is a password; hosts and paths are shown.
    public = [value.rpartition("@")[2] for value in values[:2]] + values[2:]
    is_secret = not any(SECRET.decode() in text for text in public)
    settings = UpstreamSettings(
        "https://stream.example.org/v2", ("x",), "https://example.org/", 60, 5, False
    )
    said = []
    few = mock.patch("certifi.where", return_value=str(authority().ca))
    with few, mock.patch.dict(os.environ, given, clear=True):
        try:
            refuse_unusable(settings)
        except UsageError as error:
            assert any(variable in str(error) for variable in VARIABLES)
            said.append(str(error))
        else:
            proxy = proxy_of(settings.url)
            said += [] if proxy is None else [proxy.address, repr(proxy)]
        with (
            mock.patch("urllib3.util.connection.create_connection", side_effect=OSError(1, "no")),
            mock.patch("socket.create_connection", side_effect=OSError(1, "no")),
            mock.patch("socks.create_connection", side_effect=OSError(1, "no")),
        ):
            try:
                Upstream(settings).connect(None, 5)
            except Transient as error:
                said.append(str(error))
    assert not (is_secret and any(SECRET.decode() in text for text in said)), "a secret is shown"
    assert not any(CONTROLS.search(text) for text in said)
