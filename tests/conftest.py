"""Settings, markers and reports for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.harness.prerequisites import not_tested, require

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
    """Spread the rows of the fault matrix over the workers, before everything else.

    They take longest. At the end of a run, the workers would wait for the last of them.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    rows = [item for item in items if item.path.name == "test_matrix.py"]
    others = [item for item in items if item.path.name != "test_matrix.py"]
    # xdist gives each worker a contiguous part at first.
    part = -(-len(others) // workers)
    items[:] = [
        item
        for worker in range(workers)
        for item in (*rows[worker::workers], *others[worker * part : (worker + 1) * part])
    ]


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
