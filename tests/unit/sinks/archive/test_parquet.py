"""Parquet files of events."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pleiades.sinks.archive import parquet
from pleiades.sinks.archive.codecs import ZST
from pleiades.sinks.archive.finish import Job, finish
from pleiades.sinks.archive.layout import PARQUET
from pleiades.sinks.archive.parquet import SCHEMA
from tests.harness.segments import event_lines, sealed_segment

LINES = event_lines(500)


def parquet_of(folder: Path, lines: list[bytes]) -> pq.ParquetFile:
    raw = sealed_segment(folder / "raw", lines, ZST)
    output = folder / "events.parquet"
    finished = finish(Job(str(raw), raw.stat().st_size, ZST, str(output), PARQUET))
    assert finished.bytes == output.stat().st_size
    return pq.ParquetFile(io.BytesIO(output.read_bytes()))


def rows_of(file: pq.ParquetFile) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = file.read().to_pylist()
    return rows


def test_rows_are_the_events_in_their_order(tmp_path: Path) -> None:
    file = parquet_of(tmp_path, LINES)
    assert file.schema_arrow.equals(SCHEMA)
    rows = rows_of(file)
    assert [row["json"].encode() + b"\n" for row in rows] == LINES
    for row in rows:
        event = orjson.loads(row["json"])
        for name in ("wiki", "type", "namespace", "title", "user", "bot"):
            assert row[name] == event.get(name)
        assert row["timestamp"].timestamp() == event["timestamp"]
        meta = row["meta"]
        assert (
            meta.pop("dt").isoformat(timespec="milliseconds")[:23] == event["meta"].pop("dt")[:23]
        )
        assert meta == event["meta"]


def test_row_groups_are_bounded_and_pruned_by_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "BATCH_ROWS", 40)
    monkeypatch.setattr(parquet, "GROUP_ROWS", 80)
    metadata = parquet_of(tmp_path, LINES).metadata
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    assert [group.num_rows for group in groups] == [80, 80, 80, 80, 80, 80, 20]
    of = {groups[0].column(at).path_in_schema: at for at in range(groups[0].num_columns)}
    for name in ("meta.dt", "timestamp"):
        ranges = [group.column(of[name]).statistics for group in groups]
        for before, after in pairwise(ranges):
            assert before.min < before.max <= after.min
    assert all(group.column(at).compression == "ZSTD" for group in groups for at in of.values())


def test_large_events_make_smaller_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "GROUP_BYTES", 100_000)
    lines = [b'{"n":%d,"x":"%b"}\n' % (n, b"x" * 30_000) for n in range(9)]
    metadata = parquet_of(tmp_path, lines).metadata
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [4, 4, 1]


@pytest.mark.parametrize(
    "line",
    [b"", b"[]", b"{}", b'{"meta":[],"title":7}', rb'{"title":"\ud800"}', b"no JSON", b'"\\u0000"'],
)
def test_any_line_is_a_row(tmp_path: Path, line: bytes) -> None:
    rows = rows_of(parquet_of(tmp_path, [line + b"\n", *LINES[:2]]))
    assert [row["json"].encode() + b"\n" for row in rows] == [line + b"\n", *LINES[:2]]
    assert [row["wiki"] is None for row in rows] == [True, False, False]


def test_a_line_that_is_not_utf_8_is_a_row(tmp_path: Path) -> None:
    rows = rows_of(parquet_of(tmp_path, [b'{"title":"\xff"}\n', *LINES[:2]]))
    assert rows[0]["json"] == '{"title":"\ufffd"}'
    assert rows[1]["json"].encode() + b"\n" == LINES[0]


def test_no_line_is_no_row(tmp_path: Path) -> None:
    assert rows_of(parquet_of(tmp_path, [])) == []


def test_memory_is_a_row_group(tmp_path: Path) -> None:
    lines = LINES * 80
    metadata = parquet_of(tmp_path, lines).metadata
    assert metadata.num_row_groups > 3
    assert pa.system_memory_pool().max_memory() < 40 << 20 < len(b"".join(lines))
