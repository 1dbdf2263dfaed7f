"""How far uploads are: the target's manifest, the state file, and what both say together."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import pytest

from pleiades.sinks.archive.upload import (
    ForeignManifest,
    Line,
    Matched,
    Settings,
    State,
    Status,
    decode_settings,
    decode_state,
    decode_status,
    go_on,
    lines_between,
    match,
    state_path,
)
from tests.harness.archives import Archive


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    archive = Archive(tmp_path)
    for _ in range(5):
        archive.add(1)
    return archive


def lines_in(archive: Archive) -> list[Line]:
    return list(lines_between(archive.manifest, 0, archive.length))


def test_lines_with_their_ends(archive: Archive) -> None:
    texts = archive.manifest.read_bytes().splitlines(keepends=True)
    lines = lines_in(archive)
    assert [line.text for line in lines] == texts
    assert [line.end for line in lines] == list(accumulate(map(len, texts)))
    assert list(lines_between(archive.manifest, lines[2].end, archive.length)) == lines[3:]
    # A line that is being appended is not announced yet.
    assert list(lines_between(archive.manifest, 0, lines[1].end + 5)) == lines[:2]


@pytest.mark.parametrize(
    ("there", "sequence", "skipped"),
    [
        ([], 0, ()),
        ([0], 1, ()),
        ([0, 1, 2], 3, ()),
        ([0, 2], 3, (2,)),
        ([3], 4, (1, 2, 3)),
        ([0, 1, 2, 3, 4], 5, ()),
    ],
)
def test_the_target_says_how_far_it_is(
    there: list[int], sequence: int, skipped: tuple[int, ...], archive: Archive
) -> None:
    lines = lines_in(archive)
    remote = b"".join(lines[number].text for number in there)
    length = lines[sequence - 1].end if sequence else 0
    assert match(lines, remote) == Matched(length, sequence, skipped)


@pytest.mark.parametrize("there", [[1, 0], [0, 0], [4, 4]])
def test_lines_in_another_order_are_foreign(there: list[int], archive: Archive) -> None:
    lines = lines_in(archive)
    with pytest.raises(ForeignManifest, match="line 2"):
        match(lines, b"".join(lines[number].text for number in there))


def test_a_line_that_is_not_here_is_foreign(archive: Archive) -> None:
    lines = lines_in(archive)
    with pytest.raises(ForeignManifest, match="line 1"):
        match(lines[1:], lines[0].text)


SETTINGS = Settings("/a", "manifest.ndjson", "/a/state", "s3://bucket", 3600.0)
MATCHED = Matched(300, 3, (2,))


def state(**changed: object) -> State:
    usual = State("s3://bucket", "manifest.ndjson", 300, 3, 100, 1, (2,))
    return usual._replace(**changed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (State(), state(removed_length=0, removed=0)),
        (state(), state()),
        # An older copy was put back at the target.
        (state(length=500, sequence=5), state()),
        # The last ones were skipped.
        (
            state(length=500, sequence=5, skipped=(2, 4, 5)),
            state(length=500, sequence=5, skipped=(2, 4, 5)),
        ),
        # Of another target, only what is removed here counts.
        (state(target="s3://other", sequence=5, skipped=(4, 5)), state()),
        (state(manifest="manifest-x.ndjson"), state(removed_length=0, removed=0)),
        # The state file was not replaced before the end.
        (state(length=100, sequence=1, skipped=()), state()),
    ],
)
def test_the_target_counts_and_not_the_state_file(before: State, after: State) -> None:
    assert go_on(before, MATCHED, SETTINGS) == after


def test_what_is_uploaded() -> None:
    done = state(sequence=3, removed=5, skipped=(2,))
    assert [done.is_uploaded(number) for number in range(1, 7)] == [
        *(True, False, True, True, True, False)
    ]


def test_encoded_and_decoded() -> None:
    assert decode_state(state().encoded()) == state()
    assert decode_settings(SETTINGS.encoded()) == SETTINGS
    status = Status(1, 2, 3.5, 4, 5, 6, 7, 8, "a problem", "ä\n")
    assert decode_status(status.encoded()) == status
    assert status.encoded().count(b"\n") == 1


@pytest.mark.parametrize(
    "encoded",
    [
        *(b"", b"{}", b"[]", b"null", state().encoded()[:-5]),
        state(length=-1).encoded(),
        state(sequence="3").encoded(),
        state(target=3).encoded(),
        state(skipped=["x"]).encoded(),
        state().encoded().replace(b'"length"', b'"other"'),
    ],
)
def test_a_damaged_state_counts_as_none(encoded: bytes) -> None:
    assert decode_state(encoded) is None


def test_each_manifest_has_a_state_file() -> None:
    names = {state_path(Path("/a"), name) for name in ("manifest.ndjson", "manifest-x.ndjson")}
    assert len(names) == 2
