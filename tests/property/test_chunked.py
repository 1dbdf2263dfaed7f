"""Chunks are decoded as http.client reads them, wherever the network splits them."""

from __future__ import annotations

import contextlib
import http.client
import io

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pleiades.upstream.chunked import MAX_LINE_BYTES, ChunkDecoder, MalformedChunk

pieces = st.binary(min_size=1, max_size=40)
extensions = st.sampled_from([b"", b";a", b"; a=b", b" ;x"])
trailers = st.sampled_from([b"", b"X: y\r\n", b"X: y\r\nZ: 1\r\n"])


class Sock:
    """The part of a socket's interface that http.client uses."""

    def __init__(self, text: bytes) -> None:
        self._text = text

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._text)


def by_http_client(text: bytes) -> bytes:
    # Typed as a socket, but it uses only the methods of `Sock`.
    response = http.client.HTTPResponse(
        Sock(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + text)  # type: ignore[arg-type]
    )
    response.begin()
    with contextlib.closing(response):
        return response.read()


def decoded(text: bytes, cuts: list[int]) -> tuple[bytes, bool]:
    decoder = ChunkDecoder()
    body = b""
    start = 0
    for length in [*cuts, len(text) + 1]:
        # As on a socket: no piece is empty, and none follows the end.
        if start < len(text) and not decoder.ended:
            pieces = decoder.feed(text[start : start + length])
            # An empty piece would pass for the end of the body.
            assert all(pieces)
            body += b"".join(pieces)
            start += length
    return body, decoder.ended


@given(
    st.lists(st.tuples(pieces, extensions), max_size=5),
    trailers,
    st.lists(st.integers(1, 30), max_size=30),
)
@example([(b"\r\n0\r\n\r\n", b"")], b"", [1] * 30)
def test_any_cuts_give_what_http_client_gives(
    parts: list[tuple[bytes, bytes]], trailer: bytes, cuts: list[int]
) -> None:
    text = b"".join(b"%x%b\r\n%b\r\n" % (len(part), ext, part) for part, ext in parts)
    text += b"0\r\n" + trailer + b"\r\n"
    assert decoded(text, cuts) == (by_http_client(text), True)
    # A truncated body has not ended, and no bytes are invented.
    body, ended = decoded(text[: sum(cuts) % len(text)], cuts)
    assert not ended
    assert b"".join(part for part, _ in parts).startswith(body)


@given(st.binary(max_size=60), st.lists(st.integers(1, 9), max_size=20))
def test_any_bytes_are_chunks_or_malformed(text: bytes, cuts: list[int]) -> None:
    try:
        body, _ = decoded(text, cuts)
    except MalformedChunk:
        return
    assert len(body) <= len(text)


@pytest.mark.parametrize(
    "text",
    [
        *(b"x\r\n", b"-1\r\n", b"+1\r\na\r\n", b"1_0\r\n", b" 1\r\na", b"1 \r\na", b"1\na\n"),
        *(b"1\r\nab\r\n", b"1\r\na\n1\r\n", b"1" * 16, b"\r\n1\r\na"),
        b"1;" + b"x" * MAX_LINE_BYTES,
        b"0\r\n" + b"x: y\r\n" * (MAX_LINE_BYTES // 5),
    ],
)
def test_what_is_no_chunk(text: bytes) -> None:
    with pytest.raises(MalformedChunk):
        decoded(text, [])
    with pytest.raises(MalformedChunk):
        decoded(text, [1] * len(text))


def test_a_chunk_is_given_out_before_it_has_ended() -> None:
    decoder = ChunkDecoder()
    assert b"".join(decoder.feed(b"5\r\nab")) == b"ab"
    assert b"".join(decoder.feed(b"cde\r")) == b"cde"
    assert b"".join(decoder.feed(b"\n0\r\n")) == b""
    assert not decoder.ended
    assert b"".join(decoder.feed(b"\r\n")) == b""
    assert decoder.ended
