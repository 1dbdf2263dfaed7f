"""The documents agree with the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from pleiades.cli import all_flags
from pleiades.config.sources import Parser
from pleiades.core.range import Slice
from pleiades.replay.arguments import arguments_from, replay_parser
from pleiades.sinks.registry import relay_parser
from tests import reference
from tests.harness.settings import files_of, kafka_of, settings_of

ROOT = Path(__file__).resolve().parents[2]


def test_the_reference_is_current() -> None:
    assert reference.PAGE.read_text() == reference.page(), "run ./scripts/reference"


@pytest.mark.parametrize(
    "parser", [relay_parser("ingest"), replay_parser("")], ids=["ingest", "replay"]
)
def test_the_reference_has_every_flag(parser: Parser) -> None:
    documented = {f"--{flag.name}" for flag in all_flags()}
    offered = {action.option_strings[-1] for action in parser._actions}
    assert offered - documented == {"--help", "--config"}


def test_the_example_configuration_is_accepted() -> None:
    settings = settings_of(f"--config={ROOT / 'deploy' / 'pleiades.toml'}")
    files_of(settings)
    assert settings.log_format == "json"


def test_the_example_of_a_backfill_is_accepted() -> None:
    """Uses the Job's arguments, with the file that it mounts."""
    folder = ROOT / "deploy" / "kubernetes" / "backfill"
    job = (folder / "job.yaml").read_text()
    written = re.findall(r"^            - (\S+)$", job, re.MULTILINE)
    assert written[0] == "replay"
    flags = [
        word.replace("$(JOB_COMPLETION_INDEX)", "7").replace("/etc/pleiades", str(folder))
        for word in written[1:]
    ]
    told = arguments_from(vars(replay_parser("").parse_args(flags)))
    assert told.part == Slice(7, 8)
    assert f"completions: {told.part.parts}\n" in job
    kafka_of(told.settings)


def test_every_line_of_warning_or_above_is_explained() -> None:
    operations = (ROOT / "docs" / "operations.md").read_text()
    section = operations.partition("## Log lines")[2].partition("\n## ")[0]
    explained = re.findall(r"^\| `(.+?)` \|", section, re.MULTILINE)
    assert len(explained) > 30
    said = [text for module in _relay_modules() for text in _warnings_of(module)]
    # Skip messages that only pass on an error's own text, which is for whoever started the relay.
    said = [text for text in said if re.sub(r"%\S+|\W", "", text)]
    for text in said:
        assert any(known in text for known in explained), f"not in docs/operations.md: {text}"
    for known in explained:
        assert any(known in text for text in said), f"nothing says: {known}"


def _relay_modules() -> list[Path]:
    return [
        module
        for module in ROOT.glob("pleiades/**/*.py")
        if "simulator" not in module.relative_to(ROOT).parts and module.name != "demo.py"
    ]


def _warnings_of(module: Path) -> list[str]:
    """The constant messages of a module's calls of `log.warning` and above."""
    calls = [node for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.Call)]
    return [
        first.value
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and call.func.attr in ("warning", "error", "critical", "exception")
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id == "log"
        and call.args
        and isinstance(first := call.args[0], ast.Constant)
        and isinstance(first.value, str)
    ]


def test_links_and_tests_that_documents_name_exist() -> None:
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        text = document.read_text()
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
        for target in re.findall(r"`((?:tests|pleiades|docs|scripts|deploy)/[\w./-]+)`", text):
            assert (ROOT / target).exists(), f"{document.name}: {target}"


def test_adrs_that_the_code_names_exist() -> None:
    for module in ROOT.glob("pleiades/**/*.py"):
        for number in re.findall(r"docs/adr/(\d{4})", module.read_text()):
            assert list((ROOT / "docs" / "adr").glob(f"{number}-*.md")), f"{module}: {number}"


def test_every_module_is_described() -> None:
    described = (ROOT / "docs" / "architecture.md").read_text()
    for module in _relay_modules():
        path = module.relative_to(ROOT / "pleiades")
        whole = str(path.parent) in ("replay", "sinks/archive", "sinks/files", "sinks/kafka")
        if module.name not in ("__init__.py", "__main__.py"):
            assert f"`{path.name if whole else path}`" in described, path
