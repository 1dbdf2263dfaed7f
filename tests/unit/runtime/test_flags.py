"""Flags, environment and file: what each says, and which of them wins."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from pleiades.runtime.arguments import ingest_parser, settings_from
from pleiades.runtime.errors import UsageError
from pleiades.runtime.flags import environment_name, joined_negatives
from pleiades.runtime.settings import Settings


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("PLEIADES_"):
            monkeypatch.delenv(name)


def settings_of(*arguments: str) -> Settings:
    parser = ingest_parser("ingest", "")
    return settings_from(parser.parse_args(joined_negatives(arguments)))


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        settings_of(*arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def toml(tmp_path: Path, text: str) -> str:
    path = tmp_path / "pleiades.toml"
    path.write_text(text)
    return f"--config={path}"


def test_defaults_are_those_of_the_documentation() -> None:
    settings = settings_of("--file.enable")
    assert settings.files is not None
    assert settings.files.publish_dir == Path("events")
    assert settings.files.sync == "batch"
    assert settings.kafka is None
    assert settings.resume is True
    assert settings.since_ms is None
    assert settings.parsers == 1
    assert settings.window_seconds == 600
    assert settings.max_entries == 500_000
    assert (settings.metrics_host, settings.metrics_port) == ("", 9000)
    assert settings.log_level == logging.INFO
    assert settings.log_format == "text"
    upstream = settings.upstream
    assert upstream.url == "https://stream.wikimedia.org/v2/stream"
    assert upstream.streams == ("recentchange",)
    assert (upstream.overlap_seconds, upstream.idle_timeout_seconds) == (60, 60)
    assert upstream.keep_canaries is False


def test_kafka_flags_are_read() -> None:
    settings = settings_of("--kafka.enable", "--kafka.broker=a:1,b:2", "--kafka.topic", "t")
    assert settings.files is None
    assert settings.kafka is not None
    assert (settings.kafka.broker, settings.kafka.topic) == ("a:1,b:2", "t")


@pytest.mark.parametrize(
    ("flag", "name"),
    [
        ("--file.publishDir", "PLEIADES_FILE_PUBLISH_DIR"),
        ("--upstream.idleTimeout", "PLEIADES_UPSTREAM_IDLE_TIMEOUT"),
        ("--metricsPort", "PLEIADES_METRICS_PORT"),
        ("--resume", "PLEIADES_RESUME"),
        ("--dedup.maxEntries", "PLEIADES_DEDUP_MAX_ENTRIES"),
    ],
)
def test_environment_names(flag: str, name: str) -> None:
    assert environment_name(flag) == name


@pytest.mark.parametrize(
    ("arguments", "resume"),
    [
        ([], True),
        (["-r"], True),
        (["-r=false"], False),
        (["-r", "false"], False),
        (["--resume=false"], False),
        (["--resume=no"], False),
        (["--no-resume"], False),
        (["--no-resume", "--resume"], True),
        (["--resume=true"], True),
    ],
)
def test_every_spelling_of_resume(arguments: list[str], resume: bool) -> None:
    assert settings_of("--file.enable", *arguments).resume is resume


def test_command_line_beats_environment_beats_file_beats_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toml(
        tmp_path, '[file]\nenable = true\npublishDir = "from-file"\n[upstream]\noverlap = "5s"\n'
    )
    monkeypatch.setenv("PLEIADES_FILE_PUBLISH_DIR", "from-environment")

    def publish_dir(*arguments: str) -> str:
        files = settings_of(config, *arguments).files
        assert files is not None
        return str(files.publish_dir)

    assert publish_dir() == "from-environment"
    assert publish_dir("--file.publishDir", "from-line") == "from-line"
    monkeypatch.delenv("PLEIADES_FILE_PUBLISH_DIR")
    assert publish_dir() == "from-file"
    assert settings_of(config).upstream.overlap_seconds == 5


@pytest.mark.parametrize("unset", ["--no-resume", "--resume=false", "-r=false"])
def test_a_boolean_of_the_file_can_be_unset(tmp_path: Path, unset: str) -> None:
    config = toml(tmp_path, "resume = true\n[file]\nenable = true\n")
    assert settings_of(config).resume is True
    assert settings_of(config, unset).resume is False


@pytest.mark.parametrize("unset", ["--no-upstream.keepCanaries", "--upstream.keepCanaries=off"])
def test_a_boolean_of_the_environment_can_be_unset(
    monkeypatch: pytest.MonkeyPatch, unset: str
) -> None:
    monkeypatch.setenv("PLEIADES_UPSTREAM_KEEP_CANARIES", "true")
    assert settings_of("--file.enable").upstream.keep_canaries is True
    assert settings_of("--file.enable", unset).upstream.keep_canaries is False


def test_the_file_may_switch_a_boolean_off(tmp_path: Path) -> None:
    assert settings_of(toml(tmp_path, "resume = false\nfile.enable = true")).resume is False


def test_the_files_name_may_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toml(tmp_path, "parsers = 3\nfile.enable = true")
    monkeypatch.setenv("PLEIADES_CONFIG", config.removeprefix("--config="))
    assert settings_of().parsers == 3


def test_a_date_of_the_file_is_a_start(tmp_path: Path) -> None:
    config = toml(tmp_path, "file.enable = true\nsince = 2026-01-01\n")
    assert settings_of(config).since_ms == 1_767_225_600_000


def test_a_list_of_the_file_becomes_streams(tmp_path: Path) -> None:
    config = toml(
        tmp_path, 'file.enable = true\nupstream.stream = ["recentchange", "page-create"]\n'
    )
    assert settings_of(config).upstream.streams == ("recentchange", "page-create")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("metricsport = 1", "unknown key 'metricsport'; did you mean 'metricsPort'?"),
        ("[file]\nnable = true", "unknown key 'file.nable'"),
        ("no-resume = true", "unknown key 'no-resume'"),
        ("config = 'x'", "unknown key 'config'"),
        ("help = true", "unknown key 'help'"),
        ("metricsPort = ", "is not valid TOML"),
        ("parsers = 'many'", "'many' is not a whole number"),
        ("resume = 'perhaps'", "'perhaps' is neither true nor false"),
        ("parsers = [1, 2]", "can't be a list"),
    ],
)
def test_a_wrong_file_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, says: str
) -> None:
    assert says in error_of(capsys, toml(tmp_path, text), "--file.enable")


def test_a_missing_file_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert "/nowhere/x.toml" in error_of(capsys, "--config=/nowhere/x.toml", "--file.enable")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--since=banana"], "'banana' is no time"),
        (["--since=2999-01-01"], "lies in the future"),
        (["--upstream.url=ftp://x"], "no URL"),
        (["--upstream.url=http://x/?a=b"], "base URL"),
        (["--upstream.stream=a/../b"], "no name of a stream"),
        (["--upstream.stream=a,a"], "names a stream twice"),
        (["--upstream.stream="], "no name of a stream"),
        (["--upstream.contact=me"], "no way to reach you"),
        (["--upstream.contact=a@b\r\nX: y"], "can't stand in a User-Agent"),
        (["--upstream.overlap=0s"], "too short"),
        (["--upstream.overlap=60"], "60"),
        (["--parsers=0"], "not between 1"),
        (["--metricsPort=70000"], "not between 0"),
        (["--file.sync=maybe"], "none of batch, none"),
        (["--file.publishDir="], "needs the path"),
        (["--log.format=xml"], "none of text, json"),
        (["--no-resume=true"], "takes no value"),
        (["--file.publish=x"], "unrecognized arguments"),
    ],
)
def test_a_wrong_flag_is_an_error(
    capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert says in error_of(capsys, "--file.enable", *arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "add --file.enable"),
        (["--file.enable", "--kafka.enable"], "take away --file.enable or --kafka.enable"),
        (["--file.enable", "-q", "-v"], "exclude each other"),
    ],
)
def test_contradictions_say_what_to_do(arguments: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        settings_of(*arguments)


def test_since_takes_a_negative_duration_as_its_own_word() -> None:
    first = settings_of("--file.enable", "--since", "-2h").since_ms
    second = settings_of("--file.enable", "--since=-2h").since_ms
    assert first is not None
    assert second is not None
    assert 0 <= second - first < 60_000


def test_help_tells_default_environment_and_unit_of_each_flag() -> None:
    text = " ".join(ingest_parser("ingest", "").format_help().split())
    for flag in ("--file.publishDir DIR", "--upstream.overlap DURATION", "--metricsPort PORT"):
        assert flag in text
    for name in ("PLEIADES_FILE_PUBLISH_DIR", "PLEIADES_RESUME", "PLEIADES_LOG_FORMAT"):
        assert f"${name}" in text
    assert "[default: ./events; $PLEIADES_FILE_PUBLISH_DIR]" in text
