from __future__ import annotations

import pytest

from pleiades.core.range import Slice
from pleiades.replay.arguments import Arguments, arguments_from, moment, part, rate, replay_parser
from pleiades.runtime.errors import UsageError
from pleiades.sinks.base import destination_of
from pleiades.sinks.counting import CountingDestination

NOW_MS = 1_790_000_000_000
ID = (
    '[{"topic":"eqiad.x","partition":0,"timestamp":1700000000001},'
    '{"topic":"codfw.x","partition":0,"timestamp":1700000000001}]'
)


def arguments(*flags: str) -> Arguments:
    parser = replay_parser("")
    return arguments_from(vars(parser.parse_args(["--kafka.enable", *flags])))


def name(*flags: str) -> str:
    return destination_of(arguments(*flags).settings).position_name


@pytest.mark.parametrize(
    ("text", "begin_ms"),
    [
        ("2026-01-31T12:00:00Z", 1_769_860_800_000),
        ("2026-01-31T13:00:00+01:00", 1_769_860_800_000),
        ("1769860800000", 1_769_860_800_000),
        ("-36h", NOW_MS - 36 * 3_600_000),
        ("now", NOW_MS),
        (ID, 1_700_000_000_001),
    ],
)
def test_moments(text: str, begin_ms: int) -> None:
    assert moment(text).bound(NOW_MS, first=True).default_ms == begin_ms


@pytest.mark.parametrize("text", ["[]", "[{}]", "[1]", "[", "yesterday", "-36", '[{"topic":"a"}]'])
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(ValueError, match="."):
        moment(text)


def test_a_relative_moment_can_stand_alone_on_the_command_line() -> None:
    told = arguments("--from", "-36h", "--to", "-1h")
    span = told.range(NOW_MS)
    assert span.begin.default_ms == NOW_MS - 36 * 3_600_000
    assert span.end.default_ms == NOW_MS - 3_600_000


def test_slices_of_the_arguments_meet() -> None:
    ends = []
    for number in range(3):
        span = arguments("--from=1000", "--to=2000", f"--slice={number}/3").range(NOW_MS)
        ends.append((span.begin.default_ms, span.end.default_ms))
    assert ends == [(1000, 1333), (1333, 1666), (1666, 2000)]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--to=2000"], "--from is missing"),
        (["--from=-2h", "--slice=0/2"], "same in every process"),
        (["--from=1000", "--slice=0/2"], "same in every process"),
        (["--from=2000", "--to=2000"], "nothing to replay"),
        (["--from=3000", "--to=2000"], "nothing to replay"),
        (["--from=1000", "--to=1002", "--slice=0/5"], "fewer milliseconds than slices"),
        # In the year 2100.
        (["--from=1000", "--to=4102444800000"], "must not lie in the future"),
        (
            ["--from=1", "--kafka.enable=false", "--file.enable", "--skipExisting"],
            "have names that tell what is there",
        ),
        (["--from=1", "--kafka.enable=false"], "no publisher"),
    ],
)
def test_contradictions_are_refused(flags: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        arguments(*flags).range(NOW_MS)


@pytest.mark.parametrize(
    "flag",
    [
        *("--slice=3/3", "--slice=1", "--slice=a/b", "--slice=0/0", "--slice=0/99999"),
        *("--rate=fast", "--rate=-1/s", "--limit=0", "--limit=x", "--from=soon"),
        "--upstream.connections=0",
    ],
)
def test_what_can_not_be_read_is_refused(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        arguments("--from=1", flag)
    assert ended.value.code == 2
    assert flag.partition("=")[0] in capsys.readouterr().err


def test_the_same_arguments_have_the_same_position_and_others_another() -> None:
    usual = name("--from=2026-01-31T12:00:00Z", "--to=2026-02-01")
    assert usual == name("--from=1769860800000", "--to=2026-02-01T00:00:00Z", "--rate=5/s")
    others = {
        name("--from=2026-01-31T12:00:00.001Z", "--to=2026-02-01"),
        name("--from=2026-01-31T12:00:00Z", "--to=2026-02-02"),
        name("--from=2026-01-31T12:00:00Z", "--to=2026-02-01", "--slice=0/2"),
        name("--from=2026-01-31T12:00:00Z", "--to=2026-02-01", "--slice=1/2"),
        name("--from=2026-01-31T12:00:00Z", "--to=2026-02-01", "--upstream.stream=page-create"),
    }
    assert len(others | {usual}) == 6


def test_the_name_of_a_relative_range_does_not_change_with_the_clock() -> None:
    assert name("--from=-36h") == name("--from", "-36h", "--to=now")


def test_a_position_of_many_streams_has_a_short_name() -> None:
    streams = ",".join(f"stream-{number}" for number in range(60))
    assert len(name("--from=1", "--to=900", f"--upstream.stream={streams}", "--slice=17/200")) < 40


def test_nothing_is_shared_with_the_live_position() -> None:
    assert name("--from=1").startswith("recentchange-replay-")


def test_a_dry_run_needs_no_publisher_and_takes_none() -> None:
    told = arguments("--from=1", "--dry-run", "--file.enable")
    assert isinstance(told.settings.destination, CountingDestination)


def test_an_empty_end_is_now() -> None:
    assert arguments("--from=1", "--to=").end == moment("now")


def test_parts_and_rates() -> None:
    assert part("2/8") == Slice(2, 8)
    assert part("") is None
    assert rate("500/s") == rate("500") == 500.0
    assert rate("0.5/s") == 0.5


@pytest.mark.parametrize("flag", ["--from", "--to"])
@pytest.mark.parametrize("offset", [-1, 17])
def test_an_id_with_an_offset_is_refused(
    flag: str, offset: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """All ids have one until each topic has delivered; 32,523 events were silently left out."""
    entry = f'{{"topic":"codfw.x","partition":0,"offset":{offset}}}'
    sse_id = f'[{{"topic":"eqiad.x","partition":0,"timestamp":1700000000001}},{entry}]'
    with pytest.raises(SystemExit) as refused:
        arguments("--from=-1h", f"{flag}={sse_id}")
    assert refused.value.code == 2
    assert "how far codfw.x/0 had got" in capsys.readouterr().err
