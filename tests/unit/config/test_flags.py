"""Flags, environment and file: their values, and their precedence."""

from __future__ import annotations

import logging
import re
import signal
from pathlib import Path

import pytest

from pleiades import cli, demo
from pleiades.config.sources import HelpRequested
from pleiades.runtime.errors import UsageError
from pleiades.sinks.files.destination import FilesDestination
from pleiades.sinks.kafka.destination import DEAD_LETTERS_SUFFIX, KafkaDestination
from pleiades.sinks.registry import relay_parser
from tests.harness.settings import files_of, settings_of
from tests.harness.settings import kafka_of as destination_of


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("PLEIADES_"):
            monkeypatch.delenv(name)


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
    assert files_of(settings) == FilesDestination("recentchange", Path("events"), "batch")
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


def kafka_of(*arguments: str) -> KafkaDestination:
    return destination_of(settings_of("--kafka.enable", *arguments))


def test_defaults_of_kafka_are_those_of_the_documentation() -> None:
    assert kafka_of() == KafkaDestination(
        brokers="localhost:9092",
        topic="pleiades-events",
        partitions=1,
        replication=0,
        compression="zstd",
        commit_interval_seconds=0.2,
        key_field=(),
        properties=(),
        position_name="recentchange",
    )


def test_kafka_flags_are_read() -> None:
    assert kafka_of(
        "--kafka.broker=a:1,b:2",
        *("--kafka.topic", "t", "--kafka.partitions=3", "--kafka.replication=2"),
        *("--kafka.compression=lz4", "--kafka.commitInterval=5ms", "--kafka.keyField=meta.domain"),
        *("--kafka.property", "linger.ms=1", "--kafka.property=client.id=a=b, [c]"),
        "--upstream.stream=recentchange,page-create",
    ) == KafkaDestination(
        brokers="a:1,b:2",
        topic="t",
        partitions=3,
        replication=2,
        compression="lz4",
        commit_interval_seconds=0.005,
        key_field=("meta", "domain"),
        properties=(("linger.ms", "1"), ("client.id", "a=b, [c]")),
        position_name="page-create+recentchange",
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--kafka.broker="], "is no broker such as"),
        (["--kafka.broker=a:1,"], "is no broker such as"),
        (["--kafka.broker=a:0"], "between 1 and 65535"),
        (["--kafka.broker=a:65536"], "between 1 and 65535"),
        (["--kafka.broker=a:999999999999999"], "between 1 and 65535"),
        (["--kafka.broker=a:b"], "is no broker such as"),
        (["--kafka.broker=::1"], "is no broker such as"),
        (["--kafka.broker=[::1"], "is no broker such as"),
        (["--kafka.broker=[a]:1"], "is no broker such as"),
        (["--kafka.broker=a b:1"], "is no broker such as"),
        (["--kafka.broker=SASL_SSL://a:1"], "security.protocol"),
        (["--kafka.topic="], "is no topic's name"),
        (["--kafka.topic=."], "is no topic's name"),
        (["--kafka.topic=.."], "is no topic's name"),
        (["--kafka.topic=a/b"], "is no topic's name"),
        (["--kafka.topic=ä"], "is no topic's name"),
        (["--kafka.topic=" + "t" * 237], "237 characters; at most 236"),
        (["--kafka.partitions=0"], "not between 1"),
        (["--kafka.replication=-1"], "not between 0"),
        (["--kafka.compression=brotli"], "none of none, gzip"),
        (["--kafka.commitInterval=4ms"], "too short: at least 0.005s"),
        (["--kafka.commitInterval=61s"], "too long: at most 60s"),
        (["--kafka.keyField=.wiki"], "no path of a field"),
        (["--kafka.keyField=meta..domain"], "no path of a field"),
        (["--kafka.keyField=meta. domain"], "no path of a field"),
    ],
)
def test_a_wrong_kafka_flag_is_an_error(
    capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert says in error_of(capsys, "--kafka.enable", *arguments)


@pytest.mark.parametrize(
    ("given", "brokers"),
    [
        ("a", "a:9092"),
        ("a:1, b_2.example.org.:65535", "a:1,b_2.example.org.:65535"),
        ("127.0.0.1:1", "127.0.0.1:1"),
        ("[::1]", "[::1]:9092"),
        ("[2001:db8::1]:1,a", "[2001:db8::1]:1,a:9092"),
    ],
)
def test_every_broker_gets_a_port(given: str, brokers: str) -> None:
    assert kafka_of(f"--kafka.broker={given}").brokers == brokers


def test_the_longest_topic_leaves_room_for_its_dead_letters() -> None:
    topic = kafka_of("--kafka.topic=" + "t" * 236).topic
    assert len(topic + DEAD_LETTERS_SUFFIX) == 249


AWKWARD = ["client.id=a, b", "sasl.username=[x, y]", 'ssl.providers="d"', "sasl.password=p=q, [r]"]
AWKWARD_PAIRS = (
    ("client.id", "a, b"),
    ("sasl.username", "[x, y]"),
    ("ssl.providers", '"d"'),
    ("sasl.password", "p=q, [r]"),
)


def test_the_environment_gives_one_property_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLEIADES_KAFKA_PROPERTY", "\n# a comment\n" + "\n".join(AWKWARD) + "\n")
    assert kafka_of().properties == AWKWARD_PAIRS


def test_brackets_around_the_environments_properties_are_not_taken_for_a_list(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PLEIADES_KAFKA_PROPERTY", "client.id=[a,b]\nsasl.username=[c]")
    assert kafka_of().properties == (("client.id", "[a,b]"), ("sasl.username", "[c]"))


def test_the_file_gives_a_list_of_properties(tmp_path: Path) -> None:
    config = toml(tmp_path, f"[kafka]\nenable = true\nproperty = {AWKWARD}\n")
    assert kafka_of(config).properties == AWKWARD_PAIRS


def test_the_file_may_give_properties_as_lines(tmp_path: Path) -> None:
    config = toml(tmp_path, "[kafka]\nproperty = '''\n" + "\n".join(AWKWARD) + "\n'''\n")
    assert kafka_of(config).properties == AWKWARD_PAIRS


def test_a_property_of_the_files_list_can_not_hold_another_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = toml(tmp_path, '[kafka]\nproperty = ["client.id=hunter2\\nacks=1"]\n')
    error = error_of(capsys, config, "--kafka.enable")
    assert "'kafka.property' can't be a list with a line break" in error
    assert "hunter2" not in error


def test_properties_of_the_line_replace_those_of_the_environment_and_these_those_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toml(tmp_path, '[kafka]\nproperty = ["client.id=file", "linger.ms=1"]\n')
    assert kafka_of(config).properties == (("client.id", "file"), ("linger.ms", "1"))
    monkeypatch.setenv("PLEIADES_KAFKA_PROPERTY", "client.id=environment")
    assert kafka_of(config).properties == (("client.id", "environment"),)
    line = kafka_of(config, "--kafka.property=client.id=line")
    assert line.properties == (("client.id", "line"),)
    monkeypatch.setenv("PLEIADES_KAFKA_PROPERTY", "")
    assert kafka_of(config).properties == ()


def test_the_commented_kafka_section_of_the_example_can_be_used(tmp_path: Path) -> None:
    example = Path(__file__).resolve().parents[3] / "deploy" / "pleiades.toml"
    section = re.search(r"^# \[kafka\]\n(?:# .*\n)+", example.read_text(), re.MULTILINE)
    assert section is not None
    secret = tmp_path / "kafka.properties"
    secret.write_text("sasl.password=x\n")
    text = re.sub("^# ?", "", section[0], flags=re.MULTILINE)
    kafka = destination_of(settings_of(toml(tmp_path, text), f"--kafka.config={secret}"))
    assert kafka.key_field == ("wiki",)
    assert [name for name, _ in kafka.properties] == [
        *("sasl.password", "security.protocol", "sasl.mechanism")
    ]


def test_a_command_can_lack_a_whole_group_of_flags(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PLEIADES_KAFKA_TOPIC", "not a topic")
    parser = relay_parser("x", destinations=[FilesDestination])
    assert "kafka" not in parser.format_help()
    assert "kafka.topic" not in vars(parser.parse_args([]))
    with pytest.raises(SystemExit):
        parser.parse_args(["--kafka.topic=t"])
    assert "there is no flag --kafka.topic\n" in capsys.readouterr().err


def test_demo_has_no_flag_of_kafka() -> None:
    with pytest.raises(HelpRequested) as asked:
        demo.run(["--help"], "")
    assert "--file.publishDir" in str(asked.value)
    assert "--kafka" not in str(asked.value)


def test_an_unknown_argument_is_named_without_its_value(capsys: pytest.CaptureFixture[str]) -> None:
    error = error_of(capsys, "--file.enable", "--nonsense=one", "-x", "--xyz", "two", "-three")
    unknown = "; ".join(f"there is no flag {name}" for name in ("--nonsense", "-x", "--xyz"))
    assert f"{unknown}; 1 value without a flag\n" in error
    assert not re.search("one|two|three", error.replace("nonsense", ""))


@pytest.mark.parametrize(
    ("flag", "name"),
    [
        ("--file.publishDir", "PLEIADES_FILE_PUBLISH_DIR"),
        ("--upstream.idleTimeout", "PLEIADES_UPSTREAM_IDLE_TIMEOUT"),
        ("--metricsPort", "PLEIADES_METRICS_PORT"),
        ("--resume", "PLEIADES_RESUME"),
        ("--dedup.maxEntries", "PLEIADES_DEDUP_MAX_ENTRIES"),
        ("--kafka.commitInterval", "PLEIADES_KAFKA_COMMIT_INTERVAL"),
        ("--kafka.property", "PLEIADES_KAFKA_PROPERTY"),
    ],
)
def test_environment_names(flag: str, name: str) -> None:
    (found,) = [each for each in relay_parser("ingest")._actions if flag in each.option_strings]
    assert found.env_var == name


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
        return str(files_of(settings_of(config, *arguments)).publish_dir)

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
        ("metricsport = 1", "unknown key 'metricsport' (did you mean metricsPort?)"),
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


@pytest.mark.parametrize(
    ("flag", "near"),
    [
        ("--kafka.brokers=a:1", "--kafka.brokers (did you mean --kafka.broker?)"),
        ("--publishDir", "--publishDir (did you mean --file.publishDir?)"),
        ("--qiet", "--qiet (did you mean --quiet?)"),
        ("--metricsport=1", "--metricsport (did you mean --metricsPort?)"),
    ],
)
def test_an_unknown_flag_gets_a_hint_at_the_nearest_one(
    capsys: pytest.CaptureFixture[str], flag: str, near: str
) -> None:
    assert f"there is no flag {near}\n" in error_of(capsys, "--file.enable", flag)


@pytest.mark.parametrize("wrong", ["--nonsense", "--since=banana", "--config=/nowhere"])
@pytest.mark.parametrize("command", ["ingest", "replay"])
def test_an_error_says_where_the_flags_are_explained(
    capsys: pytest.CaptureFixture[str], command: str, wrong: str
) -> None:
    with pytest.raises(SystemExit):
        relay_parser(command).parse_args([wrong])
    assert f"\nTry: pleiades help {command}\n" in capsys.readouterr().err


def test_a_contradiction_says_where_the_flags_are_explained(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert cli.main(["ingest"]) == 2
    publishers = "--file.enable or --kafka.enable or --archive.enable"
    assert f"add {publishers}\nTry: pleiades help ingest\n" in capsys.readouterr().err
    assert cli.main(["help", "nonsense"]) == cli.main(["nonsense"]) == 2
    assert capsys.readouterr().err.endswith("\nTry: pleiades help\n")


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    assert settings_of(toml(tmp_path, "\ufeffparsers = 3\nfile.enable = true\n")).parsers == 3


def test_a_file_that_is_not_utf_8_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pleiades.toml"
    path.write_bytes(b"parsers = 3 # \xff\n")
    assert "is not valid TOML" in error_of(capsys, f"--config={path}", "--file.enable")


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
        (["--file.publish=x"], "there is no flag"),
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
    text = " ".join(relay_parser("ingest").format_help().split())
    for flag in ("--file.publishDir DIR", "--upstream.overlap DURATION", "--metricsPort PORT"):
        assert flag in text
    for name in ("PLEIADES_FILE_PUBLISH_DIR", "PLEIADES_RESUME", "PLEIADES_LOG_FORMAT"):
        assert f"${name}" in text
    assert "[default: ./events; $PLEIADES_FILE_PUBLISH_DIR]" in text


@pytest.mark.parametrize(
    ("command", "metrics_port", "resume"),
    [("ingest", 9000, True), ("check", 9000, True), ("replay", 0, True), ("demo", 9000, False)],
)
def test_some_commands_have_other_defaults(command: str, metrics_port: int, resume: bool) -> None:
    parsed = vars(relay_parser(command).parse_args([]))
    assert (parsed["metricsPort"], parsed["resume"]) == (metrics_port, resume)
    assert f"[default: {metrics_port};" in relay_parser(command).format_help()


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        *(("replay", "--resume"), ("replay", "--since=now"), ("demo", "--upstream.url=http://x")),
        *(("ingest", "--dry-run"), ("ingest", "--from=now"), ("demo", "--file.enable")),
    ],
)
def test_some_commands_lack_a_flag(
    capsys: pytest.CaptureFixture[str], command: str, flag: str
) -> None:
    with pytest.raises(SystemExit):
        relay_parser(command).parse_args([flag])
    assert f"there is no flag {flag.partition('=')[0]}" in capsys.readouterr().err
