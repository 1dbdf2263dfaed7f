"""A Parquet file of events: the columns that a query asks for, and each event as it was published.

Laws:
- A row for each line, in their order; `json` is the line.
- One schema for all streams, so that all files of an archive are one table.
- Memory is bounded: a row group.

https://parquet.apache.org/docs/file-format/. Only the finisher imports this: pyarrow takes 50 MB.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pleiades.sinks.archive.columns import columns_of

if TYPE_CHECKING:
    from pleiades.sinks.archive.finish import Output

_TIME = pa.timestamp("ms", tz="UTC")
_META_TYPE = pa.struct(
    [
        ("id", pa.string()),
        ("stream", pa.string()),
        ("domain", pa.string()),
        ("dt", _TIME),
        ("topic", pa.string()),
        ("partition", pa.int64()),
        ("offset", pa.int64()),
        ("request_id", pa.string()),
        ("uri", pa.string()),
    ]
)
SCHEMA = pa.schema(
    [
        ("meta", _META_TYPE),
        ("wiki", pa.string()),
        ("type", pa.string()),
        ("namespace", pa.int64()),
        ("title", pa.string()),
        ("user", pa.string()),
        ("bot", pa.bool_()),
        ("timestamp", _TIME),
        ("json", pa.string()),
    ]
)
FEW_VALUES = ["meta.stream", "meta.domain", "meta.topic", "wiki", "type", "user"]
"""Columns with a dictionary. The others are better without one: most of their values are unique."""
PRUNED_BY = ["meta.dt", "meta.partition", "meta.offset", "timestamp", "namespace", "wiki", "type"]
"""Columns with statistics. Those of others prune nothing: each row group has about the same range."""
LEVEL = 6

GROUP_ROWS = 8_192
GROUP_BYTES = 16 * 1024 * 1024
"""Text of a row group, if its events are large."""
BATCH_ROWS = 1024
"""Rows that are Python objects at a time; in Arrow's memory they take a third."""


class ParquetFile:
    """Writes a file."""

    def __init__(self, output: Output) -> None:
        # The default one keeps what it has freed: 25 MB more.
        pa.set_memory_pool(pa.system_memory_pool())
        self._rest = b""
        self._lines: list[bytes] = []
        self._batches: list[pa.RecordBatch] = []
        self._group_rows = self._group_bytes = 0
        self._writer = pq.ParquetWriter(
            pa.PythonFile(_File(output), mode="w"),
            SCHEMA,
            compression="zstd",
            compression_level=LEVEL,
            use_dictionary=FEW_VALUES,
            write_statistics=PRUNED_BY,
        )

    def write(self, text: bytes) -> None:
        """Take text, which may end within a line."""
        lines = (self._rest + text).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            self._lines.append(line)
            self._group_bytes += len(line)
            if len(self._lines) == BATCH_ROWS or self._group_bytes >= GROUP_BYTES:
                self._end_batch()

    def end(self) -> None:
        """Write the rest."""
        self._end_batch()
        self._end_group()
        self._writer.close()

    def _end_batch(self) -> None:
        if self._lines:
            self._batches.append(_batch(self._lines))
            self._group_rows += len(self._lines)
            self._lines = []
        if self._group_rows >= GROUP_ROWS or self._group_bytes >= GROUP_BYTES:
            self._end_group()

    def _end_group(self) -> None:
        if self._batches:
            self._writer.write_table(
                pa.Table.from_batches(self._batches), row_group_size=self._group_rows
            )
        self._batches = []
        self._group_rows = self._group_bytes = 0


class _File:
    """An output with the interface that Arrow writes to."""

    closed = False

    def __init__(self, output: Output) -> None:
        self._output = output

    def write(self, content: Any) -> int:
        self._output.write(bytes(content))
        return len(content)

    def tell(self) -> int:
        return self._output.size

    def flush(self) -> None: ...

    def close(self) -> None:
        """The output is closed by its owner."""


def _batch(lines: list[bytes]) -> pa.RecordBatch:
    metas, dts, *others, times = zip(*map(columns_of, lines), strict=True)
    meta_columns = [
        pa.array(
            dts if field.name == "dt" else [getattr(meta, field.name) for meta in metas], field.type
        )
        for field in _META_TYPE
    ]
    columns = [
        pa.StructArray.from_arrays(meta_columns, fields=list(_META_TYPE)),
        *(pa.array(values, SCHEMA.field(at).type) for at, values in enumerate(others, 1)),
        pa.array(times, _TIME),
        _text_column(lines),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _text_column(lines: list[bytes]) -> pa.Array:
    try:
        return pa.array(lines, pa.binary()).cast(pa.string())
    except pa.ArrowInvalid:
        # No event is like this: what is not UTF-8 is a dead letter.
        return pa.array([line.decode(errors="replace") for line in lines], pa.string())
