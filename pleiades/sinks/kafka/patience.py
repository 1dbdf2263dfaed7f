"""How long is waited for a cluster, and for what not at all.

At a first start, what does not pass soon is somebody's mistake and is to be told within seconds. Once
the cluster was reached, by this process or by one before it in the same program, it is waited for as
long as it takes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NoReturn, TypeVar

from confluent_kafka import KafkaError, KafkaException

from pleiades.core.backoff import Backoff
from pleiades.runtime.errors import GenerationLost
from pleiades.sinks.kafka.clients import Clients
from pleiades.sinks.kafka.destination import KafkaDestination
from pleiades.sinks.kafka.reporting import Reporting, Trouble
from pleiades.sinks.kafka.trouble import NO_TOPIC, Kind, fatal, kind_of, said

T = TypeVar("T")

CONNECT_SECONDS = 5.0
"""How long a first start tries to reach the cluster: within 10 s it has told what is wrong."""
PROPAGATION_SECONDS = 10.0
"""A topic that was just made is not known to every broker at once."""
RETRY_BACKOFF = Backoff(first_seconds=0.1, max_seconds=2.0)


class Fenced(Exception):
    """Another producer with our transactional id has begun, or the broker ended our transaction."""


class Patience:
    """Repeats what does not work at once.

    Args:
        reached: the cluster was reached before.
    """

    def __init__(
        self, settings: KafkaDestination, clients: Clients, reporting: Reporting, reached: bool
    ) -> None:
        self._settings = settings
        self._clients = clients
        self._reporting = reporting
        self._deadline = None if reached else time.monotonic() + CONNECT_SECONDS

    def reached(self) -> None:
        """The cluster is there: what is not, will be."""
        self._deadline = None

    def until_done(
        self, operation: str, attempt: Callable[[], T], most_seconds: float = math.inf
    ) -> T:
        """Try until it works.

        Args:
            most_seconds: after that a new process has better prospects.

        Raises:
            Fatal, GenerationLost, Fenced: to go on trying is of no use.
        """
        started = time.monotonic()
        failures = 0
        while True:
            self._reporting.alive()
            try:
                done = attempt()
            except KafkaException as raised:
                error = raised.args[0]
            else:
                self.well()
                return done
            waited_seconds = time.monotonic() - started
            if self._deadline is not None:
                self._refuse_in_vain(operation, error, self._deadline)
            elif not _passes(error, waited_seconds) or waited_seconds >= most_seconds:
                self.give_up(operation, error)
            else:
                self.tell(operation, error)
            failures += 1
            self._reporting.pause(RETRY_BACKOFF.pause_seconds(failures, jitter=1.0))

    def tell(self, operation: str, error: KafkaError) -> None:
        """Report what is waited for."""
        deeper = None
        trouble = Trouble.BEGUN_AGAIN if kind_of(error) is Kind.ABORT else Trouble.REFUSED
        if error.code() == KafkaError._TIMED_OUT:
            # What librdkafka says by itself tells more than that a call ran out of time.
            trouble, deeper = Trouble.NO_ANSWER, self._clients.last_error
        self._reporting.trouble(operation, said(deeper or error, self._settings), trouble)

    def well(self) -> None:
        """Something worked: what was reported before it is over."""
        self._clients.last_error = None
        self._reporting.well()

    def give_up(self, operation: str, error: KafkaError) -> NoReturn:
        """End the program or the process, as the error demands."""
        kind = kind_of(error)
        if kind is Kind.FENCED:
            raise Fenced
        if kind is Kind.FATAL:
            raise fatal(operation, error, self._settings)
        raise GenerationLost(f"can't {operation}: {said(error, self._settings)}")

    def _refuse_in_vain(self, operation: str, error: KafkaError, deadline: float) -> None:
        # A refused log-in is no error of a call: librdkafka reports it by itself and tries again.
        self._clients.listen()
        reported = self._clients.last_error
        for told in (reported, error):
            if told is not None and kind_of(told) is Kind.FATAL:
                raise fatal(operation, told, self._settings)
        if time.monotonic() >= deadline:
            raise fatal(operation, reported or error, self._settings)
        if kind_of(error) is not Kind.TRANSIENT:
            self.give_up(operation, error)


def _passes(error: KafkaError, waited_seconds: float) -> bool:
    if error.code() in NO_TOPIC:
        return waited_seconds < PROPAGATION_SECONDS
    return kind_of(error) in (Kind.TRANSIENT, Kind.ABORT)
