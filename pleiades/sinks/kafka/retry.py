"""Repeats calls to Kafka until they succeed.

Laws:
- A first start gives up within seconds: its error is the operator's to correct. Once this program has
  reached the cluster, it waits for as long as an outage lasts.
- Each step of a commit has a limit. One that is stuck is left to a new process (`GenerationLost`), which
  finds the cluster afresh, and waits for it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn, TypeVar

from confluent_kafka import KafkaError, KafkaException, Producer

from pleiades.core.backoff import Backoff
from pleiades.runtime.errors import GenerationLost
from pleiades.runtime.logs import Throttle
from pleiades.sinks.base import SinkContext
from pleiades.sinks.kafka.clients import Clients
from pleiades.sinks.kafka.errors import NO_TOPIC, Kind, fatal, kind_of, text_of

log = logging.getLogger(__name__)

T = TypeVar("T")

CONNECT_SECONDS = 5.0
"""The time for which a first start tries to reach the cluster. Within 10 s it reports the error."""
REACH_SECONDS = 2.0
"""The timeout of each request meanwhile."""
PROPAGATION_SECONDS = 10.0
"""The time for which brokers may not know a topic that was just created."""
SLICE_SECONDS = 0.5
"""The longest time that one call may block. The process beats between two calls."""
ANSWER_SECONDS = 10.0
"""After that long librdkafka will not return from a call (its issues 5456 and 5511)."""
STUCK_SECONDS = 30.0
"""The time for which a commit may time out while none of its messages is delivered. After a broker has
hung, librdkafka may wait for ever. A slow broker or line still delivers messages."""
FAILING_SECONDS = 300.0
"""The time for which one step of a commit is retried after errors that should pass."""
THROTTLED = (
    "the brokers slow this client down to its quota (producer_byte_rate), which is less than the "
    "stream needs: raise the quota of this user or client.id. Meanwhile events are late. The brokers "
    "answer again in {:.0f} s"
)
BACKOFF = Backoff(first_seconds=0.1, max_seconds=5.0)
QUIET_SECONDS = 5.0
"""A wait that is shorter is not logged."""
WARNING_SECONDS = 30.0


class Fenced(Exception):
    """Another producer uses our transactional id, or the broker ended our transaction."""


class _Deliveries:
    """Notices that a producer delivers messages.

    Its length counts messages, and events such as statistics that come and go. Only a new minimum shows
    that a message was delivered.
    """

    def __init__(self, producer: Producer) -> None:
        self._producer = producer
        self._least = len(producer)

    def any(self) -> bool:
        """True if one was delivered since the last call."""
        before, self._least = self._least, min(self._least, len(self._producer))
        return self._least < before


class Retry:
    """Repeats calls, and reports what it waits for in the log, the metrics and the readiness."""

    def __init__(self, clients: Clients, context: SinkContext) -> None:
        self.child = context.child
        self._metrics = context.metrics
        self._clients = clients
        self._settings = clients.settings
        self.deadline = None if context.reached else time.monotonic() + CONNECT_SECONDS
        """Monotonic time at which a first start gives up; None: the cluster was reached."""
        self._caller = ThreadPoolExecutor(1, "librdkafka")
        self._waiting_since: float | None = None
        self._reported = False
        self._warnings = Throttle(WARNING_SECONDS)

    def until_done(
        self, operation: str, attempt: Callable[[], T], most_seconds: float = math.inf
    ) -> T:
        """Repeat a call for as long as its errors may pass, or `most_seconds`.

        Raises:
            Fatal, GenerationLost, Fenced: it will not succeed.
        """
        started = time.monotonic()

        def failed(error: KafkaError) -> None:
            if self.deadline is not None:
                check_first_start(self._clients, operation, error, self.deadline)
            waited_seconds = time.monotonic() - started
            created_just_now = error.code() in NO_TOPIC and waited_seconds < PROPAGATION_SECONDS
            passes = created_just_now or kind_of(error) in (Kind.TRANSIENT, Kind.ABORT)
            if waited_seconds >= most_seconds or not passes:
                self.give_up(operation, error)
            if self.deadline is None:
                self.report(operation, error)

        done = self._repeat(attempt, failed)
        self.well()
        return done

    def commit_step(
        self,
        producer: Producer,
        call: Callable[[], None],
        report: Callable[[str, KafkaError], None],
    ) -> None:
        """Repeat one step of a commit for as long as its errors are transient; report each.

        Raises:
            KafkaException: another kind of error.
            GenerationLost: the step is stuck.
        """
        moved = failing = time.monotonic()
        deliveries = _Deliveries(producer)

        def failed(error: KafkaError) -> None:
            nonlocal moved, failing
            if kind_of(error) is not Kind.TRANSIENT:
                raise KafkaException(error)
            now = time.monotonic()
            if deliveries.any():
                moved = failing = now
            elif error.code() != KafkaError._TIMED_OUT:
                moved = now
            # A broker that asks for patience does not hang.
            throttled_until = self._clients.throttled_until
            if now - max(moved, throttled_until) >= STUCK_SECONDS:
                raise GenerationLost(f"a commit made no progress for {STUCK_SECONDS:.0f} s")
            if now - max(failing, throttled_until) >= FAILING_SECONDS:
                raise GenerationLost(f"a commit failed for {FAILING_SECONDS:.0f} s: {error.name()}")
            report("commit", error)

        self._repeat(lambda: self._in_thread(producer, call), failed)

    def _repeat(self, attempt: Callable[[], T], failed: Callable[[KafkaError], None]) -> T:
        failures = 0
        while True:
            self.child.beat()
            started = time.monotonic()
            try:
                return attempt()
            except KafkaException as raised:
                failed(raised.args[0])
            # A call that timed out has waited already.
            if time.monotonic() - started < SLICE_SECONDS / 2:
                failures += 1
                self.child.pause(BACKOFF.pause_seconds(failures, jitter=1.0))

    def _in_thread(self, producer: Producer, call: Callable[[], None]) -> None:
        """Call in another thread: while a broker is away or slow, librdkafka may ignore the timeout.

        Raises:
            GenerationLost: it did not return, and nothing is delivered meanwhile.
        """
        answer = self._caller.submit(call)
        moved = time.monotonic()
        deliveries = _Deliveries(producer)
        try:
            while True:
                # librdkafka keeps statistics until they are polled: 4 MB in a commit of half an hour.
                producer.poll(0)
                self.child.beat()
                try:
                    return answer.result(2 * SLICE_SECONDS)
                except TimeoutError:
                    self.report("commit", KafkaError(KafkaError._TIMED_OUT))
                now = time.monotonic()
                if deliveries.any():
                    moved = now
                if now - max(moved, self._clients.throttled_until) >= ANSWER_SECONDS:
                    raise GenerationLost(
                        f"librdkafka did not return from a short call for {ANSWER_SECONDS:.0f} s"
                    )
        finally:
            # As in `ChildContext.run_in_thread`.
            del answer

    # ---- reporting ----

    def report(self, operation: str, error: KafkaError, why: str = "") -> None:
        """Report a call that failed and is repeated; `why`: in place of the error's own text."""
        is_urgent = bool(why)
        if error.code() == KafkaError._TIMED_OUT:
            # librdkafka's own report of the cause says more than that a call timed out.
            error = self._clients.last_error or error
            throttled_seconds = self._clients.throttled_until - time.monotonic()
            if throttled_seconds > 0:
                why = THROTTLED.format(throttled_seconds)
        else:
            self._metrics.kafka_errors.inc()
        now = time.monotonic()
        self._waiting_since = self._waiting_since or now
        # An aborted transaction is rare; other errors usually pass at once.
        at_once = is_urgent or kind_of(error) is Kind.ABORT
        why = why or text_of(error, self._settings)
        if not at_once and now - self._waiting_since < QUIET_SECONDS:
            log.debug("can't %s: %s", operation, why)
            return
        self._reported = True
        self.child.ready = False
        self.child.report_problem(f"can't {operation}: {why}")
        if self._warnings.due():
            log.warning(
                "can't %s: %s. Nothing is lost: the relay keeps the events in flight, pauses reading, "
                "and retries until it succeeds",
                operation,
                why,
            )

    def well(self) -> None:
        """Note that a call succeeded: a reported outage is over."""
        self._clients.last_error = None
        if self._reported and self._waiting_since is not None:
            seconds = time.monotonic() - self._waiting_since
            log.info("Kafka takes events again, after %.0f s", seconds)
            self._reported = False
            self.child.ready = True
            self.child.clear_problem()
            self._warnings = Throttle(WARNING_SECONDS)
        self._waiting_since = None

    # ---- giving up ----

    def give_up(self, operation: str, error: KafkaError) -> NoReturn:
        """Raise what the error demands: `Fenced`, `Fatal` or `GenerationLost`."""
        kind = kind_of(error)
        if kind is Kind.FENCED:
            raise Fenced
        if kind is Kind.FATAL:
            raise fatal(operation, error, self._settings)
        raise GenerationLost(f"can't {operation}: {text_of(error, self._settings)}")


def check_first_start(clients: Clients, operation: str, error: KafkaError, deadline: float) -> None:
    """Raise `Fatal` for an error that does not pass, or once the deadline (monotonic time) is over."""
    # A refused log-in is not the error of a call: librdkafka reports it by itself, and retries.
    clients.listen()
    reported = clients.last_error or error
    for each in (reported, error):
        if kind_of(each) is Kind.FATAL:
            raise fatal(operation, each, clients.settings)
    if time.monotonic() >= deadline:
        raise fatal(operation, reported, clients.settings)
