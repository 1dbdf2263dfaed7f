"""A real Prometheus scrapes a real relay: names, alerts and the dashboard."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from pleiades.simulator.settings import Faults, SimulatorSettings
from pleiades.simulator.simulator import Simulator
from tests.harness.broker import free_port
from tests.harness.prerequisites import PROMETHEUS, require
from tests.harness.relay import Relay
from tests.harness.waiting import until

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy" / "prometheus" / "pleiades.rules.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "pleiades.json"
LONGEST_SECONDS = 60.0
RANGE = "30s"
"""Replaces Grafana's variable; covers several scrapes."""


class Tools(NamedTuple):
    """The paths of the tools."""

    prometheus: str
    promtool: str


@pytest.fixture(scope="module")
def tools() -> Tools:
    return Tools(*require(PROMETHEUS))


@pytest.fixture
def relay(
    simulate: Callable[[SimulatorSettings], Simulator], to_topic: Callable[[Simulator], list[str]]
) -> Iterator[Relay]:
    """A relay of a stream that is cut now and then."""
    upstream = simulate(SimulatorSettings(rate=100, faults=Faults(cut_every_seconds=3)))
    with Relay(*to_topic(upstream)) as running:
        running.wait_ready()
        yield running


@pytest.fixture
def ask(relay: Relay, tools: Tools, tmp_path: Path) -> Iterator[Callable[[str], list[Any]]]:
    """Queries a Prometheus that scrapes the relay under the job's usual name."""
    port = free_port()
    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [
            {
                "job_name": "pleiades",
                "static_configs": [{"targets": [relay.address.removeprefix("http://")]}],
            }
        ],
    }
    file = tmp_path / "prometheus.yml"
    file.write_text(json.dumps(configuration))
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [
                tools.prometheus,
                f"--config.file={file}",
                f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    url = f"http://127.0.0.1:{port}/api/v1/query"

    def query(expression: str) -> list[Any]:
        try:
            answer = requests.get(url, {"query": expression}, timeout=10)
        except requests.ConnectionError:
            return []
        assert answer.status_code in (200, 503), f"{expression}: {answer.text}"
        result: list[Any] = answer.json()["data"]["result"] if answer.ok else []
        return result

    try:
        until(lambda: query('up{job="pleiades"} == 1'), "a scrape", LONGEST_SECONDS)
        yield query
    finally:
        server.kill()
        server.wait()


def documented() -> set[str]:
    """The names in the README's table."""
    return set(
        re.findall(r"^\| `(pleiades_\w+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    )


def dashboard() -> list[str]:
    """All expressions of the dashboard, with its variables set as Grafana does for "All"."""
    board = json.loads(DASHBOARD.read_text())
    expressions = [
        target["expr"] for panel in board["panels"] for target in panel.get("targets", [])
    ]
    return [
        expression.replace("$__rate_interval", RANGE)
        .replace("$instance", ".*")
        .replace("$stream", "mediawiki.recentchange")
        for expression in expressions
    ]


def test_every_metric_is_scraped_and_every_panel_shows_something(
    ask: Callable[[str], list[Any]], relay: Relay, tools: Tools
) -> None:
    def missing_names() -> set[str]:
        told = {series["metric"]["__name__"] for series in ask('{job="pleiades"}')}
        return documented() - {re.sub(r"_(?:bucket|sum|count)$", "", name) for name in told}

    # The round trip to the brokers is known after librdkafka's first statistics.
    until(lambda: not missing_names(), "all names of the README", LONGEST_SECONDS)
    expressions = dashboard()
    assert len(expressions) > 25

    def empty() -> list[str]:
        return [expression for expression in expressions if not ask(expression)]

    until(lambda: not empty(), "data for every panel", LONGEST_SECONDS)
    for variable in ("pleiades_build_info", "pleiades_upstream_position_seconds"):
        assert ask(f'{variable}{{job="pleiades"}}')
    page = requests.get(relay.address + "/metrics", timeout=10).text
    checked = subprocess.run(
        [tools.promtool, "check", "metrics"],
        input=page,
        capture_output=True,
        text=True,
        check=False,
    )
    # The original Pleiades has this name, and its dashboards use it.
    complaints = set((checked.stderr + checked.stdout).splitlines())
    assert complaints <= {
        'pleiades_kafka_publish_lag_milliseconds use base unit "seconds" instead of "milliseconds"'
    }
    assert not ask('ALERTS{alertstate="firing"}')


def unlike(one: Any, other: Any, path: str = "") -> Iterator[str]:
    """The paths at which `one` has a part that `other` lacks or has with a different value."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key, value in one.items():
            yield from unlike(value, other.get(key), f"{path}.{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, (value, its) in enumerate(zip(one, other, strict=True)):
            yield from unlike(value, its, f"{path}[{index}]")
    elif one != other:
        yield f"{path}: {one!r}"


def test_grafana_knows_every_field_of_the_dashboard() -> None:
    # Its schema drops unknown fields, and knows no data source's fields.
    register_default_plugins()
    board = json.loads(DASHBOARD.read_text())
    known = json.loads(JSONEncoder().encode(Dashboard.from_json(board)))
    unknown = [where.split(":")[0] for where in unlike(board, known)]
    untyped = r"\.templating\.list\[\d\]\.definition|\.annotations\.list\[\d\]\.titleFormat"
    assert [where for where in unknown if not re.fullmatch(untyped, where)] == []


@pytest.mark.parametrize(
    "command", [["check", "rules", RULES.name], ["test", "rules", "pleiades.rules.test.yml"]]
)
def test_the_alerts_are_valid_and_fire_when_they_should(tools: Tools, command: list[str]) -> None:
    done = subprocess.run(
        [tools.promtool, *command], cwd=RULES.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_test_and_a_runbook() -> None:
    alerts = set(re.findall(r"- alert: (\w+)", RULES.read_text()))
    tested = (RULES.parent / "pleiades.rules.test.yml").read_text()
    runbooks = (ROOT / "docs" / "operations.md").read_text()
    assert len(alerts) >= 7
    for alert in alerts:
        assert re.search(rf"alertname: {alert}\n +exp_alerts:", tested), alert
        assert f"### {alert}\n" in runbooks, alert
        assert f"docs/operations.md#{alert.lower()}" in RULES.read_text(), alert
