"""The newcomer's single command."""

from __future__ import annotations

from pathlib import Path

import orjson

from tests.harness.oracle import more_than
from tests.harness.relay import Relay


def test_the_demo_relays_into_events_and_compares(tmp_path: Path) -> None:
    fast = ["--demo.rate=200", "--demo.cutEvery=1s", "--metricsPort=0"]
    events = tmp_path / "demo-events"
    with Relay("demo", *fast, cwd=tmp_path) as relay:
        relay.until(lambda: events.is_dir() and more_than(events, 300)(), "events", 30)
        relay.child("parser-0").kill()
        relay.wait_for("starting all processes again")
        relay.wait_for("the connection ended .*", after=len(relay.lines))
        assert relay.stop() == 0
    compared = relay.wait_for(r"compared (\d+) events: 0 lost, 0 doubled")
    assert int(compared[1]) > 300
    for path in events.glob("[0-9]*/*.json"):
        assert orjson.loads(path.read_bytes())["meta"]["domain"] != "canary"


def test_a_second_demo_goes_on_in_the_same_folder(tmp_path: Path) -> None:
    for _ in range(2):
        with Relay("demo", "--demo.rate=200", "--metricsPort=0", cwd=tmp_path) as relay:
            relay.until(lambda: relay.metric("pleiades_file_publish_events_total") > 50, "more", 30)
            assert relay.stop() == 0
        relay.wait_for("0 lost, 0 doubled")
