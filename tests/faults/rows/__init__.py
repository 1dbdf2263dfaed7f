"""All rows of the matrix; the import registers them in the order of the table."""

from tests.faults.matrix import in_order
from tests.faults.rows import (
    answers,
    broker,
    disk,
    events,
    instances,
    machine,
    network,
    processes,
    real_service,
    remembering,
    upstream,
)

in_order(
    processes,
    instances,
    remembering,
    upstream,
    real_service,
    answers,
    network,
    events,
    broker,
    disk,
    machine,
)
