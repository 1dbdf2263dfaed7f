"""Frames as standard tools read them, and what is left of damaged ones."""

from __future__ import annotations

import gzip
import io
import random
import sys
from itertools import accumulate

import pytest

from pleiades.sinks.archive import codecs
from pleiades.sinks.archive.codecs import (
    CHUNK_BYTES,
    CODECS,
    FRAME_BYTES,
    GZ,
    MAX_WINDOW_LOG,
    PLAIN,
    ZST,
    Compressor,
    DamagedSegment,
    decompressed,
    encoder,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LINES = [b'{"n":%d,"text":"%b"}\n' % (n, b"abc" * (n % 50)) for n in range(400)]


def frames_of(codec: str, texts: list[bytes]) -> list[bytes]:
    """A frame for each text."""
    compressor = Compressor(codec)
    frames = []
    for text in texts:
        compressor.add(text)
        frames.append(compressor.frame())
    return frames


def text_of(content: bytes, codec: str, salvage: bool = False) -> bytes:
    return b"".join(decompressed(io.BytesIO(content).read, codec, salvage))


def test_standard_decoders_read_frames_one_after_another() -> None:
    text = b"".join(LINES)
    assert zstd.decompress(b"".join(frames_of(ZST, LINES))) == text
    assert gzip.decompress(b"".join(frames_of(GZ, LINES))) == text
    assert b"".join(frames_of(PLAIN, LINES)) == text


@pytest.mark.parametrize("codec", CODECS)
def test_a_frame_holds_what_was_added_since_the_last_one(codec: str) -> None:
    compressor = Compressor(codec)
    assert compressor.frame() == b""
    compressor.add(b"one\n")
    compressor.add(b"two\n")
    first = compressor.frame()
    assert compressor.frame() == b""
    compressor.add(b"three\n")
    assert text_of(first, codec) == b"one\ntwo\n"
    assert text_of(compressor.frame(), codec) == b"three\n"


def test_frames_of_several_segments_do_not_mix() -> None:
    segments = [Compressor(codec) for codec in CODECS for _ in range(3)]
    for number, segment in enumerate(segments):
        segment.add(b"%d\n" % number)
        segment.add(b"x" * FRAME_BYTES)
        segment.add(b"\n")
    for number, segment in enumerate(segments):
        text = text_of(segment.frame(), CODECS[number // 3])
        assert text == b"%d\n" % number + b"x" * FRAME_BYTES + b"\n"


@pytest.mark.parametrize("codec", [ZST, GZ])
def test_a_large_commit_is_several_frames_which_salvage_keeps_apart(codec: str) -> None:
    compressor = Compressor(codec)
    line = random.Random(1).randbytes(1000).hex().encode() + b"\n"
    for _ in range(FRAME_BYTES // len(line) * 3):
        compressor.add(line)
    content = compressor.frame()
    kept = text_of(content[:-1], codec, salvage=True)
    assert FRAME_BYTES <= len(kept) < 3 * FRAME_BYTES
    assert kept == line * (len(kept) // len(line))


@pytest.mark.parametrize("codec", CODECS)
def test_pieces_are_small_even_if_the_text_is_not(codec: str) -> None:
    content = b"".join(frames_of(codec, [b"0" * 5_000_000 + b"\n"]))
    sizes = [len(piece) for piece in decompressed(io.BytesIO(content).read, codec)]
    assert max(sizes) <= CHUNK_BYTES
    assert sum(sizes) == 5_000_001


@pytest.mark.parametrize("codec", [ZST, GZ])
def test_any_cut_and_any_changed_bit_is_damage_and_costs_no_earlier_frame(codec: str) -> None:
    texts = [b"".join(LINES[at : at + 100]) for at in range(0, 400, 100)]
    frames = frames_of(codec, texts)
    content = b"".join(frames)
    begin, end = list(accumulate(map(len, frames)))[1:3]
    before, others = b"".join(texts[:2]), b"".join(texts[3:])
    for at in range(begin, end):
        if at > begin:
            with pytest.raises(DamagedSegment, match=f"frame at byte {begin} is cut"):
                text_of(content[:at], codec)
        assert text_of(content[:at], codec, salvage=True) == before
        changed = bytearray(content)
        changed[at] ^= 1 << at % 8
        try:
            found = text_of(bytes(changed), codec)
        except DamagedSegment:
            found = text_of(bytes(changed), codec, salvage=True)
            assert found == before
        # A few bits of a header mean nothing, such as the time in one of gzip.
        assert found in (before, before + texts[2] + others)


def test_salvage_of_plain_text_ends_at_a_line() -> None:
    text = b"".join(LINES) + b"x" * (2 * CHUNK_BYTES) + b"\n"
    for cut in (text + b"{", text[:-1], text):
        kept = text[: cut.rindex(b"\n") + 1]
        assert text_of(cut, PLAIN, salvage=True) == kept
    assert text_of(b"{", PLAIN, salvage=True) == b""


@pytest.mark.parametrize("codec", [ZST, GZ])
def test_salvage_drops_half_a_line_of_a_whole_frame(codec: str) -> None:
    """A line that began in a whole frame and ended in a damaged one."""
    content = b"".join(frames_of(codec, [b"one\ntwo\nthr", b"ee\n"]))
    assert text_of(content, codec, salvage=True) == b"one\ntwo\nthree\n"
    assert text_of(content[:-1], codec, salvage=True) == b"one\ntwo\n"


@pytest.mark.parametrize("codec", CODECS)
def test_a_closed_segment_is_one_frame(codec: str) -> None:
    closed = encoder(codec)
    content = b"".join([*map(closed.compress, LINES), closed.flush()])
    assert text_of(content, codec) == b"".join(LINES)
    if codec != PLAIN:
        assert text_of(content[:-1], codec, salvage=True) == b""
        assert len(content) < len(b"".join(frames_of(codec, LINES))) / 2


@pytest.mark.parametrize("codec", [ZST, GZ])
def test_bytes_after_the_last_frame_are_damage(codec: str) -> None:
    content = b"".join(frames_of(codec, LINES[:3]))
    with pytest.raises(DamagedSegment, match=f"frame at byte {len(content)} is"):
        text_of(content + b"nonsense", codec)
    assert text_of(content + b"nonsense", codec, salvage=True) == b"".join(LINES[:3])


def test_a_frame_that_asks_for_much_memory_is_damage() -> None:
    parameter = zstd.CompressionParameter
    text = b"0" * (16 << 20)
    options = {int(parameter.window_log): MAX_WINDOW_LOG + 1}
    with pytest.raises(DamagedSegment, match="too much memory"):
        text_of(zstd.compress(text, options=options), ZST)
    options = {int(parameter.window_log): MAX_WINDOW_LOG}
    assert text_of(zstd.compress(text, options=options), ZST) == text


@pytest.mark.parametrize("codec", [ZST, GZ])
def test_salvage_keeps_no_frame_that_nobody_wrote(
    codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damage may say that a frame is endless."""
    monkeypatch.setattr(codecs, "MAX_SALVAGED_FRAME_BYTES", 4 * FRAME_BYTES)
    first, endless = frames_of(codec, [b"a\n", b"0\n" * (4 * FRAME_BYTES)])
    assert text_of(first + endless, codec, salvage=True) == b"a\n"
