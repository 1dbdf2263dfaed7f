"""Calls of librdkafka that may block, run out of time or fail for a while, made until they succeed.

Law: each wait has an end. What does not pass in time is left to a new process, which finds the cluster
afresh, and waits for it as long as it takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from confluent_kafka import KafkaError, KafkaException, Producer

from pleiades.core.backoff import Backoff
from pleiades.runtime.errors import GenerationLost
from pleiades.sinks.kafka.trouble import Kind, kind_of

SLICE_SECONDS = 0.5
"""How long one call may block; between two the process shows that it lives."""
ANSWER_SECONDS = 10.0
"""After that long without an answer none is to be expected (librdkafka issues 5456 and 5511). A new
process looks for the cluster afresh, and waits for it as long as it takes."""
STUCK_SECONDS = 30.0
"""So long a commit may run out of time again and again while no message of it is delivered. After a
broker has hung, librdkafka may wait for something that does not come any more; a broker that is slow,
or a line, still delivers. While the broker hangs, the new process waits, and as long as it takes."""
TROUBLE_SECONDS = 300.0
"""So long one step of a commit is tried again, while it is answered with errors that should pass."""
RETRY_BACKOFF = Backoff(first_seconds=0.1, max_seconds=5.0)


@dataclass(frozen=True, slots=True)
class Around:
    """What a transaction needs from what is around it."""

    alive: Callable[[], None]
    """Called at least every second, always from the same thread."""
    pause: Callable[[float], None]
    on_trouble: Callable[[str, KafkaError], None]
    """Told of each error that is taken for transient or aborts: what could not be done, and why."""


class Insisting:
    """Makes the calls of a commit, one after the other, in a thread of their own."""

    def __init__(self, producer: Producer, around: Around) -> None:
        self._producer = producer
        self._around = around
        self._caller = ThreadPoolExecutor(1, "librdkafka")

    def insist(self, call: Callable[[], None]) -> None:
        """Call again while the error is one that passes.

        Raises:
            GenerationLost: it does not pass.
        """
        failures = 0
        moved = time.monotonic()
        waiting = len(self._producer)
        deadline = moved + TROUBLE_SECONDS
        while True:
            started = time.monotonic()
            try:
                self._answered(call)
            except KafkaException as error:
                if kind_of(error.args[0]) is not Kind.TRANSIENT:
                    raise
                # The length counts messages, and events such as statistics that come and go. Only a
                # new minimum shows that a message was delivered.
                left = len(self._producer)
                if error.args[0].code() != KafkaError._TIMED_OUT or left < waiting:
                    moved, waiting = time.monotonic(), min(waiting, left)
                if time.monotonic() - moved >= STUCK_SECONDS:
                    raise GenerationLost(
                        f"librdkafka got no further with a commit for {STUCK_SECONDS:.0f} s"
                    ) from None
                if time.monotonic() >= deadline:
                    raise GenerationLost(
                        f"can't commit for {TROUBLE_SECONDS:.0f} s: {error.args[0].name()}"
                    ) from None
                self._around.on_trouble("commit", error.args[0])
                if time.monotonic() - started < SLICE_SECONDS / 2:
                    failures += 1
                    self._around.pause(RETRY_BACKOFF.pause_seconds(failures, jitter=1.0))
            else:
                return

    def _answered(self, call: Callable[[], None]) -> None:
        """Call in another thread: while a broker is away, librdkafka may ignore our timeout.

        Raises:
            GenerationLost: no answer came for so long that none is to be expected.
        """
        # What librdkafka reports meanwhile, its statistics above all, it keeps until it is taken: in a
        # commit that took half an hour that was 4 MB.
        self._producer.poll(0)
        answer = self._caller.submit(call)
        deadline = time.monotonic() + ANSWER_SECONDS
        try:
            while True:
                self._around.alive()
                try:
                    return answer.result(2 * SLICE_SECONDS)
                except TimeoutError:
                    self._around.on_trouble("commit", KafkaError(KafkaError._TIMED_OUT))
                self._producer.poll(0)
                if time.monotonic() >= deadline:
                    raise GenerationLost(
                        f"librdkafka did not answer for {ANSWER_SECONDS:.0f} s to what should take "
                        "less than one"
                    )
        finally:
            # As in `Life.aside`.
            del answer
