"""The straightforward Python program, in one process.

    python -m tests.benchmarks.plain URL BROKER TOPIC [PIECE_BYTES]

It parses each event with sseclient-py and the standard library's JSON, and produces one record for
each. Without PIECE_BYTES it passes the response to sseclient-py as in the README; with it, in larger
pieces. It keeps no position, and publishes half an event if the connection breaks inside one.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import requests
import sseclient
from confluent_kafka import Producer


def main() -> None:
    """The command line."""
    url, broker, topic, *piece = sys.argv[1:]
    producer = Producer(
        {
            "bootstrap.servers": broker,
            "compression.type": "lz4",
            "linger.ms": 5,
            "queue.buffering.max.messages": 1_000_000,
        }
    )
    response = requests.get(url, stream=True, timeout=60, headers={"Accept": "text/event-stream"})
    # Its types require an iterator, but its README passes a response.
    body: Any = response.iter_content(int(piece[0])) if piece else response
    for event in sseclient.SSEClient(body).events():
        if event.event != "message" or not event.data:
            continue
        change = json.loads(event.data)
        if change["meta"]["domain"] == "canary":
            continue
        while True:
            try:
                producer.produce(topic, event.data.encode(), event.id)
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    producer.flush()


if __name__ == "__main__":
    main()
