from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pleiades.runtime.errors import UsageError
from pleiades.simulator.command import simulator_parser
from pleiades.simulator.settings import (
    DEFAULT_EVENTS,
    Cut,
    Disorder,
    Faults,
    SimulatorSettings,
    settings_from,
)
from pleiades.simulator.tls import server_context


def parsed(*flags: str) -> SimulatorSettings:
    return settings_from(vars(simulator_parser().parse_args(flags)))


def test_defaults_are_those_of_the_settings() -> None:
    assert parsed() == SimulatorSettings(port=8080, rate=50.0)
    assert parsed().faults == Faults()
    assert parsed().disorder == Disorder()


def test_durations_and_counts_of_history() -> None:
    assert parsed("--history", "10m", "--rate", "20").history_events == 12_000
    assert parsed("--history", "500").history_events == 500
    spread = parsed("--history", "1h", "--rate", "max", "--events", "7200")
    assert (spread.history_events, spread.max_events) == (7200, 7200)
    assert spread.period_ms() == 500


def test_without_a_rate_there_is_only_a_history() -> None:
    assert parsed("--rate", "0").history_events == DEFAULT_EVENTS
    assert parsed("--rate", "0", "--events", "5").max_events == 5
    assert parsed("--rate", "0", "--history", "9").max_events == 9


def test_faults_arrive_where_they_belong() -> None:
    flags = (
        "--cutEvery 2s --cutBytes 5000 --cutJitter 0 --cut reset --maxConnections 2 "
        "--retryAfter 3s --errorRate 0.1 --errorBurst 5 --hangRate 0.2 --silenceRate 0.3 "
        "--stallRate 0.4 --stall 6s --errorEventRate 0.5 --otherClusterRate 0.6 --deaf 9s "
        "--mirrorLag 30s --chunk 7 --gzip --anyUserAgent"
    )
    assert parsed(*flags.split()).faults == Faults(
        2.0, 5000, 0.0, (Cut.RESET,), 2, 3, 0.1, 5, 0.2, 0.3, 0.4, 6.0, 0.5, 0.6, 9.0, 30.0, 7,
        gzip=True, any_user_agent=True,
    )  # fmt: skip


def test_nature_arrives_where_it_belongs() -> None:
    flags = (
        "--disorder 0 --aheadRate 0.1 --ahead 2h --timestampResolution 1s --codfwShare 0.5 "
        "--canaryEvery 0 --streams a,b,a --partitions 3 --seed 9"
    )
    settings = parsed(*flags.split())
    assert settings.disorder == Disorder(
        factor=0, ahead_rate=0.1, ahead_seconds=7200.0, resolution_ms=1000
    )
    assert (settings.second_share, settings.canary_every_seconds) == (0.5, 0.0)
    assert (settings.streams, settings.partitions, settings.seed) == (("a", "b"), 3, 9)


@pytest.mark.parametrize(
    "flags",
    [
        ("--cutEvery", "2"),
        ("--errorRate", "1.5"),
        ("--errorRate", "nan"),
        ("--port", "-1"),
        ("--partitions", "0"),
        ("--rate", "fast"),
        ("--history", "yesterday"),
        ("--streams", "a,,b"),
        ("--streams", "a\nb"),
        ("--cut", "maybe"),
    ],
)
def test_mistakes_are_refused_with_the_flag_named(
    flags: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parsed(*flags)
    assert f"{flags[0]}: " in capsys.readouterr().err


def test_tls_without_trustme_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trustme", None)
    with pytest.raises(UsageError, match=r"pip install 'pleiades\[simulate\]'"):
        server_context("127.0.0.1", Path("nowhere.pem"), 0)


def test_the_relays_environment_is_not_the_local_upstreams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLEIADES_CONFIG", "nowhere.toml")
    monkeypatch.setenv("PLEIADES_RATE", "7")
    assert parsed().rate == 50.0


def test_an_unknown_flag_gets_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed("--erorRate=1")
    assert "did you mean --errorRate" in capsys.readouterr().err
