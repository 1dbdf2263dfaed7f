"""No secret is visible from outside: not in `ps`, a log, an answer, a help text or an error."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import requests

from pleiades.config.settings import URL_FLAG
from pleiades.simulator.settings import Faults, SimulatorSettings
from pleiades.simulator.simulator import Simulator
from tests.harness.oracle import published_count
from tests.harness.relay import COMMAND, Relay, ingest_flags, since_ms

Simulate = Callable[[SimulatorSettings], Simulator]

IN_FILE = "hunter2-in-the-file"
IN_ENVIRONMENT = "hunter2-in-the-environment"
IN_URL = "hunter2-in-the-url"
ON_COMMAND_LINE = "hunter2-on-the-command-line"
MARK = "hunter2"
"""Part of every secret."""
KAFKA_VARIABLE = "PLEIADES_KAFKA_PROPERTY"
URL_VARIABLE = "PLEIADES_UPSTREAM_URL"
PATHS = ("/metrics", "/healthz", "/readyz", "/", f"/{MARK[:3]}")


@pytest.fixture
def properties(tmp_path: Path) -> Path:
    file = tmp_path / "kafka.properties"
    file.write_text(
        "security.protocol=SASL_PLAINTEXT\nsasl.mechanisms=PLAIN\nsasl.username=relay\n"
        f"sasl.password={IN_FILE}\n"
    )
    return file


@pytest.fixture
def silent_broker() -> Iterator[str]:
    """A silent broker: the relay waits for it, with all secrets in memory."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def with_password(url: str) -> str:
    return url.replace("://", f"://relay:{IN_URL}@")


def family(relay: Relay) -> list[psutil.Process]:
    """The parent, the stages, and the interpreter's helper processes."""
    parent = psutil.Process(relay.process.pid)
    return [parent, *parent.children(recursive=True)]


def shown_by_ps(processes: list[psutil.Process]) -> str:
    return "\n".join(Path(f"/proc/{process.pid}/cmdline").read_text() for process in processes)


def answers(relay: Relay) -> str:
    pages = [requests.get(relay.address + path, timeout=10) for path in PATHS]
    return "\n".join(f"{page.headers}\n{page.text}" for page in pages)


def variables(process: psutil.Process) -> dict[str, str]:
    """Its initial and current environment: setproctitle may have overwritten the former."""
    lines = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
    pairs = [line.decode(errors="replace").partition("=") for line in lines]
    return {name: value for name, _, value in pairs}


def said(*arguments: str, **environment: str) -> str:
    clean = {name: text for name, text in os.environ.items() if not name.startswith("PLEIADES")}
    ended = subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=clean | environment,
    )
    assert "Traceback" not in ended.stderr
    return f"{ended.stdout}{ended.stderr}"


# ---- while it runs ----


def test_kafkas_passwords_are_not_seen(properties: Path, silent_broker: str) -> None:
    flags = [
        *ingest_flags("http://127.0.0.1:1/v2/stream", "now"),
        *("--kafka.enable", f"--kafka.broker={silent_broker}", f"--kafka.config={properties}"),
        "-v",
    ]
    environment = {KAFKA_VARIABLE: f"ssl.keystore.password={IN_ENVIRONMENT}"}
    with Relay(*flags, environment=environment) as relay:
        for role in ("reader", "parser-0", "publisher"):
            relay.child(role)
        processes = family(relay)
        assert len(processes) >= 4
        seen = shown_by_ps(processes)
        assert "pleiades: publisher" in seen
        assert MARK not in seen
        assert MARK not in answers(relay)
        holders = [
            {name for name, value in variables(process).items() if MARK in value}
            for process in processes
        ]
        assert set().union(*holders) == {KAFKA_VARIABLE}, "they inherit only the given environment"
        relay.stop()
    assert MARK not in relay.log


def test_the_upstreams_password_is_not_seen(simulate: Simulate, tmp_path: Path) -> None:
    """Connected, cut, answered with errors, and with the upstream gone."""
    upstream = simulate(SimulatorSettings(rate=200, faults=Faults(cut_every_seconds=0.5)))
    folder = tmp_path / "events"
    flags = [
        *(flag for flag in ingest_flags(upstream.url, since_ms(upstream)) if URL_FLAG not in flag),
        *("--file.enable", f"--file.publishDir={folder}", "-v"),
    ]
    with Relay(*flags, environment={URL_VARIABLE: with_password(upstream.url)}) as relay:
        relay.until(lambda: published_count(folder) > 50, "events", 30)
        relay.wait_for("the connection ended")
        seen = len(relay.lines)
        upstream.set_faults(error_rate=1.0)
        relay.wait_for("the upstream answered 5", after=seen)
        upstream.stop()
        relay.wait_for("can't reach https://127", after=seen)
        processes = family(relay)
        assert MARK not in shown_by_ps(processes)
        assert MARK not in answers(relay)
        holders = [
            {name for name, value in variables(process).items() if MARK in value}
            for process in processes
        ]
        assert set().union(*holders) == {URL_VARIABLE}, "they inherit only the given environment"
        assert relay.stop() == 0
    assert f"connected to {upstream.url}" in relay.log
    assert MARK not in relay.log


def test_a_new_generation_shows_none(properties: Path, silent_broker: str) -> None:
    flags = [
        *(flag for flag in ingest_flags("http://127.0.0.1:1", "now") if URL_FLAG not in flag),
        *("--kafka.enable", f"--kafka.broker={silent_broker}", f"--kafka.config={properties}"),
        *("-v", "--log.format=json"),
    ]
    environment = {URL_VARIABLE: with_password("http://127.0.0.1:1/v2/stream")}
    with Relay(*flags, environment=environment) as relay:
        relay.child("publisher").kill()
        relay.wait_for("starting all processes again")
        relay.child("publisher")
        assert MARK not in shown_by_ps(family(relay))
        relay.stop()
    assert MARK not in relay.log


# ---- what it says of a configuration ----


@pytest.mark.parametrize(
    "command", [("help", "ingest"), ("ingest", "--help"), ("help", "check"), ("help", "demo")]
)
def test_no_help_shows_what_the_environment_holds(command: tuple[str, ...]) -> None:
    text = said(
        *command,
        **{
            KAFKA_VARIABLE: f"sasl.password={IN_ENVIRONMENT}",
            URL_VARIABLE: with_password("http://127.0.0.1:1/v2/stream"),
        },
    )
    assert "usage: pleiades" in text
    assert MARK not in text


def test_a_password_on_the_command_line_is_refused_by_each_command() -> None:
    for command in ("ingest", "check"):
        text = said(
            command, "--kafka.enable", "--kafka.property", f"sasl.password={ON_COMMAND_LINE}"
        )
        assert "everybody can read a command line" in text
        assert MARK not in text


@pytest.mark.parametrize(
    "url",
    [
        "http://relay:{}@127.0.0.1:port/v2/stream",
        "http://relay:{}@127.0.0.1:1/v2/stream?a=b",
        "http://relay:{}@127.0.0.1:1/v2/stream#x",
        "http://relay:{}@",
        "http://relay:{}@[::1/v2",
        "http://relay:a/b@{}@127.0.0.1:port/v2",
        "http://relay:12/{}@127.0.0.1:1/v2",
        "http://relay:a\n{}@127.0.0.1:port/v2",
        "ftp://relay:{}@127.0.0.1/v2/stream",
        "relay:{}@127.0.0.1",
    ],
)
def test_a_wrong_url_is_refused_without_its_password(url: str) -> None:
    for command in ("ingest", "check"):
        text = said(command, "--file.enable", **{URL_VARIABLE: url.format(IN_URL)})
        assert "--upstream.url" in text
        assert MARK not in text


def test_a_check_shows_none(properties: Path, silent_broker: str) -> None:
    text = said(
        *("check", "--kafka.enable", f"--kafka.broker={silent_broker}", "-v", "--metricsPort=0"),
        f"--kafka.config={properties}",
        **{
            KAFKA_VARIABLE: f"ssl.keystore.password={IN_ENVIRONMENT}",
            URL_VARIABLE: with_password("http://127.0.0.1:1/v2/stream"),
        },
    )
    assert "can't reach http://127.0.0.1:1/v2/stream/recentchange" in text
    assert MARK not in text
