"""Frames are read as they were written, however reads are cut."""

from __future__ import annotations

import io
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pleiades.sinks.archive.codecs import CODECS, GZ, ZST, Compressor, decompressed

texts = st.binary(max_size=300)
lines = texts.map(lambda text: text.replace(b"\n", b"") + b"\n")


def commits_of(added: st.SearchStrategy[bytes]) -> st.SearchStrategy[list[list[bytes]]]:
    return st.lists(st.lists(added, max_size=4), max_size=6)


def written(codec: str, commits: list[list[bytes]]) -> list[bytes]:
    compressor = Compressor(codec)
    frames = []
    for commit in commits:
        for text in commit:
            compressor.add(text)
        frames.append(compressor.frame())
    return frames


@pytest.mark.parametrize("codec", CODECS)
@given(commits_of(texts), st.integers(1, 50))
def test_the_texts_of_frames_are_the_text(
    codec: str, commits: list[list[bytes]], step: int
) -> None:
    frames = written(codec, commits)
    assert [bool(frame) for frame in frames] == [any(commit) for commit in commits]
    source = io.BytesIO(b"".join(frames))
    pieces = decompressed(lambda size: source.read(min(size, step)), codec)
    assert b"".join(pieces) == b"".join(text for commit in commits for text in commit)


@pytest.mark.parametrize("codec", [ZST, GZ])
@given(commits_of(lines), st.integers(0))
def test_salvage_keeps_the_whole_frames(codec: str, commits: list[list[bytes]], at: int) -> None:
    frames = written(codec, commits)
    content = b"".join(frames)
    cut = content[: at % (len(content) + 1)]
    whole = sum(end <= len(cut) for end in accumulate(map(len, frames)))
    kept = b"".join(decompressed(io.BytesIO(cut).read, codec, salvage=True))
    assert kept == b"".join(text for commit in commits[:whole] for text in commit)


@pytest.mark.parametrize("codec", [ZST, GZ])
@given(st.binary(max_size=200))
def test_salvage_of_any_bytes_ends(codec: str, content: bytes) -> None:
    assert list(decompressed(io.BytesIO(content).read, codec, salvage=True)) is not None
