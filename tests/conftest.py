"""Settings, markers and reports for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.harness.prerequisites import not_tested, require

TESTS = Path(__file__).parent
QUICK = ("fuzz", "property", "unit")
"""Folders of tests that start no programs, or hardly any."""

# Deadlines are off, because a busy machine makes no law untrue. If CI is set, hypothesis would default
# to a profile that tries the same examples in every run.
settings.register_profile(
    "pleiades", settings.get_profile("default"), deadline=None, print_blob=True
)
settings.load_profile("pleiades")


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers."""
    config.addinivalue_line(
        "markers", "needs(prerequisite, ...): skip the test where one of them is missing"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let every worker begin with slow tests, and end with quick ones, which others can take over.

    At the end of a run, the workers would wait for the last slow one. Slow are the tests that start
    programs. Rows of the fault matrix are spread one by one, the others by module.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    quick = []
    groups: dict[object, list[pytest.Item]] = {}
    for item in items:
        if item.path.relative_to(TESTS).parts[0] in QUICK:
            quick.append(item)
        else:
            is_row = item.path.name == "test_matrix.py"
            groups.setdefault(item.nodeid if is_row else item.path, []).append(item)
    slow = [*groups.values()]
    ordered: list[pytest.Item] = []
    for worker in range(workers):
        # xdist gives each worker so many at first.
        count = (len(items) - len(ordered)) // (workers - worker)
        own = [item for group in slow[worker::workers] for item in group]
        room = max(count - len(own), 0)
        ordered += [*own, *quick[:room]]
        quick = quick[room:]
    items[:] = [*ordered, *quick]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Look for the prerequisites before any fixture is set up."""
    for mark in item.iter_markers("needs"):
        for prerequisite in mark.args:
            require(prerequisite)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """Print figures that tests measured (`record_property(what, figure)`), then what was not tested."""
    _section(
        terminalreporter,
        "figures",
        [
            f"{what}: {figure}"
            for report in terminalreporter.getreports("passed")
            for what, figure in report.user_properties
        ],
    )
    yield
    reasons = [_reason(report) for report in terminalreporter.getreports("skipped")]
    _section(terminalreporter, "not tested", list(not_tested(reasons, "test")))


def _reason(report: pytest.TestReport) -> str:
    assert isinstance(report.longrepr, tuple), report.longrepr
    return str(report.longrepr[2]).removeprefix("Skipped: ")


def _section(terminalreporter: pytest.TerminalReporter, title: str, lines: list[str]) -> None:
    if lines:
        terminalreporter.section(title)
        for line in lines:
            terminalreporter.line(line)
