"""The user's librdkafka properties: how they are read, which are refused, and that none is shown.

Law: no message of this module contains a value. Nor does it contain a name that can't be one: what
stands before an `=` may be a line of a private key.

A property is refused where it would break what the relay promises (one transactional producer, and a
consumer that reads its topic back), or where text can't set it. All others are librdkafka's to check:
https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from pleiades.runtime.errors import UsageError
from pleiades.runtime.settings import brokers

Properties = tuple[tuple[str, str], ...]
"""Names and values, in the order in which librdkafka is told: a later one outranks an earlier one."""

MAX_FILE_BYTES = 1024 * 1024

_BROKERS = ("bootstrap.servers", "metadata.broker.list")
_NAME = re.compile(r"[a-z][a-z0-9_]*(?:\.[a-z0-9_]+)*")
# By their parts, so that misplaced (--sasl.password=x), Java's and future ones are secret too.
_SECRET = re.compile(
    r"password|passphrase|secret|key\.pem\b|\bjaas\.config\b|\boauthbearer\.config\b", re.IGNORECASE
)
# Not all that Python takes for white space: a password may end with one of those.
_BLANKS = " \t\r\v\f"


# ---- reading ----


def properties_in(text: str) -> Properties:
    """Reads `key=value` lines, as in a file for kcat's -F: blank ones and # comments are skipped.

    Raises:
        ValueError: a line is something else; the message has its number and nothing of what is in it.
    """
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        stripped = line.strip(_BLANKS)
        if stripped and not stripped.startswith("#"):
            try:
                found.append(_property_in(stripped))
            except ValueError as error:
                raise ValueError(f"line {number} {error}") from None
    return tuple(found)


def _property_in(line: str) -> tuple[str, str]:
    name, equals, value = line.partition("=")
    name, value = name.rstrip(_BLANKS), value.lstrip(_BLANKS)
    if not equals:
        raise ValueError("is not key=value (it is not shown: it may be secret)")
    if _NAME.fullmatch(name) is None:
        raise ValueError(
            "has something else than a property's name, such as security.protocol, before its = "
            "(it is not shown: it may be secret)"
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"gives {name} a value that is not UTF-8") from None
    if "\0" in value:
        raise ValueError(f"gives {name} a value with a NUL, which would end it")
    return name, value


def read_file(path: str) -> Properties:
    """The properties in a file.

    Raises:
        UsageError: it can't be read, or a line is no property.
    """
    try:
        with Path(path).expanduser().open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError, RuntimeError) as error:
        if "=" in path:
            raise UsageError(
                "--kafka.config takes the path of a file, and what it was given is none; "
                "a single property goes into --kafka.property"
            ) from None
        reason = error.strerror if isinstance(error, OSError) else "that is no path"
        raise UsageError(
            f"--kafka.config: can't read {path!r}: {reason}; it must be a file of key=value lines"
        ) from None
    if len(content) > MAX_FILE_BYTES:
        raise UsageError(f"--kafka.config: {path!r} is larger than {MAX_FILE_BYTES} bytes")
    try:
        return properties_in(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        complaint = f"line {number} is not UTF-8"
    except ValueError as error:
        complaint = str(error)
    raise UsageError(f"--kafka.config: {path!r}: {complaint}")


def merged(*sources: Properties) -> Properties:
    """All of them; later sources outrank earlier ones, also where a property has two names."""
    found: dict[str, str] = {}
    for source in sources:
        for name, value in source:
            found.pop(name, None)
            found[name] = value
    return tuple(found.items())


def without_brokers(properties: Properties) -> tuple[str | None, Properties]:
    """The brokers that stand among the properties, None where they don't, and all other properties.

    Raises:
        UsageError: they are no brokers.
    """
    named = [(name, value) for name, value in properties if name in _BROKERS]
    others = tuple(entry for entry in properties if entry not in named)
    if not named:
        return None, others
    name, value = named[-1]
    try:
        return brokers(value), others
    except ValueError:
        raise UsageError(
            f"the Kafka property {name} must be host:port[,host:port], an IPv6 address in brackets"
        ) from None


# ---- secrets ----


def is_secret(name: str) -> bool:
    """Whether this property's value must not be seen by anybody else."""
    return _SECRET.search(name) is not None


def secret_in(arguments: Iterable[str]) -> str | None:
    """The name of a secret property that is set on this command line, wherever it stands in it.

    Also as a flag of its own, and behind a misspelled one: what is wrong is shown to `ps` as well.
    """
    for argument in arguments:
        value = argument.partition("=")[2]
        for line in f"{argument}\n{value}".split("\n"):
            flag, equals, _ = line.partition("=")
            name = flag.strip(_BLANKS).lstrip("-")
            named = equals or flag.startswith("-")
            if named and re.fullmatch(r"[\w.-]+", name) and is_secret(name):
                return name
    return None


def without_values(text: str, properties: Properties) -> str:
    """A text of librdkafka's, which may quote values, with `…` in place of each."""
    for name, value in sorted(properties, key=lambda entry: -len(entry[1])):
        if value:
            # Part of another word it is not the value: `ssl` is in ssl.ca.location, too.
            alone = "%s" if is_secret(name) else r"(?<![\w.])%s(?![\w.])"
            text = re.sub(alone % re.escape(value), "…", text)
    return text


# ---- what is refused ----


class Rule(NamedTuple):
    """What a property must be, and why. Values are compared in lower case, as librdkafka does."""

    accepts: Callable[[str], bool]
    must: str
    why: str


def refuse(properties: Properties) -> None:
    """Let through what can't break the relay's promises.

    Raises:
        UsageError: a property would; the message says why.
    """
    for name, value in properties:
        # librdkafka takes topic.acks for acks.
        plain = name.removeprefix("topic.")
        if plain.endswith("_cb") or plain in _OBJECTS:
            raise UsageError(
                f"the Kafka property {name} can't be set: it is a program's object, and no text"
            )
        rule = RULES.get(name) or RULES.get(plain)
        if rule is not None and not rule.accepts(value.lower()):
            raise UsageError(f"the Kafka property {name} {rule.must}: {rule.why}")


_OBJECTS = {
    *("opaque", "interceptors", "default_topic_conf", "default.topic.config", "msg_order_cmp"),
    *("logger", "on_delivery", "on_commit"),
    *("ssl_key", "ssl_certificate", "ssl_ca", "ssl_engine_callback_data"),
}
"""librdkafka's and its Python client's. Some of them the latter would take as text, and crash later."""


def _only(*values: str, why: str, must: str = "") -> Rule:
    return Rule(lambda value: value in values, must or f"must be {values[0]}", why)


def _false(why: str) -> Rule:
    return _only("false", "f", "0", why=why)


def _never(why: str) -> Rule:
    return Rule(lambda _: False, "can't be set", why)


_ACKS = _only(
    *("all", "-1"),
    why="with less, a broker's death would lose events that were taken for published",
)
_IN_FLIGHT = _only(
    *("5", "4", "3", "2", "1"),
    must="must be 1 to 5",
    why="with more, a retry could change the order of events or repeat them",
)
_COMPRESSION = _never("use --kafka.compression")
_QUEUE = _never("Pleiades sets it, so that all that is in flight fits")
_NO_OFFSETS = "the position is committed with the events, in their transaction, and by nothing else"
_FETCHING = _never("Pleiades sets it, so that a start reads the topic back within bounded memory")
_OFFSETS = _false(_NO_OFFSETS)

RULES: dict[str, Rule] = {
    # ---- the producer ----
    "transactional.id": _never(
        "Pleiades derives it from topic and streams, so that a second instance is kept out"
    ),
    "enable.idempotence": _only(
        *("true", "t", "1"), why="without it a retry would publish an event twice"
    ),
    "acks": _ACKS,
    "request.required.acks": _ACKS,
    "max.in.flight": _IN_FLIGHT,
    "max.in.flight.requests.per.connection": _IN_FLIGHT,
    "enable.gapless.guarantee": _false(
        "a transaction leaves no gap anyway; with this a failed batch would end the producer"
    ),
    "queuing.strategy": _only("fifo", why="otherwise events would not stay in order"),
    "partitioner": _only(
        *("consistent", "consistent_random", "murmur2", "murmur2_random", "fnv1a", "fnv1a_random"),
        must="must be one that looks at the key (consistent, murmur2, fnv1a, each also with _random)",
        why="otherwise events with the same key would not stay in order",
    ),
    "compression.codec": _COMPRESSION,
    "compression.type": _COMPRESSION,
    "queue.buffering.max.messages": _QUEUE,
    "queue.buffering.max.kbytes": _QUEUE,
    "message.max.bytes": _never(
        "Pleiades sets it; how large an event may be is said by the topic's max.message.bytes"
    ),
    "delivery.report.only.error": _never("Pleiades waits for the report of each event"),
    # ---- the consumer that reads the topic back ----
    "group.id": _never("Pleiades derives it from topic and streams: it holds the position"),
    "group.instance.id": _never("the group only holds the position, and nobody is a member of it"),
    "isolation.level": _only(
        "read_committed", why="otherwise events of a broken transaction would count as published"
    ),
    "enable.auto.commit": _OFFSETS,
    "auto.commit.enable": _OFFSETS,
    "enable.auto.offset.store": _OFFSETS,
    "offset.store.method": _only("broker", "none", why=_NO_OFFSETS),
    "auto.offset.reset": _never(
        "Pleiades says where it reads from; to go on elsewhere would hide what is published"
    ),
    "enable.partition.eof": _never("Pleiades sets it: by it, reading back knows its end"),
    "queued.max.messages.kbytes": _FETCHING,
    "fetch.queue.backoff.ms": _FETCHING,
    "topic.blacklist": _never("a topic that it hides would look empty, and be filled again"),
    # ---- both ----
    "allow.auto.create.topics": _false(
        "Pleiades creates the topic itself, with --kafka.partitions and --kafka.replication"
    ),
    "statistics.interval.ms": _never("Pleiades sets it for its own metrics"),
    "enabled_events": _never("reports of deliveries would go where nobody reads them"),
    "log.queue": _never("what librdkafka logs would go where nobody reads it"),
    "internal.termination.signal": _never("signals stop Pleiades and its processes"),
    "plugin.library.paths": _never(
        "it loads foreign code, which may change or drop what is published"
    ),
    "test.mock.num.brokers": _never(
        "it stands for a cluster in the memory of this process, and all events would be lost with it"
    ),
}
"""What a property must be; one that is not named here is free."""
