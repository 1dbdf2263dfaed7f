"""Names of segments.

Law: only characters of `[A-Za-z0-9._=/-]` reach a path, and a name never leaves the archive.

`stream=<stream>/date=<YYYY-MM-DD>/hour=<HH>/<first time>-<sequence>.<format>` is the layout of Hive,
which DuckDB, Spark, Polars and Athena read: its folders become columns of the table.
"""

from __future__ import annotations

from datetime import UTC, datetime

from pleiades.core.sse_id import TopicPartition

NDJSON_ZST, NDJSON_GZ, NDJSON, PARQUET = "ndjson.zst", "ndjson.gz", "ndjson", "parquet"
FORMATS = (NDJSON_ZST, NDJSON_GZ, NDJSON, PARQUET)
CODEC_OF = {NDJSON_ZST: "zst", NDJSON_GZ: "gz", NDJSON: "", PARQUET: "zst"}
"""The codec of each format's files, and of the raw files that become them; see `codecs`."""
DEAD_LETTERS = "dead-letters"
OTHER = "other"
"""The stream of events whose topic is unknown, or one too many."""
DATA_CENTRES = ("eqiad.", "codfw.")
"""The prefixes of the upstream's topics, one for each data centre that produces a stream
(https://wikitech.wikimedia.org/wiki/Event_Platform)."""


def stream_of(source: TopicPartition) -> str:
    """The stream of a topic-partition, as it is called in a path: `meta.stream` of its events."""
    topic = source[0]
    for prefix in DATA_CENTRES:
        topic = topic.removeprefix(prefix)
    return topic or OTHER


def segment_name(stream: str, first_ms: int, sequence: str, extension: str) -> str:
    """The path of a closed segment in the archive, e.g. `stream=mediawiki.recentchange/date=2026-01-31/
    hour=12/20260131T120000.123Z-00000001.ndjson.zst`.

    Args:
        stream: of `stream_of`, or `DEAD_LETTERS`.
        first_ms: the Kafka timestamp of its first event, ms since 1970.
        sequence: distinguishes it from all others of the archive.
        extension: one of `FORMATS`.
    """
    seconds, fraction = divmod(first_ms, 1000)
    when = datetime.fromtimestamp(seconds, UTC)
    # %Y has no leading zeros before the year 1000.
    date = f"date={when.year:04}-{when:%m-%d}/hour={when:%H}"
    folder = stream if stream == DEAD_LETTERS else f"stream={stream}"
    return f"{folder}/{date}/{when.year:04}{when:%m%dT%H%M%S}.{fraction:03}Z-{sequence}.{extension}"
