"""The parent's HTTP pages."""

from __future__ import annotations

import os
import platform

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pleiades.runtime.http import pages
from pleiades.runtime.metrics import Metrics

pytestmark = pytest.mark.usefixtures("metrics")


def processes() -> dict[str, int]:
    return {"parent": os.getpid()}


def test_health_and_readiness_say_what_is_wrong() -> None:
    wrong = ["reader is not ready", "publisher is not ready"]
    table = pages(list, lambda: wrong, processes)
    assert table["/healthz"]()[:2] == (200, b"ok\n")
    assert table["/readyz"]()[:2] == (503, b"reader is not ready\npublisher is not ready\n")


def test_metrics_are_current_at_each_scrape(metrics: Metrics) -> None:
    table = pages(list, list, processes)
    for count in (1, 2):
        metrics.file_events.inc()
        status, body, content_type = table["/metrics"]()
        assert status == 200
        assert content_type.startswith("text/plain; version=")
        assert f"pleiades_file_publish_events_total {count}.0\n".encode() in body


def test_metrics_have_the_standard_names_of_the_parent() -> None:
    families = {
        family.name: family
        for family in text_string_to_metric_families(
            pages(list, list, processes)["/metrics"]().body.decode()
        )
    }
    assert families["python_info"].samples[0].labels["version"] == platform.python_version()
    for name in ("cpu_seconds", "open_fds", "max_fds", "resident_memory_bytes"):
        assert families[f"process_{name}"].samples[0].value > 0
    assert families["process_start_time_seconds"].samples[0].value > 1e9


def test_every_metric_has_help_and_type_and_no_label_of_a_process_id(metrics: Metrics) -> None:
    metrics.describe(["reader"])
    metrics.connected.set(1)
    page = pages(list, list, processes)["/metrics"]().body.decode()
    for family in text_string_to_metric_families(page):
        assert family.documentation, family.name
        assert family.type in ("counter", "gauge", "histogram"), family.name
        assert not any("pid" in sample.labels for sample in family.samples), family.name
