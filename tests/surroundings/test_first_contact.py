"""What a new user meets first: wrong names, a used folder, an upstream or a disk that is away."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests

from pleiades import cli
from pleiades.core.checkpoint import Checkpoint
from pleiades.core.position import in_words
from pleiades.core.start import choose_start
from pleiades.runtime.findings import now_ms
from pleiades.runtime.liveline import DRAW_SECONDS, SILENT_SECONDS, LiveLine, Status
from pleiades.runtime.output import Output
from pleiades.simulator.settings import SimulatorSettings
from pleiades.simulator.simulator import Simulator
from pleiades.sinks.inspection import stored_position
from tests.harness.relay import Relay, ingest_flags, since_ms
from tests.harness.settings import settings_of


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What is said about a wrong use, which must end with status 2."""
    try:
        status: object = cli.main(arguments)
    except SystemExit as end:
        status = end.code
    assert status == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("command", ["ingest", "replay", "check", "demo"])
def test_an_unknown_variable_is_an_error_with_a_hint(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PLEIADES_FILE_PUBLISHDIR", "/secret")
    said = refusal(capsys, command)
    assert (
        "there is no variable 'PLEIADES_FILE_PUBLISHDIR' (did you mean PLEIADES_FILE_PUBLISH_DIR?)"
        in said
    )
    assert "secret" not in said


def test_variables_of_other_commands_and_of_kubernetes_are_no_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A Service named pleiades gives each Pod of its namespace these."""
    for name, value in {
        "PLEIADES_FROM": "-2h",
        "PLEIADES_DEMO_RATE": "5",
        "PLEIADES_PORT": "tcp://10.0.0.1:9000",
        "PLEIADES_SERVICE_HOST": "10.0.0.1",
        "PLEIADES_SERVICE_PORT": "9000",
        "PLEIADES_SERVICE_PORT_METRICS": "9000",
        "PLEIADES_PORT_9000_TCP": "tcp://10.0.0.1:9000",
        "PLEIADES_PORT_9000_TCP_ADDR": "10.0.0.1",
        "PLEIADES_WEB_PORT": "tcp://10.0.0.1:80",
    }.items():
        monkeypatch.setenv(name, value)
    assert "no publisher is enabled" in refusal(capsys, "ingest")
    monkeypatch.setenv("PLEIADES_WEB_PORT", "80")
    assert "there is no variable 'PLEIADES_WEB_PORT'" in refusal(capsys, "ingest")


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["ingest", "--kafka.topc", "x"], "there is no flag --kafka.topc (did you mean --kafka.topic?)"),
        (["ingest", "--file.enable", "x"], "--file.enable: 'x' is neither true nor false"),
        (["ingest", "--config", "/nowhere.toml"], "--config: '/nowhere.toml' can't be read: No such"),
        (["replay", "--from", "x"], "--from: 'x' is no time"),
        (["simulate", "--seed", "x"], "--seed: 'x' is not a whole number"),
        (["ingest"], "no publisher is enabled"),
    ],
)  # fmt: skip
def test_errors_of_use_have_one_style(
    arguments: list[str], wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = refusal(capsys, *arguments).splitlines()
    assert first.startswith(f"pleiades {arguments[0]}: {wrong}")
    assert second == f"Try: pleiades help {arguments[0]}"


def test_a_taken_port_has_the_same_status_for_all() -> None:
    """That of `ingest` is in tests/integration/test_lifecycle.py: 1."""
    with Simulator(SimulatorSettings()) as other:
        port = other.url.split(":")[2].split("/")[0]
        with Relay("simulate", f"--port={port}") as second:
            assert second.wait() == 1
    assert "can't listen on 127.0.0.1" in second.log
    assert "choose another --port" in second.log


def test_the_start_says_from_when_on_and_positions_are_times() -> None:
    started = choose_start(None, None, resume=True, since_ms=None, now_ms=1_767_225_600_000)
    assert started.message.endswith(
        "starting with events from 2026-01-01T00:00:00.000Z on (now, less --upstream.overlap)"
    )
    position = {("eqiad.x", 0): 1_767_225_600_001, ("codfw.x", 0): 0}
    assert in_words(position) == "eqiad.x/0 2026-01-01T00:00:00.000Z"
    assert in_words({("codfw.x", 0): 0}) == "no event yet"


@pytest.mark.parametrize("used", ["a file of yours", ".pleiades/checkpoint-recentchange"])
def test_a_demo_does_not_mix_made_up_events_with_others(
    used: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "events" / ".pleiades").mkdir(parents=True)
    # An earlier demo was here, too.
    (tmp_path / "events" / ".pleiades" / "checkpoint-demo").touch()
    (tmp_path / "events" / used).touch()
    if used[0] != ".":
        (tmp_path / "events" / ".pleiades" / "checkpoint-demo").unlink()
    assert "holds something else than the events of demos" in refusal(
        capsys, "demo", "--file.publishDir=events", "--metricsPort=0"
    )


def test_check_says_that_a_stored_position_has_no_event_yet() -> None:
    settings = settings_of("--file.enable")
    (finding, *_) = stored_position(settings, Checkpoint({}, now_ms(), 0), now_ms(), "in /x")
    assert finding.text.endswith("it is empty: no event has come yet")


def test_the_live_line_says_what_is_wrong_in_place_of_a_lag_that_says_nothing() -> None:
    class Terminal(Output):
        drawn = ""

        def isatty(self) -> bool:
            return True

        def draw(self, text: str) -> None:
            self.drawn += text

    now = 0.0
    shown = Terminal(-1)
    line = LiveLine(quiet=False, now=lambda: now, terminal=shown)
    now += DRAW_SECONDS
    line.show(Status(1234, 0.0, 0, None, "since 10:31:00Z can't \x1b[31mwrite"))
    assert "since 10:31:00Z can't" in shown.drawn
    assert "\x1b[31m" not in shown.drawn
    assert "lag" not in shown.drawn
    now += DRAW_SECONDS
    line.show(Status(1234, 0.0, 0, None, ""))
    assert "lag 0.0 s" in shown.drawn
    now += SILENT_SECONDS
    line.show(Status(1234, 0.0, 0, None, ""))
    assert "no event for 10 s · 0 restarts" in shown.drawn
    now += DRAW_SECONDS
    line.show(Status(1235, 0.2, 0, None, ""))
    assert "lag 0.2 s" in shown.drawn


def test_what_is_wrong_is_said_until_it_works_again(tmp_path: Path) -> None:
    """First the upstream is away, then the directory."""
    events = tmp_path / "events"
    with Simulator(SimulatorSettings(rate=100)) as upstream:
        flags = [*ingest_flags(upstream.url, since_ms(upstream)), "--file.enable"]
        upstream.stop()
        with Relay(*flags, f"--file.publishDir={events}") as relay:

            def unready() -> str:
                return requests.get(relay.address + "/readyz", timeout=5).text

            relay.until(lambda: "reader is not ready: since " in unready(), "the reason", 30)
            assert "can't reach http://127.0.0.1" in unready()
            upstream.start()
            relay.wait_for("the upstream serves again, after ")
            relay.wait_ready()
            events.rename(tmp_path / "moved")
            relay.until(lambda: "publisher is not ready: since " in unready(), "the reason", 30)
            assert "can't publish events in" in unready()
            (tmp_path / "moved").rename(events)
            relay.wait_for("can publish events in .* again, after ")
            relay.wait_ready()
            assert relay.stop() == 0
