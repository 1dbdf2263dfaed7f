"""Retries of calls, the reports in the meantime, and when they are given up."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from prometheus_client import CollectorRegistry

from pleiades.config.settings import Settings
from pleiades.runtime.errors import Fatal, GenerationLost
from pleiades.runtime.metric_store import collected
from pleiades.runtime.metrics import Metrics
from pleiades.sinks.base import SinkContext
from pleiades.sinks.kafka import retry as retries
from pleiades.sinks.kafka.clients import Clients
from pleiades.sinks.kafka.retry import Fenced, Retry
from tests.unit.conftest import FakeChildContext

NO_ANSWER = KafkaError(KafkaError._TIMED_OUT, "no answer yet")
BROKEN = KafkaError(KafkaError.NOT_COORDINATOR, "broken")
ABORTED = KafkaError(KafkaError.NOT_COORDINATOR, "broken", txn_requires_abort=True)
ERRORS = "pleiades_kafka_writer_errors_total"


def errors() -> float | None:
    registry: CollectorRegistry = collected()
    return registry.get_sample_value(ERRORS)


# ---- what is reported ----


def test_a_short_wait_is_not_worth_a_line(
    child: FakeChildContext, retry: Retry, caplog: pytest.LogCaptureFixture
) -> None:
    retry.report("commit", NO_ANSWER)
    assert caplog.text == ""
    assert child.ready
    assert errors() == 0


def test_a_long_wait_is_said_and_its_end_too(
    child: FakeChildContext,
    retry: Retry,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retries, "QUIET_SECONDS", 0.0)
    caplog.set_level(logging.INFO)
    for _ in range(3):
        retry.report("commit", NO_ANSWER)
    ready_while_waiting = child.ready
    assert not ready_while_waiting
    assert caplog.text.count("can't commit: no answer yet. Nothing is lost") == 1
    retry.well()
    assert child.ready
    assert "takes events again" in caplog.text
    caplog.clear()
    retry.well()
    assert caplog.text == ""


def test_errors_are_counted_and_a_transaction_begun_again_is_said_at_once(
    retry: Retry, caplog: pytest.LogCaptureFixture
) -> None:
    retry.report("commit", BROKEN)
    assert caplog.text == "", "it usually passes at once"
    retry.report("commit", ABORTED)
    assert "broken" in caplog.text
    assert errors() == 2


def test_a_given_reason_is_reported_at_once(
    child: FakeChildContext, retry: Retry, caplog: pytest.LogCaptureFixture
) -> None:
    """The operator must correct it, such as a wrong clock."""
    retry.report("publish", BROKEN, "the clock is wrong")
    assert "can't publish: the clock is wrong. Nothing is lost" in caplog.text
    assert not child.ready


def test_what_librdkafka_reported_says_more_than_that_a_call_timed_out(
    retry: Retry,
    clients: Clients,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retries, "QUIET_SECONDS", 0.0)
    clients.last_error = KafkaError(KafkaError._TRANSPORT, "Connection refused")
    retry.report("commit", NO_ANSWER)
    assert "can't commit: Connection refused" in caplog.text


# ---- repeated, and given up ----


def failing(*failures: KafkaError) -> Callable[[], str]:
    left: Iterator[KafkaError] = iter(failures)

    def attempt() -> str:
        for error in left:
            raise KafkaException(error)
        return "done"

    return attempt


@pytest.fixture
def first_start(
    clients: Clients,
    child: FakeChildContext,
    metrics: Metrics,
    settings_of: Callable[..., Settings],
) -> Callable[[], Retry]:
    context = SinkContext(child, metrics, settings_of(), reached=False)
    return lambda: Retry(clients, context)


def test_an_outage_is_waited_for_with_growing_pauses(retry: Retry, child: FakeChildContext) -> None:
    assert retry.until_done("see the topic", failing(*[BROKEN] * 20)) == "done"
    assert len(child.pauses) == 20
    assert child.pauses == sorted(child.pauses)
    assert child.pauses[-1] == retries.BACKOFF.max_seconds


def test_a_first_start_reports_an_error_that_does_not_pass(
    first_start: Callable[[], Retry], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert first_start().until_done("see the topic", failing(BROKEN)) == "done"
    monkeypatch.setattr(retries, "CONNECT_SECONDS", 0.0)
    with pytest.raises(Fatal, match="can't see the topic: broken"):
        first_start().until_done("see the topic", failing(BROKEN))
    reached = first_start()
    reached.deadline = None
    assert reached.until_done("see the topic", failing(BROKEN)) == "done"


def test_a_refused_log_in_ends_a_first_start_at_once(
    first_start: Callable[[], Retry], clients: Clients
) -> None:
    clients.last_error = KafkaError(KafkaError._AUTHENTICATION, "wrong password")
    with pytest.raises(Fatal, match="wrong password"):
        first_start().until_done("see the topic", failing(NO_ANSWER))


def test_a_topic_that_was_just_created_may_be_unknown_for_a_while(
    retry: Retry, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)
    assert retry.until_done("see the topic", failing(unknown)) == "done"
    monkeypatch.setattr(retries, "PROPAGATION_SECONDS", 0.0)
    with pytest.raises(Fatal):
        retry.until_done("see the topic", failing(unknown))


@pytest.mark.parametrize(
    ("code", "end"),
    [
        (KafkaError.PRODUCER_FENCED, Fenced),
        (KafkaError.GROUP_AUTHORIZATION_FAILED, Fatal),
        (KafkaError.UNKNOWN_PRODUCER_ID, GenerationLost),
    ],
)
def test_other_errors_end_it(retry: Retry, code: int, end: type[Exception]) -> None:
    with pytest.raises(end):
        retry.until_done("commit", failing(KafkaError(code)))


def test_some_calls_are_left_to_a_new_process_after_a_time(retry: Retry) -> None:
    with pytest.raises(GenerationLost, match="can't begin"):
        retry.until_done("begin", failing(BROKEN), most_seconds=0.0)


class Idle:
    """A producer with nothing to deliver."""

    def __len__(self) -> int:
        return 0

    def poll(self, _seconds: float) -> None:
        """See `Producer`."""


def test_a_step_that_always_fails_is_given_up(
    retry: Retry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "FAILING_SECONDS", 0.0)
    producer: Any = Idle()
    with pytest.raises(GenerationLost, match="NOT_COORDINATOR"):
        retry.commit_step(producer, failing(*[BROKEN] * 9), retry.report)  # type: ignore[arg-type]


def test_a_call_that_does_not_return_is_given_up(
    retry: Retry, monkeypatch: pytest.MonkeyPatch
) -> None:
    from threading import Event

    monkeypatch.setattr(retries, "ANSWER_SECONDS", 0.0)
    monkeypatch.setattr(retries, "SLICE_SECONDS", 0.01)
    producer: Any = Idle()
    returns = Event()

    def hang() -> None:
        returns.wait()

    with pytest.raises(GenerationLost, match="did not return"):
        retry.commit_step(producer, hang, retry.report)
    returns.set()
