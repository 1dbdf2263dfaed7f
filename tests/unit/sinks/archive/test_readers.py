"""Databases read an archive as it is: by the layout, in each format, from one frame or many."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.json as pj
import pytest

from pleiades.core.units import parse_iso_time_ms
from pleiades.sinks.archive.finish import Job, finish
from pleiades.sinks.archive.layout import (
    CODEC_OF,
    DEAD_LETTERS,
    NDJSON,
    NDJSON_GZ,
    NDJSON_ZST,
    PARQUET,
    segment_name,
)
from tests.harness.segments import event_lines, sealed_segment

DATE = "2026-11-27"
COUNTS = [(9, 150), (10, 250)]
HOURS = {hour: event_lines(count, f"{DATE}T{hour:02}:00:00Z", seed=hour) for hour, count in COUNTS}
EDITS = sum(b'"type":"edit"' in line for lines in HOURS.values() for line in lines)
RECENT_CHANGE = "stream=mediawiki.recentchange"
FORMATS_AND_FRAMES = [
    *itertools.product((NDJSON_ZST, NDJSON_GZ), ("one", "many")),
    (NDJSON, "one"),
    (PARQUET, "one"),
]
MakeArchive = Callable[[str, str], Path]


@pytest.fixture
def make_archive(tmp_path: Path) -> MakeArchive:
    def make(wanted: str, frames: str) -> Path:
        """An archive with everything that it has beside the segments."""
        archive = tmp_path / "archive"
        own = archive / ".pleiades" / "segments"
        own.mkdir(parents=True)
        (archive / "manifest.ndjson").write_text('{"sequence":1}\n')
        codec = CODEC_OF.get(wanted, "zst")
        for hour, lines in HOURS.items():
            first_ms = parse_iso_time_ms(f"{DATE}T{hour:02}:00:00.012Z")
            name = segment_name("mediawiki.recentchange", first_ms, "00000001", wanted)
            path = archive / name
            path.parent.mkdir(parents=True)
            if frames == "many":
                sealed_segment(path, lines, codec, lines_per_commit=7)
                continue
            raw = sealed_segment(own / "ingest.1", lines, codec)
            finish(Job(str(raw), raw.stat().st_size, codec, str(path), wanted))
        letters = NDJSON_ZST if wanted == PARQUET else wanted
        path = archive / segment_name(DEAD_LETTERS, first_ms, "00000002", letters)
        path.parent.mkdir(parents=True)
        sealed_segment(path, [b'{"reason":"not_json","data":"?"}\n'], CODEC_OF[letters])
        return archive

    return make


@pytest.mark.parametrize(("wanted", "frames"), FORMATS_AND_FRAMES)
def test_duckdb(make_archive: MakeArchive, wanted: str, frames: str) -> None:
    files = f"{make_archive(wanted, frames)}/stream=*/**/*.{wanted}"
    with duckdb.connect() as database:
        table = database.sql(f"from '{files}'")
        rows = table.aggregate("stream, date, hour, count(*), count(distinct meta.id)").order(
            "hour"
        )
        found = rows.fetchall()
        edits = table.filter("type = 'edit'").aggregate("count(*)").fetchall()
    date = dt.date.fromisoformat(DATE)
    # To DuckDB, a number with a leading zero is text.
    assert found == [
        ("mediawiki.recentchange", date, f"{hour:02}", count, count) for hour, count in COUNTS
    ]
    assert edits == [(EDITS,)]


@pytest.mark.parametrize(("wanted", "frames"), FORMATS_AND_FRAMES)
def test_polars(make_archive: MakeArchive, wanted: str, frames: str) -> None:
    files = make_archive(wanted, frames) / "stream=*" / "**" / f"*.{wanted}"
    if wanted == PARQUET:
        table = pl.scan_parquet(files, hive_partitioning=True)
    else:
        # Of lines, Polars reads no partitions, but it can tell the path of each.
        columns: dict[str, Any] = {
            "meta": pl.Struct({"id": pl.String}),
            "type": pl.String,
        }
        table = pl.scan_ndjson(files, schema=columns, include_file_paths="path").with_columns(
            hour=pl.col("path").str.extract(r"hour=(\d+)").cast(pl.Int64)
        )
    counts = table.group_by("hour").len().sort("hour").collect()
    assert counts.rows() == COUNTS
    assert table.filter(pl.col("type") == "edit").select(pl.len()).collect().item() == EDITS
    ids = table.select(pl.col("meta").struct.field("id").n_unique()).collect().item()
    assert ids == sum(count for _, count in COUNTS)


def test_arrow_reads_parquet_by_partitions(make_archive: MakeArchive) -> None:
    table = ds.dataset(make_archive(PARQUET, "one") / RECENT_CHANGE, partitioning="hive")
    assert table.count_rows(filter=ds.field("hour") == 10) == 250
    assert table.count_rows(filter=ds.field("type") == "edit") == EDITS
    since = dt.datetime.fromisoformat(f"{DATE}T10:00:00Z")
    assert table.count_rows(filter=ds.field("meta", "dt") >= since) == 250


@pytest.mark.parametrize(("wanted", "frames"), FORMATS_AND_FRAMES[:-1])
def test_arrow_reads_lines(make_archive: MakeArchive, wanted: str, frames: str) -> None:
    (file,) = (make_archive(wanted, frames) / RECENT_CHANGE).glob(f"*/hour=10/*.{wanted}")
    options = pj.ParseOptions(
        explicit_schema=pa.schema([("type", pa.string())]), unexpected_field_behavior="ignore"
    )
    table = pj.read_json(file, parse_options=options)
    assert (table.num_rows, table.column_names) == (250, ["type"])
