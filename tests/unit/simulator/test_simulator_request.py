from __future__ import annotations

from typing import Any

import orjson
import pytest

from pleiades.simulator.request import (
    Asked,
    Refusal,
    asked_for,
    check_user_agent,
    failure,
    since_ms,
    too_many_connections,
    topics_for,
)

EQIAD, CODFW = "eqiad.mediawiki.recentchange", "codfw.mediawiki.recentchange"
TOPICS = [EQIAD, CODFW]
SOURCES = [(EQIAD, 0), (CODFW, 0)]


def asked(header: str | None, since: int | None = None) -> list[Asked]:
    return asked_for(header, since, TOPICS, SOURCES)


def refusal_of(call: Any, *arguments: Any) -> tuple[Refusal, dict[str, Any]]:
    with pytest.raises(Refusal) as refused:
        call(*arguments)
    body = refused.value.body
    return refused.value, orjson.loads(body) if isinstance(body, bytes) else body


def test_without_a_header_all_topics_start_at_the_end_or_at_since() -> None:
    assert asked(None) == [Asked((EQIAD, 0), -1, None), Asked((CODFW, 0), -1, None)]
    assert asked(None, 5) == [Asked((EQIAD, 0), None, 5), Asked((CODFW, 0), None, 5)]


def test_the_header_wins_over_since_and_leaves_out_what_it_does_not_name() -> None:
    header = f'[{{"topic":"{EQIAD}","partition":0,"timestamp":7}}]'
    assert asked(header, 5) == [Asked((EQIAD, 0), None, 7)]


def test_topic_names_alone_are_assignments_too() -> None:
    assert asked(f'["{CODFW}"]', 5) == [Asked((CODFW, 0), None, 5)]
    assert asked(f'"{CODFW},{EQIAD}"') == [
        Asked((CODFW, 0), -1, None),
        Asked((EQIAD, 0), -1, None),
    ]


def test_an_entry_with_both_keys_is_lost_beside_one_with_a_timestamp() -> None:
    both = f'{{"topic":"{EQIAD}","partition":0,"offset":3,"timestamp":7}}'
    timed = f'{{"topic":"{CODFW}","partition":0,"timestamp":7}}'
    placed = f'{{"topic":"{CODFW}","partition":0,"offset":9}}'
    assert asked(f"[{both},{timed}]") == [Asked((CODFW, 0), None, 7)]
    assert asked(f"[{both},{placed}]") == [Asked((EQIAD, 0), 3, None), Asked((CODFW, 0), 9, None)]


def test_any_partition_and_offset_may_be_named() -> None:
    header = f'[{{"topic":"{EQIAD}","partition":99,"offset":-2}}]'
    assert asked(header) == [Asked((EQIAD, 99), -2, None)]


@pytest.mark.parametrize(
    "header",
    [
        "",
        "banana",
        "[",
        "[]",
        "{}",
        "null",
        "5",
        "[5]",
        '[{"topic":"x"}]',
        f'[{{"topic":"{EQIAD}","partition":0}}]',
        f'[{{"topic":"{EQIAD}","partition":"0","offset":1}}]',
        f'[{{"topic":"{EQIAD}","partition":0,"timestamp":"1"}}]',
        f'[{{"topic":"{EQIAD}","partition":0,"timestamp":true}}]',
        "\udcff",
    ],
)
def test_anything_else_is_an_invalid_assignment(header: str) -> None:
    refusal, body = refusal_of(asked, header)
    assert refusal.status == 400
    assert not refusal.headers
    assert body["name"] == "InvalidAssignmentError"
    assert body["statusCode"] == 400
    assert refusal.reason is not None
    assert refusal.reason.isprintable()


def test_a_topic_outside_of_the_stream_is_not_available() -> None:
    refusal, body = refusal_of(asked, '[{"topic":"eqiad.other","partition":0,"offset":-1}]')
    assert refusal.status == 404
    assert not refusal.headers
    assert body["name"] == "TopicNotAvailableError"
    assert body["message"] == "Topics eqiad.other are not available for consumption."


def test_a_line_end_in_a_topic_does_not_split_the_header() -> None:
    refusal, _ = refusal_of(asked, r'["a\r\nX-Evil: 1"]')
    assert refusal.reason is not None
    assert "\n" not in refusal.reason
    assert "\r" not in refusal.reason


def test_unknown_streams_are_not_found_by_name() -> None:
    refusal, body = refusal_of(topics_for, "recentchange,nosuch,other", ["recentchange"])
    assert refusal.status == 400
    assert refusal.headers["Content-Type"] == "application/json; charset=utf-8"
    assert (body["type"], body["detail"]) == ("not_found", "Invalid streams: nosuch,other")


def test_a_stream_is_two_topics_and_each_is_taken_once() -> None:
    assert topics_for("recentchange,mediawiki.recentchange", ["recentchange"]) == TOPICS


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        (None, None),
        ("", None),
        ("0", 0),
        ("1700000000000", 0),
        ("2023", 0),
        ("-5", 0),
        ("2023-11-14T22:13:20Z", 1_700_000_000_000),
        ("2023-11-14T22:13:20.5Z", 1_700_000_000_500),
        ("2023-11-14T23:13:20+01:00", 1_700_000_000_000),
        ("2023-11-14", 1_699_920_000_000),
    ],
)
def test_since_is_a_date_and_a_number_means_all_there_is(text: str | None, ms: int | None) -> None:
    assert since_ms(text) == ms


@pytest.mark.parametrize("text", ["banana", "nan", "inf", "1_000", "1e99", "2023-13-01"])
def test_since_that_is_neither_is_invalid(text: str) -> None:
    refusal, body = refusal_of(since_ms, text)
    assert refusal.status == 400
    assert body["type"] == "invalid_timestamp"
    assert text in body["detail"]


@pytest.mark.parametrize(
    "agent",
    [
        "",
        "  ",
        "python-requests/2.32.3",
        "Python-urllib/3.11",
        "Python/3.11 aiohttp/3.14.5",
        "Go-http-client/1.1",
        "curl/8.5.0",
        "Wget/1.21",
        "okhttp/4.9",
        "axios/1.6",
    ],
)
def test_default_agents_are_refused(agent: str) -> None:
    with pytest.raises(Refusal) as refused:
        check_user_agent(agent)
    assert refused.value.status == 403


@pytest.mark.parametrize(
    "agent",
    [
        "CoolBot/0.0 (https://example.org/coolbot/; coolbot@example.org) library/0.0",
        "CoolBot/0.0",
        "curl/8.5.0 (me@example.org)",
        "python-requests/2.32.3 (https://example.org/)",
    ],
)
def test_agents_that_describe_themselves_are_served(agent: str) -> None:
    check_user_agent(agent)


def test_too_many_connections_and_failures_are_json_or_the_proxys_page() -> None:
    def raised(refusal: Refusal) -> None:
        raise refusal

    refusal, body = refusal_of(raised, too_many_connections())
    assert (refusal.status, body["type"]) == (429, "too_many_requests")
    assert refusal_of(raised, failure(500))[1]["status"] == 500
    assert failure(503).headers["Content-Type"] == "text/html; charset=utf-8"
