"""A first look at a cluster by one who changes nothing: who answers, and which position is stored."""

from __future__ import annotations

import logging
import time

from confluent_kafka import KafkaError, KafkaException

from pleiades.core.position import Checkpoint, UnreadableCheckpoint
from pleiades.sinks.kafka.clients import Clients
from pleiades.sinks.kafka.destination import KafkaDestination
from pleiades.sinks.kafka.patience import CONNECT_SECONDS
from pleiades.sinks.kafka.sink import REACH_SECONDS
from pleiades.sinks.kafka.stored import read_metadata
from pleiades.sinks.kafka.trouble import Kind, fatal, group_of, kind_of
from pleiades.sinks.kafka.view import GROUPS_TOPIC, Cluster, Topic, View

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.2


def reach(clients: Clients, view: View) -> Cluster:
    """Wait for an answer, as long as a start does.

    Raises:
        Fatal: nobody answers, or this user is refused.
    """
    deadline = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            return view.cluster(REACH_SECONDS)
        except KafkaException as raised:
            error = raised.args[0]
        # A refused log-in is no error of a call: librdkafka reports it by itself and tries again.
        clients.listen()
        told = clients.last_error or error
        if Kind.FATAL in (kind_of(told), kind_of(error)) or time.monotonic() >= deadline:
            raise fatal(f"reach Kafka at {clients.settings.brokers}", told, clients.settings)
        time.sleep(RETRY_SECONDS)


def may_hold_groups(events: Topic | KafkaError, groups: Topic | KafkaError) -> bool | None:
    """Whether our group may hold a position; None: to ask could make something.

    Args:
        events: the topic that is published to.
        groups: the topic of all groups.
    """
    if isinstance(groups, Topic):
        return True
    if KafkaError.UNKNOWN_TOPIC_OR_PART in [
        answer.code() for answer in (events, groups) if isinstance(answer, KafkaError)
    ]:
        # Kafka forgets the offsets of a topic that is deleted.
        return False
    # This user may not see the topic of all groups. Where there is ours, there will be that.
    return True if isinstance(events, Topic) else None


def stored_checkpoint(kafka: KafkaDestination) -> Checkpoint | None:
    """The position that an earlier run left; None where there is none, or none that can be read.

    Raises:
        Fatal: the cluster can't be asked.
    """
    clients = Clients(kafka)
    view = View(clients.admin(), kafka)
    reach(clients, view)
    try:
        described = view.topics([kafka.topic, GROUPS_TOPIC])
        if not may_hold_groups(described[kafka.topic], described[GROUPS_TOPIC]):
            return None
        metadata = view.metadata()
    except KafkaException as error:
        raise fatal("look at the topic", error.args[0], kafka) from None
    group = group_of(kafka)
    if isinstance(metadata, KafkaError):
        raise fatal(f"read the position of the group {group}", metadata, kafka)
    try:
        return read_metadata(metadata).checkpoint if metadata else None
    except UnreadableCheckpoint as error:
        log.warning(
            "the position stored as the group %s is unusable (%s): beginning again. What is in the "
            "topic already comes twice, unless with --skipExisting",
            group,
            error,
        )
        return None
