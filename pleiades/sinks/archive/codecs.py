"""The bytes of a segment: text in, whole compressed frames out, and back.

Laws:
- Frames one after another are a file of the format: their texts one after another are its text.
- A frame is checked as a whole: what `decompressed` gives with `salvage` was written exactly so.
- Memory is bounded, whatever the text and whatever the damage.

zstd: https://www.rfc-editor.org/rfc/rfc8878, gzip: https://www.rfc-editor.org/rfc/rfc1952.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache, partial
from typing import NamedTuple, Protocol

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ZST, GZ, PLAIN = "zst", "gz", ""
CODECS = (ZST, GZ, PLAIN)

FRAME_BYTES = 1024 * 1024
"""Text of a frame, if no single text is larger. A commit of more becomes several frames."""
LIVE_LEVEL_ZST = 3
LIVE_LEVEL_GZ = 1
CLOSED_LEVEL_ZST = 6
CLOSED_LEVEL_GZ = 6
"""Measured with an hour of events, see docs/archive.md: each further level costs more than it saves."""

MAX_WINDOW_LOG = 23
"""8 MiB: each decoder has to support that much, and none needs to allow more (RFC 8878, 3.1.1.1.2)."""
CHUNK_BYTES = 64 * 1024
MAX_SALVAGED_FRAME_BYTES = 32 * 1024 * 1024
"""Salvage keeps a frame in memory until its checksum is seen. An event is smaller than a frame of the
upstream, so a larger one is damage."""

_GZIP_WBITS = 31
"""zlib's number for a gzip header and the largest window."""


class DamagedSegment(Exception):
    """A segment was truncated or changed; the text says where."""


class Compressor:
    """Collects text and makes frames of it, for one open segment.

    Between frames it holds no memory, so there may be one for each of many streams. One thread
    compresses for all of them, beside the one that calls: history is too fast for one core.
    """

    def __init__(self, codec: str) -> None:
        self._compress = _FRAME_OF[codec]
        self._texts: list[bytes] = []
        self._text_bytes = 0
        self._frames: list[Future[bytes]] = []

    def add(self, text: bytes) -> None:
        """Take text that the next frame shall hold."""
        self._texts.append(text)
        self._text_bytes += len(text)
        if self._text_bytes >= FRAME_BYTES:
            self._end_frame()

    def frame(self) -> bytes:
        """Everything that was added since the last call, as whole frames; empty if there was nothing."""
        self._end_frame()
        frames = b"".join([frame.result() for frame in self._frames])
        self._frames = []
        return frames

    def _end_frame(self) -> None:
        if self._text_bytes:
            self._frames.append(_aside().submit(self._compress, b"".join(self._texts)))
        self._texts = []
        self._text_bytes = 0


@cache
def _aside() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "compress")


@cache
def _live_zstd() -> zstd.ZstdCompressor:
    # One for all segments: it keeps several MB. The whole frame is given at once, so its header has
    # the size of its text, and the tables are made for that size.
    option = zstd.CompressionParameter
    return zstd.ZstdCompressor(
        options={option.compression_level: LIVE_LEVEL_ZST, option.checksum_flag: 1}
    )


def _zstd_frame(text: bytes) -> bytes:
    compressor = _live_zstd()
    return compressor.compress(text, compressor.FLUSH_FRAME)


_FRAME_OF: dict[str, Callable[[bytes], bytes]] = {
    ZST: _zstd_frame,
    GZ: partial(zlib.compress, level=LIVE_LEVEL_GZ, wbits=_GZIP_WBITS),
    PLAIN: bytes,
}


class Encoder(Protocol):
    """A file that is compressed as one frame; the interface that `zstd` and `zlib` share."""

    def compress(self, data: bytes, /) -> bytes:
        """Take text; returns bytes of the file, or none yet."""

    def flush(self) -> bytes:
        """The last bytes."""


class _PlainEncoder:
    def compress(self, data: bytes, /) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


def _zstd_encoder() -> Encoder:
    option = zstd.CompressionParameter
    return zstd.ZstdCompressor(
        options={
            option.compression_level: CLOSED_LEVEL_ZST,
            option.window_log: MAX_WINDOW_LOG,
            # Finds what repeats far apart: the same page, user or template.
            option.enable_long_distance_matching: 1,
            option.checksum_flag: 1,
        }
    )


_ENCODER: dict[str, Callable[[], Encoder]] = {
    ZST: _zstd_encoder,
    GZ: partial(zlib.compressobj, CLOSED_LEVEL_GZ, wbits=_GZIP_WBITS),
    PLAIN: _PlainEncoder,
}


def encoder(codec: str) -> Encoder:
    """Compresses a closed segment: better than `Compressor`, and slower."""
    return _ENCODER[codec]()


def decompressed(
    read: Callable[[int], bytes], codec: str, salvage: bool = False
) -> Iterator[bytes]:
    """The text of frames, in pieces of bounded size.

    Args:
        read: returns the next bytes, at most so many, and none at the end.
        salvage: end after the last whole line before the first damaged frame.

    Raises:
        DamagedSegment: something else than whole frames was read. Not with `salvage`.
    """
    texts = (
        iter(partial(read, CHUNK_BYTES), b"")
        if codec == PLAIN
        else _texts(_pieces(read, codec), salvage)
    )
    return _whole_lines(texts) if salvage else texts


class _Decoder(Protocol):
    """The interface of `zstd.ZstdDecompressor`, for one frame."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _GzipDecoder:
    """zlib's decoder with the interface of zstd's."""

    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(_GZIP_WBITS)

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def needs_input(self) -> bool:
        return not self._decoder.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._decoder.decompress(self._decoder.unconsumed_tail + data, max_length)


def _zstd_decoder() -> zstd.ZstdDecompressor:
    return zstd.ZstdDecompressor(
        options={zstd.DecompressionParameter.window_log_max: MAX_WINDOW_LOG}
    )


_OPEN_DECODER: dict[str, Callable[[], _Decoder]] = {ZST: _zstd_decoder, GZ: _GzipDecoder}


class _Piece(NamedTuple):
    text: bytes
    ends_frame: bool


def _pieces(read: Callable[[int], bytes], codec: str) -> Iterator[_Piece]:
    """The text of frames, each of which is at least one piece."""
    frame_at = 0
    rest = read(CHUNK_BYTES)
    while rest:
        given_bytes = len(rest)
        decoder = _OPEN_DECODER[codec]()
        while not decoder.eof:
            try:
                text = decoder.decompress(rest, CHUNK_BYTES)
            except (zstd.ZstdError, zlib.error) as error:
                raise DamagedSegment(f"the frame at byte {frame_at} is damaged: {error}") from None
            yield _Piece(text, decoder.eof)
            rest = b""
            if decoder.needs_input and not decoder.eof:
                rest = read(CHUNK_BYTES)
                given_bytes += len(rest)
                if not rest:
                    raise DamagedSegment(f"the frame at byte {frame_at} is cut")
        rest = decoder.unused_data
        frame_at += given_bytes - len(rest)
        rest = rest or read(CHUNK_BYTES)


def _texts(pieces: Iterator[_Piece], whole_frames: bool) -> Iterator[bytes]:
    """The text of pieces; `whole_frames`: end before a damaged frame."""
    if not whole_frames:
        yield from (piece.text for piece in pieces)
        return
    held: list[bytes] = []
    with suppress(DamagedSegment):
        for piece in pieces:
            held.append(piece.text)
            if piece.ends_frame:
                yield from held
                held = []
            elif len(held) * CHUNK_BYTES > MAX_SALVAGED_FRAME_BYTES:
                return


def _whole_lines(texts: Iterator[bytes]) -> Iterator[bytes]:
    """Text up to its last line end."""
    held = b""
    for text in texts:
        whole, end, rest = text.rpartition(b"\n")
        if end:
            yield held + whole + end
            held = rest
        else:
            held += text
