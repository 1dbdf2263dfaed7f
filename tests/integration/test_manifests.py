"""Validates deploy/: Kubernetes' schemas, the operators' requirements, Compose and systemd."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from pleiades.sinks.registry import relay_parser
from tests.harness.prerequisites import KUSTOMIZE, SYSTEMD, require
from tests.harness.settings import files_of, kafka_of, settings_of

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES_VERSION = "1.34"
MOST_EXPOSED = 2.0
"""On systemd's scale of 0 to 10, which rates values below 2 "OK"."""

KUSTOMIZATIONS = sorted(
    str(file.parent.relative_to(DEPLOY)) for file in DEPLOY.glob("**/kustomization.yaml")
)
# Required fields of the operators' kinds, for which there is no schema here.
REQUIRED = {
    "kafka.strimzi.io/v1 Kafka": ["spec.kafka.listeners", "spec.entityOperator"],
    "kafka.strimzi.io/v1 KafkaNodePool": [
        "metadata.labels.strimzi\\.io/cluster",
        "spec.replicas",
        "spec.roles",
        "spec.storage.type",
    ],
    "kafka.strimzi.io/v1 KafkaTopic": [
        "metadata.labels.strimzi\\.io/cluster",
        "spec.partitions",
        "spec.replicas",
    ],
    "monitoring.coreos.com/v1 Prometheus": [
        "spec.serviceAccountName",
        "spec.serviceMonitorSelector",
        "spec.podMonitorSelector",
        "spec.ruleSelector",
    ],
    "monitoring.coreos.com/v1 PodMonitor": ["spec.selector", "spec.podMetricsEndpoints"],
    "monitoring.coreos.com/v1 ServiceMonitor": ["spec.selector", "spec.endpoints"],
    "monitoring.coreos.com/v1 PrometheusRule": ["spec.groups"],
}
_REMOTE = re.compile(r"^ *- (https://\S+)\n", re.MULTILINE)


@pytest.fixture(scope="module")
def kustomize() -> str:
    (program,) = require(KUSTOMIZE)
    return program


@pytest.fixture(scope="module")
def built(kustomize: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """The output of each kustomization, without its remote resources."""
    copy = tmp_path_factory.mktemp("manifests") / "deploy"
    shutil.copytree(DEPLOY, copy)
    manifests = {}
    for name in KUSTOMIZATIONS:
        file = copy / name / "kustomization.yaml"
        file.write_text(_REMOTE.sub("", file.read_text()))
        text = subprocess.run(
            [kustomize, "build", str(copy / name)],
            capture_output=True,
            text=True,
            check=False,
        )
        only_remote = "kustomization.yaml is empty" in text.stderr
        assert text.returncode == 0 or only_remote, text.stderr
        assert "deprecated" not in text.stderr, text.stderr
        manifests[name] = list(yaml.safe_load_all(text.stdout))
    return manifests


def test_every_manifest_is_valid(built: dict[str, list[Any]]) -> None:
    checked = 0
    for name, manifests in built.items():
        for manifest in manifests:
            kind = f"{manifest['apiVersion']} {manifest['kind']}"
            if kind in REQUIRED:
                for path in REQUIRED[kind]:
                    assert _at(manifest, path) not in (None, "", []), f"{name}: {kind}: {path}"
            else:
                kubernetes_validate.validate(manifest, KUBERNETES_VERSION, strict=True)
            checked += 1
    assert checked > 30


def _at(manifest: Any, path: str) -> Any:
    for key in re.split(r"(?<!\\)\.", path):
        manifest = manifest[key.replace("\\.", ".")]
    return manifest


@pytest.mark.parametrize("name", KUSTOMIZATIONS)
def test_what_is_elsewhere_is_named_by_its_release(name: str) -> None:
    for url in _REMOTE.findall((DEPLOY / name / "kustomization.yaml").read_text()):
        assert re.search(r"/(?:controller-)?v?\d+\.\d+\.\d+/", url), url


def _pods(built: dict[str, list[Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, manifests in built.items():
        for manifest in manifests:
            if manifest["kind"] in ("Deployment", "Job"):
                yield name, manifest["spec"]["template"]["spec"]


def test_every_relay_runs_without_rights(built: dict[str, list[Any]]) -> None:
    pods = dict(_pods(built))
    # `base` alone has no settings and is not a complete relay.
    assert set(pods) == {
        "kind/pleiades",
        *(f"kubernetes/{name}" for name in ("backfill", "base", "files", "kafka")),
    }
    for name, pod in pods.items():
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }, name
        # A stop takes up to 10 s.
        assert pod["terminationGracePeriodSeconds"] > 10, name
        assert not pod["enableServiceLinks"], name
        assert {"requests", "limits"} <= set(container["resources"]), name
        writable = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert "/tmp" in writable, name  # noqa: S108  # of the container


@pytest.mark.parametrize("overlay", ["kafka", "files"])
def test_what_belongs_to_the_relay_selects_the_relay_alone(
    overlay: str, built: dict[str, list[Any]]
) -> None:
    made = {
        manifest["kind"]: manifest["spec"]
        for manifest in built[f"kubernetes/{overlay}"]
        if "spec" in manifest
    }
    labels = made["Deployment"]["template"]["metadata"]["labels"]
    assert len(labels) == 2
    assert made["Deployment"]["selector"]["matchLabels"] == labels
    assert made["Service"]["selector"] == labels
    assert made["PodDisruptionBudget"]["selector"]["matchLabels"] == labels
    assert made["NetworkPolicy"]["podSelector"]["matchLabels"] == labels
    ports = [port["port"] for rule in made["NetworkPolicy"]["egress"] for port in rule["ports"]]
    assert (9092 in ports) == (overlay == "kafka")


@pytest.mark.parametrize("overlay", ["kafka", "files"])
def test_an_overlays_flags_and_file_are_accepted(
    overlay: str, built: dict[str, list[Any]], tmp_path: Path
) -> None:
    (pod,) = [pod for name, pod in _pods(built) if name == f"kubernetes/{overlay}"]
    (settings_map,) = [
        manifest for manifest in built[f"kubernetes/{overlay}"] if manifest["kind"] == "ConfigMap"
    ]
    file = tmp_path / "pleiades.toml"
    file.write_text(settings_map["data"]["pleiades.toml"])
    command, *flags = pod["containers"][0]["args"]
    assert command == "ingest"
    written = [flag.replace("/etc/pleiades/pleiades.toml", str(file)) for flag in flags]
    settings = settings_of(*written)
    mounted = {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    if overlay == "kafka":
        kafka_of(settings)
    else:
        assert str(files_of(settings).publish_dir.parent) in mounted


def test_the_kind_deployments_flags_are_accepted(built: dict[str, list[Any]]) -> None:
    (pod,) = [pod for name, pod in _pods(built) if name == "kind/pleiades"]
    command, *flags = pod["containers"][0]["args"]
    assert command == "ingest"
    destination = kafka_of(settings_of(*flags))
    # The operator gives this name to the Service of the cluster beside it.
    (kafka,) = [made for made in built["kind/pleiades"] if made["kind"] == "Kafka"]
    assert destination.brokers == f"{kafka['metadata']['name']}-kafka-bootstrap:9092"
    topics = {
        made["metadata"]["name"] for made in built["kind/pleiades"] if made["kind"] == "KafkaTopic"
    }
    assert topics == {destination.topic, f"{destination.topic}-dead-letters"}


def test_both_forms_of_the_alerts_say_the_same(built: dict[str, list[Any]]) -> None:
    plain = yaml.safe_load((DEPLOY / "prometheus" / "pleiades.rules.yml").read_text())
    (rule,) = [made for made in built["kind/pleiades"] if made["kind"] == "PrometheusRule"]
    assert rule["spec"] == plain


def test_compose_mounts_and_sets_what_there_is() -> None:
    composed = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    parser = relay_parser("ingest")
    known = {getattr(action, "env_var", None) for action in parser._actions}
    for name, service in composed["services"].items():
        image = service.get("image", "kafka from its own file")
        assert name in ("kafka", "pleiades") or re.search(r":v?\d+\.\d+\.\d+$", image), image
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert not source.startswith(".") or (DEPLOY / source).exists(), volume
        for variable in service.get("environment", {}):
            assert not variable.startswith("PLEIADES_") or variable in known, variable
    kafka_of(settings_of(*composed["services"]["pleiades"]["command"][1:]))


@pytest.mark.needs(SYSTEMD)
def test_the_unit_is_valid_and_hardened(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    unit = tmp_path / "pleiades.service"
    text = (DEPLOY / "systemd" / "pleiades.service").read_text()
    # systemd looks for the program. A system program replaces it, because this checkout's path may have
    # spaces, which a unit must quote.
    program = shutil.which("true")
    assert program
    unit.write_text(text.replace("/opt/pleiades/bin/pleiades", program))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    complaints = [line for line in done.stderr.splitlines() if "pleiades.service" in line]
    assert not complaints, done.stderr
    done = subprocess.run(
        ["systemd-analyze", "security", "--no-pager", "--offline=true", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    record_property("exposure of the systemd unit, of 10", found[1])
    assert float(found[1]) < MOST_EXPOSED, done.stdout
