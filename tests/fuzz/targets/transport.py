"""What carries an answer: chunks, compressed data, TLS."""

from __future__ import annotations

import contextlib
import gzip
import random
import socket
import threading
from unittest import mock

from pleiades.runtime.errors import Transient
from pleiades.upstream import chunked
from pleiades.upstream.body import READ_BYTES, _inflated
from pleiades.upstream.http import MAX_REDIRECTS
from tests.fuzz.reference import dechunked
from tests.fuzz.target import SEPARATOR, cut
from tests.fuzz.targets.http import IDLE_SECONDS, ask, fit_to_be_shown
from tests.harness.authority import authority

MAX_LINE_BYTES = 64
"""The usual limit is out of an input's reach."""


def _ways(stream: bytes, seed: bytes) -> list[list[bytes]]:
    """The same stream as different networks deliver it."""
    ways = ([stream], cut(stream, random.Random(seed)), [bytes([byte]) for byte in stream])
    return [[piece for piece in way if piece] for way in ways]


# ---- chunks ----


def chunks(raw: bytes) -> None:
    """The first byte determines the cuts; the rest is a chunked body."""
    seed, stream = raw[:1], raw[1:]
    whole = dechunked(stream, MAX_LINE_BYTES)
    with mock.patch.object(chunked, "MAX_LINE_BYTES", MAX_LINE_BYTES):
        for pieces in _ways(stream, seed):
            decoder, body, is_malformed = chunked.ChunkDecoder(), b"", False
            for piece in pieces:
                try:
                    body += b"".join(decoder.feed(piece))
                except chunked.MalformedChunk:
                    is_malformed = True
                if is_malformed or decoder.ended:
                    break
            assert decoder.ended == whole.ended, "another end"
            assert whole.body.startswith(body), "other bytes"
            assert is_malformed or body == whole.body, "too few bytes"
            assert whole.malformed or not is_malformed, "a chunk is refused"


# ---- compressed data ----


def gzipped(raw: bytes) -> None:
    """The first byte determines the cuts; the rest is compressed data, or what is to be compressed."""
    seed, stream = raw[:1], raw[1:]
    plain = None
    if seed and seed[0] % 2:
        members = stream.split(SEPARATOR)
        plain = b"".join(members)
        stream = b"".join(gzip.compress(member, mtime=0) for member in members)
    first, *others = [_decompressed(pieces) for pieces in _ways(stream, seed)]
    assert plain is None or first == (plain, False), "not what was compressed"
    for body, is_damaged in others:
        assert is_damaged == first[1], "the damage depends on the cuts"
        # Of a piece that is damaged nothing is handed on.
        shorter, longer = sorted((body, first[0]), key=len)
        assert longer.startswith(shorter) if is_damaged else longer == shorter, "other bytes"


def _decompressed(pieces: list[bytes]) -> tuple[bytes, bool]:
    """All that came, and whether there was damage behind it."""
    body = bytearray()
    try:
        for piece in _inflated(iter(pieces)):
            assert 0 < len(piece) <= READ_BYTES, "a piece is not bounded"
            body += piece
    except Transient as error:
        fit_to_be_shown(error)
        return bytes(body), True
    return bytes(body), False


# ---- TLS ----

OPENING = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n:ok\n\n"
INSTEAD, WITHIN, BENEATH, BENEATH_THE_BODY = range(4)


def tls(raw: bytes) -> None:
    """The first byte tells where the rest comes: instead of TLS, within it, or beneath it; see below."""
    mode, hostile = (raw[0] if raw else INSTEAD) % 4, raw[1:]
    ours, theirs = socket.socketpair()
    serving = threading.Thread(target=_serve, args=(theirs, mode, hostile))
    serving.start()
    # A redirect asks again, and finds nobody.
    connected = mock.Mock(side_effect=[ours, *[ConnectionRefusedError()] * MAX_REDIRECTS])
    # TLS takes the socket over, so a second descriptor ends the connection.
    with ours.dup() as second:
        try:
            with mock.patch("urllib3.util.connection.create_connection", connected):
                ask("https://127.0.0.1:1/v2", authority().ca)
        finally:
            with contextlib.suppress(OSError):
                second.shutdown(socket.SHUT_RDWR)
            ours.close()
            serving.join()


def _serve(connection: socket.socket, mode: int, hostile: bytes) -> None:
    connection.settimeout(IDLE_SECONDS)
    # The client leaves whenever it likes.
    with connection.dup() as beneath, contextlib.suppress(OSError):
        if mode != INSTEAD:
            connection = authority().server.wrap_socket(connection, server_side=True)
            connection.recv(65_536)
        if mode == BENEATH_THE_BODY:
            connection.sendall(OPENING)
        (connection if mode == WITHIN else beneath).sendall(hostile)
        beneath.shutdown(socket.SHUT_WR)
        # Closing with unread bytes would take those away that the client has not read.
        while beneath.recv(65_536):
            pass
    connection.close()
