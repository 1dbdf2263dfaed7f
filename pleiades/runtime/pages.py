"""The pages that the parent serves over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from pleiades.runtime.http import Answer, Page
from pleiades.runtime.metric_store import ComponentCollector, Processes, collected

Check = Callable[[], list[str]]
"""Returns what is wrong; an empty list means that all is well."""


def pages(healthy: Check, ready: Check, processes: Processes) -> dict[str, Page]:
    """Returns the table of pages, by path. A new page is one more line here."""
    registry = collected()
    registry.register(ComponentCollector(processes))
    # The parent's own, under the names that every Prometheus user expects.
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return {
        "/metrics": lambda: Answer(200, generate_latest(registry), CONTENT_TYPE_LATEST),
        "/healthz": lambda: _state(healthy()),
        "/readyz": lambda: _state(ready()),
    }


def _state(wrong: list[str]) -> Answer:
    if wrong:
        return Answer(HTTPStatus.SERVICE_UNAVAILABLE, "".join(f"{it}\n" for it in wrong).encode())
    return Answer(HTTPStatus.OK, b"ok\n")
