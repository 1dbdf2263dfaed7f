from __future__ import annotations

import random
import re
from collections import Counter
from datetime import datetime
from itertools import islice, pairwise
from typing import Any

import orjson
import pytest

from pleiades.simulator.generator import disordered, generated
from pleiades.simulator.log import Fresh
from pleiades.simulator.settings import NO_DISORDER, Disorder, SimulatorSettings

STARTED_MS = 1_790_000_000_000
COUNT = 20_000
UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def events(count: int, started_ms: int = STARTED_MS, **changes: Any) -> list[Fresh]:
    settings = SimulatorSettings(**{"history_events": count, **changes})
    return list(islice(generated(settings, started_ms), count))


def body(fresh: Fresh) -> Any:
    assert fresh.split
    return orjson.loads(fresh.payload[: fresh.split] + b"42" + fresh.payload[fresh.split :])


@pytest.fixture(scope="module")
def many() -> list[Fresh]:
    return events(COUNT)


@pytest.fixture(scope="module")
def bodies(many: list[Fresh]) -> list[Any]:
    return [body(fresh) for fresh in many]


def test_the_same_seed_gives_the_same_events_relative_to_the_start() -> None:
    def relative(started_ms: int) -> list[tuple[Any, ...]]:
        return [
            (f.due_ms, f.source, f.timestamp_ms - started_ms, f.identity, f.canary)
            for f in events(500, started_ms)
        ]

    assert relative(STARTED_MS) == relative(STARTED_MS + 12_345_678)
    assert events(500) == events(500)
    assert [f.identity for f in events(50)] != [f.identity for f in events(50, seed=2)]


def test_sizes_are_those_of_the_real_stream(many: list[Fresh]) -> None:
    sizes = [len(fresh.payload) for fresh in many]
    assert 1_150 < sum(sizes) / len(sizes) < 1_350
    assert max(sizes) < 8_000


def test_meta_tells_where_the_event_is(many: list[Fresh], bodies: list[Any]) -> None:
    for fresh, event in zip(many, bodies, strict=True):
        meta = event["meta"]
        assert UUID4.fullmatch(fresh.identity)
        assert meta["id"] == fresh.identity
        assert (meta["topic"], meta["partition"], meta["offset"]) == (*fresh.source, 42)
        assert meta["stream"] == "mediawiki.recentchange"
        assert (meta["domain"] == "canary") is fresh.canary
        assert int(datetime.fromisoformat(meta["dt"]).timestamp() * 1000) == fresh.timestamp_ms
    assert len({fresh.identity for fresh in many}) == COUNT


def test_bodies_follow_the_schema(bodies: list[Any]) -> None:
    # https://schema.wikimedia.org/repositories/primary/jsonschema/mediawiki/recentchange/1.0.1
    types: dict[str, tuple[type, ...]] = {
        "title": (str,),
        "$schema": (str,),
        "type": (str,),
        "bot": (bool,),
        "comment": (str,),
        "id": (int, type(None)),
        "length": (dict,),
        "log_action": (str,),
        "log_action_comment": (str, type(None)),
        "log_id": (int, type(None)),
        "log_params": (list, dict, str),
        "log_type": (str, type(None)),
        "meta": (dict,),
        "minor": (bool,),
        "namespace": (int,),
        "parsedcomment": (str,),
        "patrolled": (bool,),
        "revision": (dict,),
        "server_name": (str,),
        "server_script_path": (str,),
        "server_url": (str,),
        "timestamp": (int,),
        "user": (str,),
        "wiki": (str,),
        "notify_url": (str,),
        "title_url": (str,),
    }
    for event in bodies:
        assert {"$schema", "meta"} <= event.keys() <= types.keys()
        for name, value in event.items():
            assert type(value) in types[name], name


def test_what_is_rare_is_there(many: list[Fresh], bodies: list[Any]) -> None:
    full = [event for event in bodies if "type" in event]
    kinds = Counter(event["type"] for event in full)
    assert [kind for kind, _ in kinds.most_common()] == ["edit", "categorize", "new", "log"]
    assert any("user" not in event for event in full)
    assert any("id" not in event for event in full)
    assert any(event.get("id", 0) is None for event in full)
    raw = b"".join(fresh.payload for fresh in many)
    for mark in ("\u2028", "\u0085", "Д".lower(), "川"):
        assert mark.encode() in raw
    assert b"\n" not in raw


def test_both_data_centres_have_events_and_canaries_of_both_kinds(
    many: list[Fresh], bodies: list[Any]
) -> None:
    topics = Counter(fresh.source[0] for fresh in many)
    assert 0.1 < topics["codfw.mediawiki.recentchange"] / COUNT < 0.2
    canaries = [e for f, e in zip(many, bodies, strict=True) if f.canary]
    # 200 s of history with canaries once a minute in each of two topics.
    assert len(canaries) == 8
    assert {e["meta"]["topic"] for e in canaries} == set(topics)
    keys = {frozenset(e) for e in map(body, (f for f in events(5_000, canary_every_seconds=0.1)
                                           if f.canary))}  # fmt: skip
    assert frozenset({"$schema", "meta"}) in keys
    assert len(keys) == 2


def test_no_canaries_when_they_are_off() -> None:
    assert not any(fresh.canary for fresh in events(2_000, canary_every_seconds=0))


def test_history_ends_at_the_start_and_the_rest_follows_at_the_rate() -> None:
    fresh = events(3_000, rate=200.0, history_events=1_000)
    assert [f.due_ms < 0 for f in fresh] == [True] * 1_000 + [False] * 2_000
    assert all(a.due_ms <= b.due_ms for a, b in pairwise(fresh))
    assert fresh[0].due_ms == pytest.approx(-5_000, abs=5)
    assert fresh[-1].due_ms == pytest.approx(10_000, abs=5)


def test_without_disorder_timestamps_are_those_of_the_clock() -> None:
    for fresh in events(2_000, disorder=NO_DISORDER):
        assert fresh.timestamp_ms == STARTED_MS + int(fresh.due_ms // 1)


def test_timestamps_collide_and_run_backwards(many: list[Fresh]) -> None:
    times = [f.timestamp_ms for f in many if f.source[0].startswith("eqiad")]
    steps = [b - a for a, b in pairwise(times)]
    assert sum(step == 0 for step in steps) > 0.1 * len(steps)
    assert sum(step < 0 for step in steps) > 0.005 * len(steps)
    assert any(-15_000 < step < -900 for step in steps)
    assert max(times) <= STARTED_MS


def test_kinds_of_disorder_can_be_chosen() -> None:
    rng = random.Random(1)

    def always(**rates: float) -> list[int]:
        disorder = Disorder(**{"collide_rate": 0.0, "back_rate": 0.0, "back_seconds_rate": 0.0,
                               "back_years_rate": 0.0, **rates})  # type: ignore[arg-type]  # fmt: skip
        return [disordered(rng, disorder, STARTED_MS, STARTED_MS - 3) - STARTED_MS
                for _ in range(300)]  # fmt: skip

    assert set(always()) == {0}
    assert set(always(collide_rate=1)) == {-3}
    assert all(-50 <= late < 0 for late in always(back_rate=1))
    assert all(-10_000 <= late <= -1_000 for late in always(back_seconds_rate=1))
    assert all(late < -20 * 86_400_000 for late in always(back_years_rate=1))
    assert all(0 < early <= 2_000 for early in always(ahead_rate=1, ahead_seconds=2))
    assert disordered(rng, Disorder(resolution_ms=1000), STARTED_MS + 999, None) % 1000 == 0


def test_the_first_event_and_one_after_an_imported_edit_collide_with_nothing() -> None:
    rng = random.Random(1)
    collide = Disorder(1.0, 0.0, 0.0, 0.0)
    assert disordered(rng, collide, STARTED_MS, None) == STARTED_MS
    assert disordered(rng, collide, STARTED_MS, STARTED_MS - 10**11) == STARTED_MS


def test_streams_and_partitions_are_all_used() -> None:
    fresh = events(2_000, streams=("recentchange", "page-create"), partitions=2)
    assert {f.source for f in fresh} == {
        (f"{dc}.mediawiki.{stream}", partition)
        for dc in ("eqiad", "codfw")
        for stream in ("recentchange", "page-create")
        for partition in (0, 1)
    }
    assert all(body(f)["meta"]["stream"] in f.source[0] for f in fresh)
