"""Checks that the benchmark works; the figures of this small form mean nothing."""

from __future__ import annotations

import json
import math
import os
import socket
import ssl
import subprocess
import sys
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.benchmarks.corpus import OPENING, Shape, corpus
from tests.benchmarks.pictures import Curve, Point, draw
from tests.benchmarks.report import as_json, markdown, page
from tests.benchmarks.runs import PLAIN, Upstream, lags
from tests.benchmarks.serve import EVENT_CHUNKS, HEAD, MAX_RECORD_BYTES
from tests.benchmarks.trials import TRIALS, OverTls, Row, Spread, Target
from tests.harness.script import chunked

TIMEOUT_SECONDS = 280
CLIENT_SECONDS = 30.0
RATE, EVENTS = 500.0, 100


def bench(*arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", *arguments],
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )


def test_every_trial_runs_and_is_reported(kafka: str, tmp_path: Path) -> None:
    # `parsers` runs the same code as `growth`, and `live` the same as `tls`.
    names = [name for name in TRIALS if name not in ("parsers", "live")]
    done = bench(
        *names,
        "--quick",
        "--json",
        f"--dir={tmp_path}",
        f"--against={Path.cwd()}",
        environment={"KAFKA_BOOTSTRAP": kafka},
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert {row["name"] for row in rows} == set(names)
    assert all(row["ours"]["median"] > 0 for row in rows if "unread" not in row["what"])
    # HTTP and HTTPS, in the same run.
    for row in rows:
        if row["name"] in ("kafka", "plain"):
            assert row["https"]["to_http"] == row["https"]["ours"]["median"] / row["ours"]["median"]
    assert all(row["met"] is not None for row in rows if row["target"])
    # The input is kept for the next run; the published events are not.
    assert [left.name for left in tmp_path.iterdir()] == ["input"]


@contextmanager
def answered(upstream: Upstream, last_event_id: bytes = b"") -> Iterator[socket.socket]:
    """A client that has sent its request, and has read nothing yet."""
    address = urlsplit(upstream.url)
    assert address.hostname
    assert address.port
    plain = socket.create_connection((address.hostname, address.port), CLIENT_SECONDS)
    if address.scheme == "https":
        authority = upstream.environment["REQUESTS_CA_BUNDLE"]
        trust = ssl.create_default_context(cafile=authority)
        client: socket.socket = trust.wrap_socket(plain, server_hostname=address.hostname)
    else:
        client = plain
    with client:
        header = b"Last-Event-ID: %b\r\n" % last_event_id if last_event_id else b""
        client.sendall(b"GET / HTTP/1.1\r\n%b\r\n" % header)
        yield client


@pytest.mark.parametrize("record_bytes", [1, 1400, MAX_RECORD_BYTES])
def test_the_upstream_cuts_its_tls_records(record_bytes: int, tmp_path: Path) -> None:
    source = corpus(tmp_path, Shape(40))
    with Upstream(source, record_bytes) as upstream, answered(upstream) as client:
        # One SSL_read returns one record, or the rest of it.
        pieces = list(iter(lambda: client.recv(2 * MAX_RECORD_BYTES), b""))
    sent = HEAD + source.path.read_bytes()
    assert b"".join(pieces) == sent
    assert max(map(len, pieces)) == record_bytes
    fewest = math.ceil(len(sent) / record_bytes)
    assert fewest <= len(pieces) <= fewest + 1


@pytest.mark.parametrize("record_bytes", [PLAIN, MAX_RECORD_BYTES])
def test_a_live_upstream_tells_how_much_is_unread(record_bytes: int, tmp_path: Path) -> None:
    source = corpus(tmp_path, Shape(EVENTS, chunk_bytes=0))
    sent = HEAD + source.path.read_bytes().removesuffix(chunked(b""))
    with Upstream(source, record_bytes, RATE) as upstream, answered(upstream):
        upstream.asked()
        assert upstream.unread_bytes() >= len(sent)
    with Upstream(source, record_bytes, RATE) as upstream:
        with answered(upstream):
            # The client leaves, as a relay does that reconnects; this is not recorded.
            upstream.asked()
        with answered(upstream) as client:
            read, lengths = b"", []
            while len(read) < len(sent):
                read += client.recv(MAX_RECORD_BYTES)
                lengths.append(len(read))
            assert upstream.unread_bytes() == 0
    assert read == sent
    if record_bytes:
        # The head, the opening, and a record for each line of an event.
        assert len(lengths) == 2 + EVENT_CHUNKS * EVENTS


@pytest.mark.parametrize("had_all", [False, True])
def test_only_a_client_that_has_had_all_is_told_nothing(had_all: bool, tmp_path: Path) -> None:
    source = corpus(tmp_path, Shape(40))
    time_ms = max(source.reached_ms.values()) if had_all else 1_000_000
    asked = b'[{"topic":"eqiad.a","partition":0,"timestamp":%d}]' % time_ms
    expected = HEAD + (chunked(OPENING) if had_all else source.path.read_bytes())
    read = b""
    with Upstream(source) as upstream, answered(upstream, asked) as client:
        while len(read) < len(expected):
            read += client.recv(MAX_RECORD_BYTES)
    assert read == expected


def test_an_event_that_has_not_arrived_is_late(tmp_path: Path) -> None:
    due = tmp_path / "due"
    due.write_bytes(array("d", [10.0, 11.0, 12.0]).tobytes())
    assert lags(due, [10.5, 12.0], 20.0) == [0.5, 1.0, 8.0]


def test_the_report_has_a_column_for_https() -> None:
    rate, rival = Spread(500, 400, 600), Spread(1000, 1000, 1000)
    https = OverTls(Spread(400, 300, 500), Spread(500, 500, 500), 0.8, 0.8)
    alone = https._replace(rival=None, figure=None)
    rows = [
        Row("kafka", "rates", "events/s", rate, rival, 0.5, Target(0.7, at_least=True), https),
        Row("kafka", "CPU", "s", rate, https=alone),
        Row("live", "lag", "ms", rate),
    ]
    head, _, *lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in markdown(rows).splitlines()
    ]
    column = head.index("over HTTPS")
    assert [line[column] for line in lines] == [
        "400 : 500 = 0.8, 0.8 of HTTP",
        "400, 0.8 of HTTP",
        "",
    ]
    reported = json.loads(as_json(rows))["rows"]
    assert reported[0]["https"]["rival"] == {"median": 500, "least": 500, "most": 500}
    assert reported[0]["target"] == {"limit": 0.7, "at_least": True}
    assert reported[2]["https"] is None


def test_the_report_is_a_page_with_the_machine_and_a_picture(tmp_path: Path) -> None:
    rate, rival = Spread(500, 400, 600), Spread(1000, 1000, 1000)
    rows = [
        Row("kafka", "curl | kcat", "events/s", rate, rival, 0.5, Target(0.7, at_least=True)),
        Row("live", "lag", "ms", rate),
    ]
    written = page(rows, tmp_path / "report").read_text()
    assert f"cores {os.cpu_count()}" in written
    assert "![Ratios](ratios.svg)" in written
    assert "curl \\| kcat" in written
    drawn = (tmp_path / "report" / "ratios.svg").read_text()
    assert "kafka: curl | kcat" in drawn
    assert "0.50" in drawn
    assert "lag" not in drawn, "it is compared with nothing"


def test_each_stage_is_profiled(kafka: str, tmp_path: Path) -> None:
    done = bench(
        "profile",
        "--quick",
        f"--dir={tmp_path}/bench",
        f"--pictures={tmp_path}/drawn",
        environment={"KAFKA_BOOTSTRAP": kafka},
    )
    assert done.returncode == 0, done.stderr
    drawn = {file.name: file.read_text() for file in (tmp_path / "drawn").iterdir()}
    for stage in ("reader", "parser", "publisher"):
        assert f"(pleiades/{stage}.py:" in drawn.pop(f"{stage}.svg")
    assert not drawn


def test_curves_are_drawn(tmp_path: Path) -> None:
    points = [Point(1, Spread(5, 4, 6)), Point(64, Spread(1234, 1000, 1300))]
    for name in ("rates.svg", "again.svg"):
        draw(
            [Curve("parsers", "events/s", points), Curve("bytes", "MB/s", points)], tmp_path / name
        )
    drawn = (tmp_path / "rates.svg").read_text()
    for text in ("parsers", "events/s", "bytes", "MB/s", "64", "1,200"):
        assert f">{text}</text>" in drawn
    assert drawn == (tmp_path / "again.svg").read_text()


def test_an_unknown_name_is_told(tmp_path: Path) -> None:
    done = bench("nosuch", f"--dir={tmp_path}", environment={})
    assert done.returncode == 2
    assert "there is no nosuch; there are kafka, plain," in done.stderr
    assert not list(tmp_path.iterdir())
