"""Clusters that are unreachable or refuse access, and one with TLS and SCRAM that accepts."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its documented names
    AclOperation,
    AdminClient,
    ResourceType,
)

from pleiades.simulator.settings import SimulatorSettings
from pleiades.simulator.simulator import Simulator
from tests.harness.broker import Broker, free_port, topic_records
from tests.harness.kafka import allow_nobody
from tests.harness.oracle import judge_topic
from tests.harness.relay import Relay, ingest_flags, kafka_flags, since_ms

Simulate = Callable[[SimulatorSettings], Simulator]

NO_UPSTREAM = ingest_flags("http://127.0.0.1:1/v2/stream", "now")


def refused(*flags: str, status: int = 1) -> str:
    """The log of a start that must end by itself."""
    with Relay(*NO_UPSTREAM, "--kafka.enable", *flags) as relay:
        assert relay.wait(30) == status, relay.log
    assert "Traceback" not in relay.log
    return relay.log


def password_in(properties: Path) -> str:
    lines = properties.read_text().splitlines()
    return next(line.partition("=")[2].strip() for line in lines if "sasl.password" in line)


def test_a_wrong_address_names_what_to_check() -> None:
    address = f"127.0.0.1:{free_port()}"
    said = refused(f"--kafka.broker={address}")
    assert f"can't reach Kafka at {address}" in said
    assert "check host and port in --kafka.broker" in said


def test_an_unknown_host_names_what_to_check() -> None:
    said = refused("--kafka.broker=name.invalid:9092")
    assert "the host name in --kafka.broker name.invalid:9092 is unknown" in said


def test_a_port_of_another_kind_names_what_to_check(
    simulate: Simulate, secure: Broker, tmp_path: Path
) -> None:
    """HTTP, TLS where the relay speaks plaintext, plaintext where the relay expects TLS."""
    http = simulate(SimulatorSettings()).url.split("/")[2]
    tls = tmp_path / "tls.properties"
    tls.write_text(
        secure.secure_config.read_text().replace(f":{secure.port + 2}", f":{secure.port}")
    )
    wrong = {
        f"127.0.0.1:{secure.port + 2}": f"--kafka.broker=127.0.0.1:{secure.port + 2}",
        secure.bootstrap: f"--kafka.config={tls}",
        http: f"--kafka.broker={http}",
    }
    # Each of them retries for a while.
    with ThreadPoolExecutor() as pool:
        for address, said in zip(wrong, pool.map(refused, wrong.values()), strict=True):
            assert f"can't reach Kafka at {address}" in said
            assert "whether it wants TLS or a log-in (--kafka.config)" in said, said


def test_an_unknown_certificate_names_what_to_check(secure: Broker, tmp_path: Path) -> None:
    # The broker's own certificate, not that of the authority that signed it.
    other = str(secure.folder / "tls" / "server.crt")
    properties = tmp_path / "other.properties"
    properties.write_text(
        secure.secure_config.read_text().replace(str(secure.folder / "tls" / "ca.pem"), other)
    )
    said = refused(f"--kafka.config={properties}")
    assert "the TLS handshake failed: check security.protocol and ssl.ca.location" in said


def test_a_misspelled_property_is_a_usage_error() -> None:
    said = refused("--kafka.property=sasl.mecanisms=PLAIN", status=2)
    assert 'No such configuration property: "sasl.mecanisms"' in said


def test_tls_and_scram_by_a_file_of_properties(simulate: Simulate, secure: Broker) -> None:
    upstream = simulate(SimulatorSettings(rate=300, max_events=600))
    source = ingest_flags(upstream.url, since_ms(upstream))
    # The file also contains the brokers' addresses.
    target = ["--kafka.enable", "--kafka.topic=secret", f"--kafka.config={secure.secure_config}"]
    with Relay(*source, *target, "-v") as relay:
        count = sum(not entry.canary for entry in upstream.journal())
        relay.until(
            lambda: relay.metric("pleiades_kafka_publish_events_total") >= count, "events", 60
        )
        page = str(relay.metrics())
        assert relay.stop() == 0
    verdict = judge_topic(
        secure.bootstrap, "secret", upstream.journal(), since_ms(upstream), finished=False
    )
    assert verdict.flawless, f"{verdict}\n{relay.log}"
    password = password_in(secure.secure_config)
    assert password
    assert password not in relay.log + page


def test_a_wrong_password_says_so_and_prints_no_secret(secure: Broker, tmp_path: Path) -> None:
    password = password_in(secure.secure_config)
    wrong = tmp_path / "wrong.properties"
    wrong.write_text(secure.secure_config.read_text().replace(password, "hunter2hunter2"))
    said = refused(f"--kafka.config={wrong}", "-v")
    assert "the broker refused the log-in: check sasl.mechanisms, sasl.username" in said
    assert "hunter2" not in said


def test_a_user_without_rights_is_told_which(secure: Broker) -> None:
    said = refused(f"--kafka.config={secure.nobody_config}", "--kafka.topic=forbidden")
    assert "allow Describe, Read and Write" in said
    assert "forbidden and forbidden-dead-letters" in said
    assert password_in(secure.nobody_config) not in said
    assert topic_records(secure.bootstrap, "forbidden") == []


def test_a_user_without_rights_on_the_group_is_told_so(secure: Broker) -> None:
    admin = AdminClient({"bootstrap.servers": secure.bootstrap})
    allow_nobody(admin, ResourceType.TOPIC, "groupless", AclOperation.ALL)
    allow_nobody(admin, ResourceType.TRANSACTIONAL_ID, "pleiades-groupless", AclOperation.ALL)
    said = refused(f"--kafka.config={secure.nobody_config}", "--kafka.topic=groupless")
    assert "can't read the stored position" in said
    assert "allow Read on the group pleiades-groupless-recentchange" in said


def test_a_replication_that_the_cluster_has_no_brokers_for(kafka: str, topic: str) -> None:
    said = refused(*kafka_flags(kafka, topic), "--kafka.replication=3")
    assert f"can't create the topic {topic}" in said
    assert "check --kafka.partitions and --kafka.replication" in said
