"""Reading what the processes count."""

from __future__ import annotations

from pathlib import Path

from pleiades.runtime.metrics import Metrics, collected


def test_a_file_that_is_just_being_made_is_passed_over(metrics: Metrics, tmp_path: Path) -> None:
    metrics.file_events.inc(3)
    (tmp_path / "counter_beginner.db").touch()
    value = collected().get_sample_value("pleiades_file_publish_events_total")
    assert value == 3
