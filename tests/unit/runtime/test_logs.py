"""A record is one line, whatever its contents."""

from __future__ import annotations

import logging
import sys
import time

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pleiades.runtime.logs import JsonFormatter, TextFormatter, Throttle, configure, printable
from pleiades.runtime.output import standard_error


def record(message: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("pleiades.x", logging.WARNING, "", 1, message, arguments, None)


@given(st.text())
def test_foreign_text_stays_on_one_line_without_controls(text: str) -> None:
    line = TextFormatter("reader", on_terminal=False, colour=False).format(record("said: %s", text))
    assert len(line.splitlines()) == 1
    assert line.isprintable() or all(ord(char) >= 0xA0 for char in line if not char.isprintable())
    assert "\x1b" not in line
    line.encode()


@given(st.text())
def test_json_is_one_object_on_one_line(text: str) -> None:
    line = JsonFormatter("reader").format(record("said: %s", text))
    assert "\n" not in line
    fields = orjson.loads(line)
    assert fields["level"] == "warning"
    assert fields["process"] == "reader"
    assert fields["message"].startswith("said: ")


def test_a_traceback_is_indented_in_text_and_a_field_in_json() -> None:
    try:
        raise ValueError("bad\x1b[2J")
    except ValueError:
        failed = record("crashed")
        failed.exc_info = sys.exc_info()
    text = TextFormatter("reader", on_terminal=False, colour=False).format(failed)
    first, *rest = text.split("\n")
    assert first.endswith("reader: crashed")
    assert all(line.startswith("    ") for line in rest)
    assert "\x1b" not in text
    assert (
        "ValueError: bad\\u001b[2J" in orjson.loads(JsonFormatter("r").format(failed))["exception"]
    )


@pytest.mark.parametrize(
    ("foreign", "shown"),
    [
        ("a\r\nERROR forged", "a\\u000d\\u000aERROR forged"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        ("x" * 300, "x" * 200 + "…"),
        ("\u202egnp", "\\u202egnp"),
        ("\x9b31m", "\\u009b31m"),
    ],
)
def test_printable(foreign: str | bytes, shown: str) -> None:
    assert printable(foreign) == shown


def test_on_a_terminal_the_live_line_is_cleared_first() -> None:
    line = TextFormatter("parent", on_terminal=True, colour=True).format(record("x"))
    assert line.startswith("\r\x1b[2K\x1b[33m")
    assert line.endswith("\x1b[0m")


def test_seldom_holds_back_all_but_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    seldom = Throttle(10.0)
    assert [seldom.due() for _ in range(3)] == [True, False, False]
    now += 10.0
    assert [seldom.due() for _ in range(2)] == [True, False]


def test_levels(capfd: pytest.CaptureFixture[str]) -> None:
    before = logging.getLogger().handlers[:]
    levels = {name: logging.getLogger(name).level for name in ("", "pleiades", "urllib3")}
    try:
        configure(logging.ERROR, "text", "parent")
        logging.getLogger("pleiades.y").warning("quiet")
        logging.getLogger("pleiades.y").error("loud")
        configure(logging.DEBUG, "json", "parent")
        logging.getLogger("urllib3").info("a library")
        logging.getLogger("pleiades.y").debug("verbose")
        standard_error().flush()
    finally:
        logging.getLogger().handlers[:] = before
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        logging.captureWarnings(False)
    said = capfd.readouterr().err
    assert "loud" in said
    assert "quiet" not in said
    assert "a library" not in said
    assert '"message":"verbose"' in said
