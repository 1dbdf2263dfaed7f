"""All rows of the matrix; importing them enters them into it, in the order of the table."""

from tests.faults.rows import (  # isort: skip
    processes,
    instances,
    upstream,
    answers,
    network,
    events,
    broker,
    disk,
    machine,
)

__all__ = [
    "answers",
    "broker",
    "disk",
    "events",
    "instances",
    "machine",
    "network",
    "processes",
    "upstream",
]
