"""For all tests."""

from __future__ import annotations

import pytest
from hypothesis import settings

# A machine that is busy with something else makes no law untrue.
settings.register_profile("pleiades", deadline=None)
settings.load_profile("pleiades")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests measured and somebody should see, though it passed: `record_property(what, figure)`."""
    figures = [
        f"{what}: {figure}"
        for report in terminalreporter.getreports("passed")
        for what, figure in report.user_properties
    ]
    if figures:
        terminalreporter.section("figures")
        for figure in figures:
            terminalreporter.line(figure)
