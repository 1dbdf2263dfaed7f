"""Memory and CPU of processes, as the kernel tells them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from pleiades.runtime.process_metrics import ProcessCollector, usage_of

MEBIBYTE = 1024 * 1024


def test_it_is_what_the_process_takes() -> None:
    before = usage_of(os.getpid())
    held = bytearray(b"x") * (64 * MEBIBYTE)
    grown = usage_of(os.getpid()).resident_bytes - before.resident_bytes
    assert 60 * MEBIBYTE < grown < 80 * MEBIBYTE
    del held
    while usage_of(os.getpid()).cpu_seconds == before.cpu_seconds:
        pass
    assert usage_of(os.getpid()).cpu_seconds <= sum(os.times()[:2]) + 0.02


@pytest.mark.parametrize("name", ["x", "a) R 1 2 (b", "a\nb", "\xff"])
def test_a_name_may_be_anything(name: str, tmp_path: Path) -> None:
    fields = " ".join(str(number) for number in range(4, 53))
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_bytes(f"7 ({name}) S {fields}".encode("latin-1"))
    usage = usage_of(7, tmp_path)
    assert usage.cpu_seconds == (14 + 15) / os.sysconf("SC_CLK_TCK")
    assert usage.resident_bytes == 24 * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("text", ["", "7 (x) S 1 2", "7 (x) S " + "a " * 50])
def test_what_is_no_such_file_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text(text)
    with pytest.raises(ValueError, match="."):
        usage_of(7, tmp_path)


def test_one_that_has_ended_is_left_out() -> None:
    registry = CollectorRegistry()
    registry.register(ProcessCollector(lambda: {"parent": os.getpid(), "reader": 2**22 + 1}))
    name = "pleiades_process_resident_memory_bytes"
    assert (registry.get_sample_value(name, {"component": "parent"}) or 0) > MEBIBYTE
    assert registry.get_sample_value(name, {"component": "reader"}) is None
    assert registry.get_sample_value("pleiades_process_cpu_seconds_total", {"component": "parent"})
