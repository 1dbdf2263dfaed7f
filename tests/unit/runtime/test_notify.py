"""Notifications to systemd; the other end is a socket of the kind that systemd listens on."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pleiades.runtime.notify import Notify


@pytest.fixture(params=["file", "abstract"])
def systemd(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    end.setblocking(False)
    name = str(tmp_path / "notify")
    end.bind(name if request.param == "file" else "\0" + name)
    monkeypatch.setenv("NOTIFY_SOCKET", name if request.param == "file" else "@" + name)
    yield end
    end.close()


def heard(systemd: socket.socket) -> list[str]:
    lines: list[str] = []
    while True:
        try:
            lines += systemd.recv(4096).decode().split("\n")
        except BlockingIOError:
            return lines


def nothing() -> list[str]:
    return []


def test_ready_is_said_once_and_status_when_it_changes(systemd: socket.socket) -> None:
    told = Notify()
    told.turn(lambda: ["reader is not ready"])
    assert heard(systemd) == ["STATUS=reader is not ready"]
    told.turn(lambda: ["reader is not ready"])
    assert heard(systemd) == []
    told.turn(nothing)
    assert heard(systemd) == ["STATUS=relaying", "READY=1"]
    told.turn(lambda: ["publisher is not ready"])
    told.turn(nothing)
    assert heard(systemd) == ["STATUS=publisher is not ready", "STATUS=relaying"]
    told.stopping()
    assert heard(systemd) == ["STOPPING=1"]


def test_the_watchdog_is_fed_four_times_an_interval(
    systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setenv("WATCHDOG_USEC", "60000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    told = Notify()
    fed = []
    for clock[0] in (100.0, 114.9, 115.0, 129.9, 131.0):
        told.turn(nothing)
        fed.append("WATCHDOG=1" in heard(systemd))
    assert fed == [True, False, True, False, True]


def test_another_processs_watchdog_is_left_alone(
    systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "1")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + 1))
    Notify().turn(nothing)
    assert "WATCHDOG=1" not in heard(systemd)


def test_children_do_not_inherit_it(systemd: socket.socket) -> None:
    told = Notify()
    assert "NOTIFY_SOCKET" not in os.environ
    told.turn(nothing)
    assert "READY=1" in heard(systemd)


def test_without_systemd_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Notify().turn(lambda: pytest.fail("nobody listens"))


def test_an_end_that_is_gone_is_no_trouble(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    Notify().turn(nothing)
