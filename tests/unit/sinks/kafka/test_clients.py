"""The configuration of the clients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from pleiades.runtime.errors import UsageError
from pleiades.sinks.kafka.clients import Clients
from pleiades.sinks.kafka.properties import RULES
from tests.unit.sinks.kafka.conftest import kafka_destination


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The configuration that each client was created with."""
    made: list[dict[str, Any]] = []
    for name in ("AdminClient", "Consumer", "Producer"):

        def make(configuration: dict[str, Any], **_: object) -> object:
            made.append(configuration)
            return object()

        monkeypatch.setattr(f"pleiades.sinks.kafka.clients.{name}", make)
    return made


def make_all(clients: Clients) -> None:
    clients.admin()
    clients.consumer()
    clients.producer(1_000_000, print)


def test_the_users_properties_reach_every_client(configured: list[dict[str, Any]]) -> None:
    make_all(
        Clients(kafka_destination(("security.protocol", "ssl"), ("ssl.ca.location", "/ca.pem")))
    )
    assert len(configured) == 3
    for configuration in configured:
        assert configuration["security.protocol"] == "ssl"
        assert configuration["ssl.ca.location"] == "/ca.pem"
        assert configuration["bootstrap.servers"] == "127.0.0.1:1"


@pytest.mark.usefixtures("configured")
def test_what_the_guarantee_needs_is_no_ones_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """`properties.refuse` has a rule for every setting that `Clients` enforces: none is ignored."""
    needed: set[str] = set()
    made = Clients._made

    def note(
        self: Clients, make: Any, needs: Mapping[str, Any], usual: Mapping[str, Any] = {}
    ) -> Any:
        needed.update(needs)
        return made(self, make, needs, usual)

    monkeypatch.setattr(Clients, "_made", note)
    make_all(Clients(kafka_destination()))
    assert {name for name in needed if not name.endswith("_cb")} <= RULES.keys()
    assert {"transactional.id", "enable.idempotence", "isolation.level"} <= needed


def test_a_batch_fits_into_the_topic(configured: list[dict[str, Any]]) -> None:
    clients = Clients(kafka_destination())
    clients.producer(50_000, print)
    clients.producer(10**9, print)
    clients.producer(10, print)
    assert [each["batch.size"] for each in configured] == [49_000, 1_000_000, 1_000]


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("sasl.pasword", "hunter2", "sasl.pasword"),
        ("sasl.mechanisms", "hunter2", "Unsupported SASL mechanism"),
        ("linger.ms", "hunter2", "queue.buffering.max.ms"),
        ("security.protocol", "hunter2", "security.protocol"),
    ],
)
def test_what_librdkafka_refuses_is_a_usage_error_without_the_value(
    name: str, value: str, says: str
) -> None:
    security = () if name == "security.protocol" else (("security.protocol", "sasl_ssl"),)
    with pytest.raises(UsageError) as raised:
        Clients(kafka_destination(*security, (name, value))).producer(1_000_000, print)
    assert says in str(raised.value)
    assert "--kafka.property" in str(raised.value)
    assert value not in str(raised.value)
