"""The events of a segment and their identities."""

from __future__ import annotations

import gzip
import io
import sys

import pytest

from pleiades.core.identity import identify
from pleiades.sinks.archive.codecs import DamagedSegment
from pleiades.sinks.archive.contents import ParquetMissing, identities_in, is_alike, lines_of
from tests.harness.archives import encoded_segment, event

EVENTS = [event(1_790_000_000_000 + n) for n in range(2500)]
TEXT = b"".join(each + b"\n" for each in EVENTS)


@pytest.mark.parametrize("extension", ["ndjson.zst", "ndjson.gz", "ndjson", "parquet"])
def test_every_format_gives_the_same_lines(extension: str) -> None:
    content = encoded_segment(EVENTS, TEXT, extension)
    pieces = list(lines_of(f"x.{extension}", io.BytesIO(content).read))
    assert b"".join(pieces) == TEXT
    assert all(piece.endswith(b"\n") for piece in pieces)
    assert len(pieces) > 1


@pytest.mark.parametrize("extension", ["ndjson.zst", "ndjson.gz", "ndjson", "parquet"])
def test_a_truncated_file_is_damaged(extension: str) -> None:
    content = encoded_segment(EVENTS, TEXT, extension)[:-3]
    with pytest.raises(DamagedSegment):
        list(lines_of(f"x.{extension}", io.BytesIO(content).read))


def test_a_line_without_end_is_not_read_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pleiades.sinks.archive.contents.MAX_LINE_BYTES", 100_000)
    content = gzip.compress(b"x" * 10_000_000)
    with pytest.raises(DamagedSegment, match="longer than any event"):
        list(lines_of("x.ndjson.gz", io.BytesIO(content).read))


def test_without_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ParquetMissing):
        list(lines_of("x.parquet", io.BytesIO(b"").read))


@pytest.mark.parametrize(
    "line",
    [
        EVENTS[0],
        event(0, "usual-id"),
        b'{"meta":{"id":"a","id":"b"}}',
        b'{"x":"\\ud800","meta":{"id":"lone-surrogate"}}',
        b'{"n":' + b"9" * 400 + b',"meta":{"id":"long-number"}}',
        b' {"meta": {"id": "spaces"} } ',
        b'{"meta":{"id":"deep"},"a":' + b"[" * 900 + b"]" * 900 + b"}",
    ],
)
def test_the_identity_is_the_one_that_was_published(line: bytes) -> None:
    published = identify(b"[]", line)
    assert published is not None
    assert identities_in(line + b"\n") == [published.identity]
    # In company, too.
    assert identities_in(EVENTS[1] + b"\n" + line + b"\n")[1] == published.identity


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"no json", b"[1]", b'{"meta":{}}', b'{"meta":{"id":3}}', b'{"meta":{"id":""}}'),
        *(b'{"meta":{"id":"../x"}}', b"{}", b'{"meta":[]}', b"\xff", b'{"meta":{"id":"sha256-1"}}'),
    ],
)
def test_without_a_usable_id_the_content_counts(line: bytes) -> None:
    first, second, third = identities_in(line + b"\n" + b'{"other":1}\n' + line + b"\n")
    assert first == third != second
    assert is_alike(first)


def test_the_offset_does_not_count() -> None:
    one, other = (b'{"meta":{"offset":%d},"a":1}\n' % offset for offset in (1, 2))
    assert identities_in(one) == identities_in(other)
