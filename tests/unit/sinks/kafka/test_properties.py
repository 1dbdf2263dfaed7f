"""librdkafka's properties: how they are read and refused, and that no value is ever shown."""

from __future__ import annotations

import json
import os
import pickle
import traceback
from pathlib import Path

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from hypothesis import given
from hypothesis import strategies as st

from pleiades.runtime.errors import EXIT_USAGE, UsageError
from pleiades.sinks.kafka import properties
from pleiades.sinks.kafka.destination import KafkaDestination, field_path, topic_name
from tests.harness.settings import kafka_of as destination_of
from tests.harness.settings import settings_of

SECRET = "hunter2"  # noqa: S105  # of a test
SECRET_NAMES = (
    *("sasl.password", "ssl.key.password", "ssl.keystore.password", "ssl.key.pem"),
    *("sasl.oauthbearer.config", "sasl.oauthbearer.client.secret"),
    "sasl.oauthbearer.client.credentials.client.secret",
    "sasl.oauthbearer.assertion.private.key.pem",
    "sasl.oauthbearer.assertion.private.key.passphrase",
)
JAVAS_SECRET_NAMES = ("sasl.jaas.config", "ssl.truststore.password")
PUBLIC_NAMES = (
    *("ssl.key.location", "ssl.certificate.pem", "ssl.ca.pem", "sasl.username", "client.id"),
    *("sasl.mechanism", "sasl.oauthbearer.client.id", "sasl.oauthbearer.token.endpoint.url"),
    "sasl.oauthbearer.assertion.private.key.file",
)

NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,8}(\.[a-z0-9_]{1,8}){0,3}", fullmatch=True)
VALUES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\0")).map(
    lambda text: text.strip(" \t\r\v\f")
)
BLANKS = st.text(" \t\v\f", max_size=3)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PLEIADES_"):
            monkeypatch.delenv(name)


def kafka_of(*arguments: str) -> KafkaDestination:
    return destination_of(settings_of("--kafka.enable", *arguments))


def written(tmp_path: Path, text: str | bytes, name: str = "kafka.properties") -> str:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


# ---- reading ----


def test_a_file_is_read_as_kcat_reads_it(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "\ufeff# a comment = none\r\n\r\n  security.protocol = SASL_SSL\t\r\n"
        "\t# another\nsasl.password=a=b # c\nsasl.username=\nclient.id=first\nclient.id=second",
    )
    assert kafka_of("--kafka.config", path).properties == (
        ("security.protocol", "SASL_SSL"),
        ("sasl.password", "a=b # c"),
        ("sasl.username", ""),
        ("client.id", "second"),
    )


def test_a_file_in_the_home_directory_and_a_pipe_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, "client.id=x")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert properties.read_file("~/kafka.properties") == (("client.id", "x"),)
    reading, writing = os.pipe()
    os.write(writing, b"client.id=y")
    os.close(writing)
    assert properties.read_file(f"/dev/fd/{reading}") == (("client.id", "y"),)
    os.close(reading)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (f"client.id=x\n\n{SECRET}\n", "line 3 is not key=value"),
        (f"client.id=x\n={SECRET}\n", "line 2 has something else than a property's name"),
        # Lines of a key: the text before their padding is not a name.
        (f"MIIEvQ{SECRET}==\n", "line 1 has something else than a property's name"),
        (f"# a\nclient.id={SECRET}\0\n", "line 2 gives client.id a value with a NUL"),
        (f"a=b\nclient.id={SECRET}".encode() + b"\xff\n", "line 2 is not UTF-8"),
        ("\n" * (properties.MAX_FILE_BYTES + 1), "is larger than 1048576 bytes"),
    ],
)
def test_a_wrong_file_is_named_with_its_line_and_without_what_is_in_it(
    tmp_path: Path, content: str | bytes, says: str
) -> None:
    path = written(tmp_path, content)
    with pytest.raises(UsageError) as raised:
        kafka_of(f"--kafka.config={path}")
    assert path in str(raised.value)
    assert says in str(raised.value)
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/nowhere/kafka", "can't read '/nowhere/kafka': No such file or directory"),
        ("/", "can't read '/': Is a directory"),
        ("a\0b", "that is no path"),
        ("~nobody-is-called-so/x", "that is no path"),
        (f"client.id={SECRET}", "a single property goes into --kafka.property"),
    ],
)
def test_a_file_that_can_not_be_read_is_an_error(path: str, says: str) -> None:
    with pytest.raises(UsageError) as raised:
        properties.read_file(path)
    assert says in str(raised.value)
    assert SECRET not in str(raised.value)


@given(st.lists(st.tuples(NAMES, VALUES, BLANKS, BLANKS), max_size=6))
def test_what_is_written_is_read(entries: list[tuple[str, str, str, str]]) -> None:
    lines = ["# a comment", ""]
    for name, value, left, right in entries:
        lines += [f"{left}{name}{right}={left}{value}{right}", right]
    expected = tuple((name, value) for name, value, _, _ in entries)
    assert properties.properties_in("\n".join(lines)) == expected
    assert properties.properties_in("\r\n".join(lines)) == expected


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8")))
def test_any_file_is_read_or_a_usage_error(content: bytes) -> None:
    reading, writing = os.pipe()
    os.write(writing, content)
    os.close(writing)
    try:
        properties.read_file(f"/dev/fd/{reading}")
    except UsageError as error:
        assert "line " in str(error)
    finally:
        os.close(reading)


@given(st.text() | st.text("=#. \nab\udcff\0"))
def test_foreign_text_raises_nothing_but_value_error(text: str) -> None:
    for read in (properties.properties_in, properties.brokers, topic_name, field_path):
        try:
            read(text)
        except ValueError as error:
            assert str(error)


@given(st.text("ab.:[],/1 "))
def test_accepted_brokers_are_accepted_again_and_stay(text: str) -> None:
    try:
        brokers = properties.brokers(text)
    except ValueError:
        return
    assert properties.brokers(brokers) == brokers


# ---- what outranks what ----


def test_a_flag_outranks_the_file_and_the_last_flag_all_others(tmp_path: Path) -> None:
    path = written(tmp_path, "client.id=file\nlinger.ms=1\ndebug=eos\n")
    flags = ["--kafka.property=client.id=a", "--kafka.property", "linger.ms=2\nclient.id=b"]
    assert kafka_of(f"--kafka.config={path}", *flags).properties == (
        ("debug", "eos"),
        ("linger.ms", "2"),
        ("client.id", "b"),
    )


def test_the_other_name_of_a_property_outranks_it_by_standing_behind_it() -> None:
    _, merged = properties.settled(
        (("linger.ms", "1"), ("queue.buffering.max.ms", "2")), (("linger.ms", "3"),)
    )
    assert merged == (("queue.buffering.max.ms", "2"), ("linger.ms", "3"))


@pytest.mark.parametrize("name", ["bootstrap.servers", "metadata.broker.list"])
def test_brokers_may_stand_among_the_properties(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, f"{name}=a:1, b\nclient.id=x\n")
    kafka = kafka_of(f"--kafka.config={path}")
    assert kafka.brokers == "a:1,b:9092"
    assert kafka.properties == (("client.id", "x"),)
    assert kafka_of(f"--kafka.property={name}=c").brokers == "c:9092"


def test_the_last_of_several_brokers_properties_counts(tmp_path: Path) -> None:
    path = written(tmp_path, "metadata.broker.list=a\nbootstrap.servers=b\n")
    assert kafka_of(f"--kafka.config={path}").brokers == "b:9092"
    flag = "--kafka.property=metadata.broker.list=c"
    assert kafka_of(f"--kafka.config={path}", flag).brokers == "c:9092"


@pytest.mark.parametrize("source", ["line", "environment", "file"])
def test_brokers_among_the_properties_must_not_contradict_the_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    # The default value itself: it counts as given, too.
    arguments = ["--kafka.property=bootstrap.servers=other:1"]
    if source == "line":
        arguments += ["--kafka.broker", "localhost:9092"]
    elif source == "environment":
        monkeypatch.setenv("PLEIADES_KAFKA_BROKER", "localhost:9092")
    else:
        toml = written(tmp_path, '[kafka]\nbroker = "localhost:9092"\n', "pleiades.toml")
        arguments += [f"--config={toml}"]
    with pytest.raises(UsageError, match="--kafka.broker says something else") as raised:
        kafka_of(*arguments)
    assert "other" not in str(raised.value)
    arguments[0] = "--kafka.property=bootstrap.servers=localhost"
    assert kafka_of(*arguments).brokers == "localhost:9092"


def test_brokers_among_the_properties_are_checked_and_not_shown() -> None:
    with pytest.raises(UsageError, match="bootstrap.servers must be host:port") as raised:
        kafka_of(f"--kafka.property=bootstrap.servers=SASL_SSL://{SECRET}:1")
    assert SECRET not in str(raised.value)


# ---- what is refused ----


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("enable.idempotence", ["true", "True", "1"], ["false", "0", ""]),
        ("acks", ["all", "ALL", "-1"], ["0", "1", "2", ""]),
        ("request.required.acks", ["all"], ["1"]),
        ("max.in.flight", ["1", "5"], ["6", "0", "0x4", "5x"]),
        ("max.in.flight.requests.per.connection", ["5"], ["6"]),
        ("enable.gapless.guarantee", ["false"], ["true"]),
        ("queuing.strategy", ["fifo"], ["lifo"]),
        ("partitioner", ["murmur2", "consistent_random"], ["random"]),
        ("isolation.level", ["read_committed", "READ_COMMITTED"], ["read_uncommitted"]),
        ("enable.auto.commit", ["false", "F", "0"], ["true"]),
        ("auto.commit.enable", ["false"], ["true"]),
        ("enable.auto.offset.store", ["false"], ["true"]),
        ("offset.store.method", ["broker", "none"], ["file"]),
        ("allow.auto.create.topics", ["false"], ["true"]),
        ("transactional.id", [], ["x", ""]),
        ("group.id", [], ["x"]),
        ("group.instance.id", [], ["x"]),
        ("compression.codec", [], ["zstd"]),
        ("compression.type", [], ["zstd"]),
        ("queue.buffering.max.messages", [], ["1000"]),
        ("queue.buffering.max.kbytes", [], ["1000"]),
        ("message.max.bytes", [], ["1000"]),
        ("queued.max.messages.kbytes", [], ["1000"]),
        ("fetch.queue.backoff.ms", [], ["5"]),
        ("delivery.report.only.error", [], ["false"]),
        ("auto.offset.reset", [], ["earliest"]),
        ("enable.partition.eof", [], ["true"]),
        ("topic.blacklist", [], ["x"]),
        ("statistics.interval.ms", [], ["0"]),
        ("enabled_events", [], ["0"]),
        ("log.queue", [], ["true"]),
        ("internal.termination.signal", [], ["9"]),
        ("plugin.library.paths", [], ["x"]),
        ("test.mock.num.brokers", [], ["3"]),
    ],
)
def test_what_would_break_the_promises_is_refused(
    name: str, good: list[str], bad: list[str]
) -> None:
    for value in good:
        properties.refuse(((name, value), (f"topic.{name}", value)))
        assert kafka_of(f"--kafka.property={name}={value}").properties == ((name, value),)
    for value in bad:
        for spelled in (name, f"topic.{name}"):
            with pytest.raises(UsageError) as raised:
                properties.refuse(((spelled, value),))
            assert spelled in str(raised.value)
            assert properties.RULES[name].why in str(raised.value)


def test_every_rule_is_tried_above() -> None:
    marks = test_what_would_break_the_promises_is_refused.pytestmark  # type: ignore[attr-defined]
    assert {case[0] for case in marks[0].args[1]} == set(properties.RULES)


@pytest.mark.parametrize(
    "name", ["dr_cb", "stats_cb", "oauth_cb", "logger", "on_delivery", "default.topic.config"]
)
def test_what_text_can_not_set_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="a program's object"):
        kafka_of(f"--kafka.property={name}=x")


def test_a_shared_file_with_what_is_free_is_accepted(tmp_path: Path) -> None:
    text = (
        "bootstrap.servers=pkc.example.org:9092\nsecurity.protocol=SASL_SSL\nacks=all\n"
        f"sasl.mechanisms=PLAIN\nsasl.username=u\nsasl.password={SECRET}\n"
        "session.timeout.ms=45000\nclient.id=x\ntransaction.timeout.ms=90000\n"
        "message.timeout.ms=1000\ndebug=eos\nlog_level=7\nbatch.num.messages=10\n"
    )
    kafka = kafka_of(f"--kafka.config={written(tmp_path, text)}")
    assert len(kafka.properties) == text.count("\n") - 1


def test_a_refused_property_that_is_outranked_does_no_harm(tmp_path: Path) -> None:
    path = written(tmp_path, "acks=1\n")
    with pytest.raises(UsageError, match="acks must be all"):
        kafka_of(f"--kafka.config={path}")
    assert kafka_of(f"--kafka.config={path}", "--kafka.property=acks=all").properties


@pytest.mark.parametrize(
    ("timeout", "interval", "fits"), [("10000", "10s", False), ("10001", "10s", True)]
)
def test_a_transaction_may_take_as_long_as_a_commit(
    timeout: str, interval: str, fits: bool
) -> None:
    arguments = [
        f"--kafka.commitInterval={interval}",
        f"--kafka.property=transaction.timeout.ms={timeout}",
    ]
    if fits:
        assert kafka_of(*arguments)
    else:
        with pytest.raises(UsageError, match="longer than --kafka.commitInterval"):
            kafka_of(*arguments)


@pytest.mark.parametrize("name", sorted({*properties.RULES, *SECRET_NAMES, *PUBLIC_NAMES}))
def test_the_installed_librdkafka_knows_the_names(name: str) -> None:
    """A rule for a misspelt name would protect nothing."""
    with pytest.raises((KafkaException, TypeError)) as raised:
        # The second property keeps librdkafka from creating a client.
        AdminClient({name: "x", "no.such.property": "x"})
    assert f'No such configuration property: "{name}"' not in str(raised.value)


# ---- secrets ----


def test_secret_names_are_told_from_public_ones() -> None:
    secret = (*SECRET_NAMES, *JAVAS_SECRET_NAMES)
    assert [name for name in secret if not properties.is_secret(name)] == []
    assert [name for name in PUBLIC_NAMES if properties.is_secret(name)] == []


def test_a_secret_may_come_from_the_file_the_environment_and_toml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = f"sasl.password={SECRET}"
    expected = (("sasl.password", SECRET),)
    assert kafka_of(f"--kafka.config={written(tmp_path, entry)}").properties == expected
    toml = written(tmp_path, f'[kafka]\nproperty = ["{entry}"]\n', "pleiades.toml")
    assert kafka_of(f"--config={toml}").properties == expected
    monkeypatch.setenv("PLEIADES_KAFKA_PROPERTY", entry)
    assert kafka_of().properties == expected


def test_settings_do_not_show_properties_and_reach_other_processes(tmp_path: Path) -> None:
    kafka = kafka_of(f"--kafka.config={written(tmp_path, f'sasl.password={SECRET}')}")
    assert SECRET not in repr(kafka)
    assert SECRET not in str(kafka)
    assert pickle.loads(pickle.dumps(kafka)) == kafka  # noqa: S301  # as a child process gets it


@pytest.mark.parametrize(
    "arguments",
    [
        *([f"--kafka.property={name}={SECRET}"] for name in SECRET_NAMES + JAVAS_SECRET_NAMES),
        ["--kafka.property", f"sasl.password={SECRET}"],
        ["--kafka.property", f" sasl.password ={SECRET}"],
        ["--kafka.property", f"SASL.Password={SECRET}"],
        ["--kafka.property", f"client.id=x\nsasl.password={SECRET}"],
        [f"--kafka.property=client.id=x\nsasl.password={SECRET}"],
        ["--kafka.property=client.id=x", f"sasl.password={SECRET}"],
        ["--kafka.property", f"topic.sasl.password={SECRET}"],
        ["--kafka.config", f"sasl.password={SECRET}"],
        [f"--kafka.config=sasl.password={SECRET}"],
        [f"--kafka.propertty=sasl.password={SECRET}"],
        [f"--kafka.enable=sasl.password={SECRET}"],
        [f"--kafka.sasl.password={SECRET}"],
        ["--kafka.sasl.password", SECRET],
        [f"-Xsasl.password={SECRET}"],
        ["-X", f"sasl.password={SECRET}"],
        ["--help", "--kafka.property", f"sasl.password={SECRET}"],
    ],
)
def test_a_secret_on_the_command_line_is_refused_and_not_shown_again(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    shown = everything_shown(capsys, *arguments)
    assert "is secret, and everybody can read a command line (ps)" in shown
    assert "$PLEIADES_KAFKA_PROPERTY" in shown


def test_what_only_looks_like_a_secret_is_accepted() -> None:
    assert kafka_of(
        "--kafka.property=client.id=password=x y",
        "--kafka.property=ssl.key.location=/etc/password=/secret",
        "--upstream.url=http://127.0.0.1/password=/x",
    )


@pytest.mark.parametrize(
    "arguments",
    [
        [f"--kafka.property={SECRET}"],
        ["--kafka.property", SECRET],
        ["--kafka.property", f"={SECRET}"],
        ["--kafka.property", f"MII{SECRET}="],
        ["--kafka.property", f"sasl.mechanism:{SECRET}"],
        ["--kafka.property", f"client.id=x\n{SECRET}"],
        ["--kafka.property", f"client.id={SECRET}\udcff"],
        ["--kafka.property", f"client.id={SECRET}\0"],
        ["--kafka.property", "client.id=x", SECRET],
        ["--kafka.property", f"acks={SECRET}"],
        ["--kafka.property", f"bootstrap.servers={SECRET}:x"],
        ["--kafka.property", f"dr_cb={SECRET}"],
        ["--kafka.property", f"transactional.id={SECRET}"],
        ["--kafka.propertty", f"client.id={SECRET}"],
        [f"--kafka.propertty=client.id={SECRET}"],
        ["--kafka.config", f"client.id={SECRET}"],
    ],
)
def test_no_error_of_the_command_line_shows_a_value(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    everything_shown(capsys, *arguments)


@pytest.mark.parametrize(
    "text",
    [
        *(SECRET, f"={SECRET}", f"sasl.password {SECRET}", f"sasl.password={SECRET}\0"),
        *(f"acks={SECRET}", f"transactional.id={SECRET}", f"bootstrap.servers={SECRET}:x"),
        *(f"[{SECRET}]", f'["client.id={SECRET}"', f"sasl.password={SECRET}\n{SECRET}"),
    ],
)
def test_no_error_of_environment_or_file_shows_a_value(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str,
) -> None:
    everything_shown(capsys, f"--kafka.config={written(tmp_path, text)}")
    # A JSON string is a TOML string.
    toml = f'[kafka]\nproperty = ["client.id=x", {json.dumps(text)}]\n'
    everything_shown(capsys, f"--config={written(tmp_path, toml, 'pleiades.toml')}")
    if "\0" not in text:
        monkeypatch.setenv("PLEIADES_KAFKA_PROPERTY", text)
        everything_shown(capsys)


@pytest.mark.parametrize(
    "text",
    [
        f'[kafka.property]\n"sasl.password" = "{SECRET}"\n',
        f'[kafka]\n"sasl.password" = "{SECRET}"\n',
        f'[kafka]\npropertty = ["sasl.password={SECRET}"]\n',
        f'[kafka]\nproperty = [1, "sasl.password={SECRET}"]\n',
        f'[kafka]\nproperty = ["sasl.password={SECRET}"\n',
        f'[kafka]\nproperty = "sasl.password={SECRET}\n',
        f"[kafka]\nproperty = sasl.password={SECRET}\n",
        f"[kafka]\nproperty = ['a=b']\nproperty = ['sasl.password={SECRET}']\n",
    ],
)
def test_no_error_of_the_toml_file_shows_a_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    everything_shown(capsys, f"--config={written(tmp_path, text, 'pleiades.toml')}")


def everything_shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """All output of a usage error, however it is raised; it never contains the secret."""
    with pytest.raises((SystemExit, UsageError)) as raised:
        kafka_of(*arguments)
    status = getattr(raised.value, "exit_status", getattr(raised.value, "code", None))
    assert status == EXIT_USAGE
    printed = capsys.readouterr()
    trace = "".join(traceback.format_exception_only(raised.value))
    shown = f"{printed.out}{printed.err}{trace}"
    assert SECRET not in shown
    return shown


def test_values_are_taken_out_of_what_librdkafka_says() -> None:
    given = (("sasl.mechanism", "hunter2"), ("security.protocol", "ssl"), ("sasl.password", "pa"))
    said = 'Unsupported mechanism: hunter2; ssl.ca.location, "ssl", hunter23, xpax'
    shown = 'Unsupported mechanism: …; ssl.ca.location, "…", hunter23, x…x'
    assert properties.without_values(said, given) == shown
    assert properties.without_values("as it is", (("client.id", ""),)) == "as it is"


@given(VALUES.filter(lambda value: value and "…" not in value), st.text(), st.text())
def test_no_secret_stays_in_what_librdkafka_says(value: str, before: str, after: str) -> None:
    text = properties.without_values(before + value + after, (("sasl.password", value),))
    assert value not in text


def test_paths_hold_in_any_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The relay leaves the directory in which it was started."""
    monkeypatch.chdir(tmp_path)
    given = (("ssl.ca.location", "ca.pem"), ("sasl.kerberos.keytab", "keytab"), ("client.id", "a"))
    absolute = (
        ("ssl.ca.location", f"{tmp_path}/ca.pem"),
        ("sasl.kerberos.keytab", f"{tmp_path}/keytab"),
        ("client.id", "a"),
    )
    assert properties.settled(given) == (None, absolute)
    assert properties.settled(absolute) == (None, absolute)
    probing = (("ssl.ca.location", "probe"),)
    assert properties.settled(probing) == (None, probing)
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert properties.settled(absolute) == (None, absolute)
    with pytest.raises(UsageError, match="working directory is gone"):
        properties.settled(given)
