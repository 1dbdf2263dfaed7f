"""One suite for all upstreams: the SSE layer of the real EventStreams, and the simulator.

What holds on the real one and not on the simulator is a fault of the simulator.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pytest
import requests

from pleiades.core.units import iso_time
from pleiades.simulator.settings import Faults, SimulatorSettings
from pleiades.simulator.simulator import Simulator
from tests.harness.eventstreams import EventStreams, UpstreamTopics

AGENT = "pleiades-tests (https://example.org; tests@example.org)"
TIMEOUT_SECONDS = 30
START_MS = 1_760_000_000_000
DISORDERED = (0, 5, 5, 5, 9, 7, 8, 12)
"""Kafka timestamps behind START_MS, in the order of the offsets: they collide and run backwards."""


class Place(NamedTuple):
    """An upstream of one stream."""

    url: str
    eqiad: str
    codfw: str
    events: dict[str, list[str]]
    """By topic, the identities in the order of the offsets."""


class Received(NamedTuple):
    """One event as a client sees it."""

    topic: str
    identity: str
    positions: dict[str, dict[str, int]]
    """By topic, what the id says of it but for the partition."""


Make: TypeAlias = Callable[..., Place]


def service(
    stack: ExitStack, kafka: str, eqiad: Sequence[int], codfw: Sequence[int], limit: int
) -> Place:
    topics = stack.enter_context(UpstreamTopics(kafka))
    server = stack.enter_context(EventStreams(kafka, [topics.stream], limit))
    events = {
        topic: topics.produce(topic, *times) if times else []
        for topic, times in ((topics.eqiad, eqiad), (topics.codfw, codfw))
    }
    return Place(f"{server.url}/{topics.stream}", topics.eqiad, topics.codfw, events)


def simulator(
    stack: ExitStack, folder: Path, eqiad: Sequence[int], codfw: Sequence[int], limit: int
) -> Place:
    names = ("eqiad.mediawiki.recentchange", "codfw.mediawiki.recentchange")
    events: dict[str, list[str]] = {name: [] for name in names}
    recorded = folder / "recorded.sse"
    with recorded.open("w") as file:
        for topic, times in zip(names, (eqiad, codfw), strict=True):
            for ms in times:
                events[topic].append(str(uuid.uuid4()))
                meta = {"id": events[topic][-1], "topic": topic, "partition": 0}
                place = [{"topic": topic, "partition": 0, "timestamp": ms + 1}]
                file.write(f"id: {json.dumps(place)}\ndata: {json.dumps({'meta': meta})}\n\n")
    settings = SimulatorSettings(file=recorded, faults=Faults(max_connections=limit))
    upstream = stack.enter_context(Simulator(settings))
    return Place(f"{upstream.url}/recentchange", *names, events)


@pytest.fixture(params=["service", "simulator"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Makes an upstream of events with these Kafka timestamps, ms behind START_MS."""
    with ExitStack() as stack:

        def place(eqiad: Sequence[int] = (), codfw: Sequence[int] = (), limit: int = 0) -> Place:
            times = [[START_MS + ms for ms in topic] for topic in (eqiad, codfw)]
            if request.param == "service":
                return service(stack, request.getfixturevalue("kafka"), times[0], times[1], limit)
            return simulator(stack, tmp_path, times[0], times[1], limit)

        yield place


@contextmanager
def asked(place: Place, since: str = "", **headers: str) -> Iterator[requests.Response]:
    """The answer to a request, its body not yet read."""
    named = {"User-Agent": AGENT, "Accept": "text/event-stream"}
    named |= {name.replace("_", "-"): text for name, text in headers.items()}
    params = {"since": since} if since else None
    with requests.get(
        place.url, params=params, headers=named, stream=True, timeout=TIMEOUT_SECONDS
    ) as answer:
        yield answer


def received(answer: requests.Response) -> Iterator[Received]:
    """The events of an answer as they come."""
    assert answer.status_code == 200, answer.text
    positions: dict[str, dict[str, int]] = {}
    for line in answer.iter_lines():
        name, _, text = line.partition(b": ")
        if name == b"id":
            positions = {entry.pop("topic"): entry for entry in json.loads(text)}
            assert [entry.pop("partition") for entry in positions.values()] == [0] * len(positions)
        elif name == b"data":
            meta = json.loads(text)["meta"]
            yield Received(meta["topic"], meta["id"], positions)


def first(count: int, place: Place, since: str = "", **headers: str) -> list[Received]:
    """The first events that a request gets."""
    with asked(place, since, **headers) as answer:
        events = received(answer)
        return [next(events) for _ in range(count)]


def from_time(*entries: tuple[str, int]) -> str:
    """A Last-Event-ID of topics and ms behind START_MS."""
    return json.dumps(
        [{"topic": topic, "partition": 0, "timestamp": START_MS + ms} for topic, ms in entries]
    )


def iso(ms: int) -> str:
    """ISO 8601 of ms behind START_MS."""
    return iso_time(START_MS + ms)


# ---- what is refused ----


def refusal(place: Place, since: str = "", **headers: str) -> tuple[int, dict[str, Any]]:
    with asked(place, since, **headers) as answer:
        return answer.status_code, answer.json()


def test_an_unknown_stream_is_refused(make: Make) -> None:
    place = make([0])
    nosuch = place._replace(url=place.url.rpartition("/")[0] + "/nosuch")
    status, said = refusal(nosuch)
    assert (status, said["type"], said["detail"]) == (400, "not_found", "Invalid streams: nosuch")


def test_a_since_that_is_no_time_is_refused(make: Make) -> None:
    status, said = refusal(make([0]), since="banana")
    assert (status, said["type"]) == (400, "invalid_timestamp")


@pytest.mark.parametrize("header", ["{}", "[]", "17", "[{}]", '[{"topic": "x"}]', "nonsense"])
def test_an_id_that_is_no_array_of_assignments_is_refused(make: Make, header: str) -> None:
    with asked(make([0]), Last_Event_ID=header) as answer:
        assert answer.status_code == 400
        assert "content-type" not in answer.headers
        assert answer.json()["name"] == "InvalidAssignmentError"


def test_a_topic_outside_the_stream_is_refused(make: Make) -> None:
    status, said = refusal(make([0]), Last_Event_ID=from_time(("eqiad.mediawiki.page-create", 0)))
    assert (status, said["name"]) == (404, "TopicNotAvailableError")


def test_too_many_connections_are_refused(make: Make) -> None:
    place = make([0], limit=1)
    with asked(place, iso(0)) as open_answer:
        # Named: the connection would end with the iterator.
        events = received(open_answer)
        next(events)
        status, said = refusal(place, since=iso(0))
    assert (status, said["type"]) == (429, "too_many_requests")


def test_an_agent_without_contact_is_refused(make: Make) -> None:
    with asked(make([0]), User_Agent="python-requests/2.32") as answer:
        assert answer.status_code == 403


# ---- where a request starts ----


def test_the_answer_is_an_event_stream(make: Make) -> None:
    with asked(make([0]), iso(0)) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert next(answer.iter_lines()) == b":ok"


def test_since_in_iso_8601_begins_there(make: Make) -> None:
    place = make(DISORDERED)
    events = first(4, place, since=iso(6))
    assert [event.identity for event in events] == place.events[place.eqiad][4:]


def test_since_in_milliseconds_begins_with_all_of_history(make: Make) -> None:
    place = make(DISORDERED)
    events = first(8, place, since=str(START_MS + 12))
    assert [event.identity for event in events] == place.events[place.eqiad]


@pytest.mark.parametrize(
    ("ms", "offset"),
    [(0, 0), (1, 1), (5, 1), (6, 4), (7, 4), (8, 4), (9, 4), (10, 7), (12, 7)],
)
def test_a_timestamp_is_the_earliest_offset_that_is_not_before_it(
    make: Make, ms: int, offset: int
) -> None:
    place = make(DISORDERED)
    rest = place.events[place.eqiad][offset:]
    events = first(len(rest), place, Last_Event_ID=from_time((place.eqiad, ms)))
    assert [event.identity for event in events] == rest


def test_the_id_of_the_request_wins_over_since(make: Make) -> None:
    place = make(DISORDERED)
    header = from_time((place.eqiad, 10))
    (event,) = first(1, place, since=iso(0), Last_Event_ID=header)
    assert event.identity == place.events[place.eqiad][7]


def test_a_topic_left_out_of_the_id_is_not_consumed(make: Make) -> None:
    place = make([0, 5], [0, 5])
    events = first(2, place, Last_Event_ID=from_time((place.codfw, 0)))
    assert [event.identity for event in events] == place.events[place.codfw]
    assert [list(event.positions) for event in events] == [[place.codfw]] * 2


# ---- what the ids say ----


def test_an_id_says_one_millisecond_after_the_last_event_of_each_topic(make: Make) -> None:
    place = make(DISORDERED)
    events = first(8, place, since=iso(0))
    assert [event.positions[place.eqiad] for event in events] == [
        {"timestamp": START_MS + ms + 1} for ms in DISORDERED
    ]


def test_until_a_topic_has_delivered_an_id_says_where_it_begins(make: Make) -> None:
    place = make([0, 5], [0, 5])
    events = first(4, place, since=iso(0))
    other = place.codfw if events[0].topic == place.eqiad else place.eqiad
    assert list(events[0].positions[other]) == ["offset"]
    assert events[0].positions[other]["offset"] >= 0
    assert [list(events[-1].positions[topic]) for topic in (place.eqiad, place.codfw)] == [
        ["timestamp"]
    ] * 2


def test_a_topic_that_was_past_its_end_is_at_offset_minus_one(make: Make) -> None:
    place = make([0, 5], [0])
    events = first(2, place, Last_Event_ID=from_time((place.eqiad, 0), (place.codfw, 1)))
    assert [event.positions[place.codfw] for event in events] == [{"offset": -1}] * 2


def test_each_topic_comes_in_the_order_of_its_offsets(make: Make) -> None:
    times = [ms * 7919 % 1000 for ms in range(500)]
    place = make(times, times)
    events = first(1000, place, since=iso(0))
    for topic in (place.eqiad, place.codfw):
        assert [event.identity for event in events if event.topic == topic] == place.events[topic]
