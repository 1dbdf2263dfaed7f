"""The user's librdkafka properties: how they are read, which are refused, and that none is shown.

Law: no message of this module contains a value. Nor does it contain a name that can't be one: what
stands before an `=` may be a line of a private key.

A property is refused where it would break what the relay promises (one transactional producer, and a
consumer that reads its topic back), or where text can't set it. All others are librdkafka's to check:
https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from pleiades.config.values import MAX_PORT
from pleiades.runtime.errors import UsageError

Properties = tuple[tuple[str, str], ...]
"""Names and values, in the order in which librdkafka is told: a later one outranks an earlier one."""

MAX_FILE_BYTES = 1024 * 1024
DEFAULT_PORT = 9092

_BROKERS = ("bootstrap.servers", "metadata.broker.list")
_NAME = re.compile(r"[a-z][a-z0-9_]*(?:\.[a-z0-9_]+)*")
# A name or an IPv4 address, or an IPv6 address in brackets; then a port.
_BROKER = re.compile(
    r"([A-Za-z0-9_](?:[A-Za-z0-9._-]{0,253}[A-Za-z0-9_.])?|\[([^\[\]]+)\])(?::([0-9]+))?", re.ASCII
)
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
            except UnicodeEncodeError:
                raise ValueError(f"line {number} is not UTF-8") from None
            except ValueError as error:
                raise ValueError(f"line {number} {error}") from None
    return tuple(found)


def _property_in(line: str) -> tuple[str, str]:
    line.encode()
    name, equals, value = line.partition("=")
    name, value = name.rstrip(_BLANKS), value.lstrip(_BLANKS)
    if not equals:
        raise ValueError("is not key=value (it is not shown: it may be secret)")
    if _NAME.fullmatch(name) is None:
        raise ValueError(
            "has something else than a property's name, such as security.protocol, before its = "
            "(it is not shown: it may be secret)"
        )
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
        return properties_in(content.decode("utf-8-sig", "surrogateescape"))
    except ValueError as error:
        raise UsageError(f"--kafka.config: {path!r}: {error}") from None


def brokers(text: str) -> str:
    """Reads where a cluster is found, joined by commas; the result has a port for each."""
    return ",".join(_broker(part.strip()) for part in text.split(","))


def _broker(text: str) -> str:
    if "://" in text:
        raise ValueError(f"{text!r} must be host:port alone; security.protocol sets the protocol")
    match = _BROKER.fullmatch(text)
    host, address, port = match.groups() if match else ("", "", "")
    try:
        known = ipaddress.IPv6Address(address) if address else host
    except ValueError:
        known = ""
    if not known:
        raise ValueError(f"{text!r} is no broker such as kafka.example.org:9092 or [::1]:9092")
    number = int((port or str(DEFAULT_PORT))[:6])
    if not 1 <= number <= MAX_PORT:
        raise ValueError(f"{text!r} has a port that is not between 1 and {MAX_PORT}")
    return f"{host}:{number}"


def settled(*sources: Properties) -> tuple[str | None, Properties]:
    """The brokers that stand among the properties, None where they don't, and all other properties.

    Later sources outrank earlier ones, also where a property has two names. Paths hold in any working
    directory.

    Raises:
        UsageError: they are no brokers, a property is refused, or a path is relative and there is no
            working directory.
    """
    found: dict[str, str] = {}
    for name, value in chain(*sources):
        found.pop(name, None)
        found[name] = value
    named = [(name, found.pop(name)) for name in list(found) if name in _BROKERS]
    refuse(tuple(found.items()))
    try:
        others = tuple(
            (name, str(Path(value).absolute()) if _is_path(name, value) else value)
            for name, value in found.items()
        )
        return brokers(named[-1][1]) if named else None, others
    except OSError:
        raise UsageError(
            "the working directory is gone, and a Kafka property names a file relative to it: give its "
            "absolute path"
        ) from None
    except ValueError:
        raise UsageError(
            f"the Kafka property {named[-1][0]} must be host:port[,host:port], an IPv6 address in "
            "brackets"
        ) from None


def _is_path(name: str, value: str) -> bool:
    # librdkafka looks for the system's certificates itself if it is told to `probe`.
    return name.endswith((".location", ".keytab")) and value not in ("", "probe")


# ---- secrets ----


def is_secret(name: str) -> bool:
    """True if this property's value is secret."""
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


# ---- refused properties ----


class Rule(NamedTuple):
    """The values that a property may have, in lower case as librdkafka compares them; empty: none."""

    accepted: tuple[str, ...]
    why: str


_TABLE = """
transactional.id group.id | | Pleiades derives it from topic and streams, to keep a second instance out
enable.idempotence | true t 1 | without it a retry would publish an event twice
acks request.required.acks | all -1 | with less, a broker's death would lose published events
max.in.flight max.in.flight.requests.per.connection | 1 2 3 4 5 | \
    with more, a retry could change the order of events or repeat them
enable.gapless.guarantee | false f 0 | with this a failed batch would end the producer
queuing.strategy | fifo | otherwise events would not stay in order
partitioner | consistent consistent_random murmur2 murmur2_random fnv1a fnv1a_random | \
    otherwise events with the same key would not stay in order
compression.codec compression.type | | use --kafka.compression
delivery.report.only.error | | Pleiades waits for the report of each event
group.instance.id | | the group only holds the position, and has no members
isolation.level | read_committed | otherwise events of a broken transaction would count as published
enable.auto.commit auto.commit.enable enable.auto.offset.store | false f 0 | \
    the transaction of the events commits the position, and nothing else may
offset.store.method | broker none | the transaction of the events commits the position
auto.offset.reset | | Pleiades sets where it reads; going on elsewhere would hide published events
queue.buffering.max.messages queue.buffering.max.kbytes message.max.bytes enable.partition.eof | | \
    Pleiades sets it for its own needs
queued.max.messages.kbytes fetch.queue.backoff.ms statistics.interval.ms | | \
    Pleiades sets it for its own needs
topic.blacklist | | a hidden topic would look empty, and be filled again
allow.auto.create.topics | false f 0 | Pleiades creates the topic, with the partitions of its flags
enabled_events | | delivery reports would go where nobody reads them
log.queue | | librdkafka's log would go where nobody reads it
internal.termination.signal | | signals stop Pleiades and its processes
plugin.library.paths | | it loads foreign code, which may change or drop published events
test.mock.num.brokers | | it simulates a cluster in memory, and all events would be lost with it
"""
_ROWS = [[cell.strip() for cell in row.split("|")] for row in _TABLE.splitlines() if row]
RULES = {
    name: Rule(tuple(accepted.split()), why)
    for names, accepted, why in _ROWS
    for name in names.split()
}
"""The rules by name. All other properties are allowed."""

_OBJECTS = {
    *("opaque", "interceptors", "default_topic_conf", "default.topic.config", "msg_order_cmp"),
    *("logger", "on_delivery", "on_commit"),
    *("ssl_key", "ssl_certificate", "ssl_ca", "ssl_engine_callback_data"),
}
"""librdkafka's and its Python client's. The latter would take some of them as text, and crash later."""


def refuse(properties: Properties) -> None:
    """Let through only properties that can't break the relay's promises.

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
        if rule is not None and value.lower() not in rule.accepted:
            must = f"must be {' or '.join(rule.accepted)}" if rule.accepted else "can't be set"
            raise UsageError(f"the Kafka property {name} {must}: {rule.why}")
