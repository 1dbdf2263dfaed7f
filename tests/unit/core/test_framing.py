from __future__ import annotations

import pytest

from pleiades.core.framing import Framer, ids_in, retry_in, split_frames


def feed(chunks: list[bytes], limit: int = 1000) -> tuple[list[bytes], int]:
    framer = Framer(limit)
    return [framer.feed(chunk) for chunk in chunks], framer.oversized_total


@pytest.mark.parametrize(
    ("chunks", "blobs"),
    [
        ([b"data: 1\n\n"], [b"data: 1\n\n"]),
        ([b"data: 1\n", b"\n"], [b"", b"data: 1\n\n"]),
        ([b"data: 1\n\nda", b"ta: 2\n\n"], [b"data: 1\n\n", b"data: 2\n\n"]),
        ([b"a\n\nb\n\nc"], [b"a\n\nb\n\n"]),
        ([b"\n\n\n", b"\n", b"a\n\n", b"\n\nb\n\n"], [b"", b"", b"a\n\n", b"b\n\n"]),
        ([b"a\r", b"\n\r", b"\nb"], [b"", b"a\n\n", b""]),
        ([b"a\r\r"], [b"a\n\n"]),
        ([b"a\r\n\r\n"], [b"a\n\n"]),
        ([b"a\n\r"], [b"a\n\n"]),
        ([b"a\r\n", b"b\n", b"\r"], [b"", b"", b"a\nb\n\n"]),
        ([b"\xef", b"\xbb", b"\xbf", b"a\n\n"], [b"", b"", b"", b"a\n\n"]),
        ([b"\xef\xbb", b"a\n\n"], [b"", b"\xef\xbba\n\n"]),
        ([b"\xef\xbb\xbf\xef\xbb\xbfa\n\n"], [b"\xef\xbb\xbfa\n\n"]),
        ([b"a\n\n", b"\xef\xbb\xbfb\n\n"], [b"a\n\n", b"\xef\xbb\xbfb\n\n"]),
        ([b"", b"a\n\n", b""], [b"", b"a\n\n", b""]),
        (["a\u2028\u2029\u0085\n\n".encode()], ["a\u2028\u2029\u0085\n\n".encode()]),
    ],
)
def test_blobs(chunks: list[bytes], blobs: list[bytes]) -> None:
    assert feed(chunks) == (blobs, 0)


def test_what_has_not_ended_is_never_given_out() -> None:
    assert feed([b'data: {"a"', b": 1}\n"]) == ([b"", b""], 0)


LINE = b"data: 1\n"  # 8 bytes with its end


@pytest.mark.parametrize(
    ("chunks", "blobs", "oversized"),
    [
        ([LINE + b"\n"], [LINE + b"\n"], 0),
        ([LINE, b"\n"], [b"", LINE + b"\n"], 0),
        ([LINE[:-1], b"\n\n"], [b"", LINE + b"\n"], 0),
        ([b"x" + LINE + b"\n"], [b""], 1),
        ([b"x" + LINE, b"\n"], [b"", b""], 1),
        ([b"x" + LINE[:-1], b"\n", b"\n"], [b"", b"", b""], 1),
        # Later frames are unaffected.
        ([b"x" + LINE, b"\n" + LINE + b"\n"], [b"", LINE + b"\n"], 1),
        ([b"x" * 9, b"x" * 9, b"\n", b"\n", LINE, b"\n"], [b""] * 5 + [LINE + b"\n"], 1),
        ([b"x" * 9 + b"\r", b"\n\r", b"\n" + LINE + b"\n"], [b"", b"", LINE + b"\n"], 1),
        ([b"x" * 9 + b"\r", b"\r", b"\n" + LINE + b"\n"], [b"", b"", LINE + b"\n"], 1),
        ([b"x" * 9 + b"\r", b"\ny\n\n" + LINE + b"\n"], [b"", LINE + b"\n"], 1),
        ([b"x" * 9, b"\n\n" + b"y" * 9, b"\n\n" + LINE + b"\n"], [b"", b"", LINE + b"\n"], 2),
        ([b"x" * 9 + b"\n\n" + LINE + b"\n" + b"x" * 9], [LINE + b"\n"], 2),
        ([b"x" * 9, b"\n\n\n\n", LINE + b"\n"], [b"", b"", LINE + b"\n"], 1),
    ],
)
def test_the_limit_is_exact(chunks: list[bytes], blobs: list[bytes], oversized: int) -> None:
    assert feed(chunks, limit=len(LINE)) == (blobs, oversized)


def test_split_frames() -> None:
    assert split_frames(b"") == []
    assert split_frames(b"\na\nb\n\n\nc\n\n\n\n") == [b"a\nb", b"c"]


@pytest.mark.parametrize(
    ("blob", "ids"),
    [
        (b"", []),
        (b"id: 1\n\n", [b"1"]),
        (b"id:1\nid: 2\n\nid:  3\n\n", [b"2", b" 3"]),
        (b"id\n\n", [b""]),
        (b"id:\n\n", [b""]),
        (b"id: 1\nid: 2\0\n\n", [b"1"]),
        (b"ids: 1\nidx\nId: 1\n id: 1\ndata: id: 1\n:id: 1\n\n", []),
        (b"data: 1\nid: [1]\n\n", [b"[1]"]),
    ],
)
def test_ids(blob: bytes, ids: list[bytes]) -> None:
    assert ids_in(blob) == ids


@pytest.mark.parametrize(
    ("blob", "retry_ms"),
    [
        (b"", None),
        (b"data: retry\n\n", None),
        (b"retry: 15\n\n", 15),
        (b"retry:15\n\nretry: 7\n\n", 7),
        (b"retry: 15\nretry: 7x\n\n", 15),
        (b"retry:\n\n", None),
        (b"retry\n\n", None),
        (b"retry:  15\n\n", None),
        (b"retry: -15\n\n", None),
        ("retry: \u0661\n\n".encode(), None),
        (b"retry: 000000000000015\n\n", 15),
        (b"retry: 000\n\n", 0),
        (b"retry: " + b"9" * 10_000 + b"\n\n", 999_999_999_999),
    ],
)
def test_retry(blob: bytes, retry_ms: int | None) -> None:
    assert retry_in(blob) == retry_ms
