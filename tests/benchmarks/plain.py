"""The straightforward Python program: what one writes first, in one process.

    python -m tests.benchmarks.plain URL BROKER TOPIC

It parses each event with sseclient-py and the standard library's JSON, and produces one record for each.
It forgets where it was, and publishes half an event if the connection breaks inside one.
"""

from __future__ import annotations

import json
import sys

import requests
import sseclient
from confluent_kafka import Producer


def main() -> None:
    """The command line."""
    url, broker, topic = sys.argv[1:]
    producer = Producer(
        {
            "bootstrap.servers": broker,
            "compression.type": "lz4",
            "linger.ms": 5,
            "queue.buffering.max.messages": 1_000_000,
        }
    )
    response = requests.get(url, stream=True, timeout=60, headers={"Accept": "text/event-stream"})
    for event in sseclient.SSEClient(response.iter_content(64 * 1024)).events():
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
