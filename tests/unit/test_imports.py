"""The layout: imports point down, the core is pure, one module owns the queues."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "pleiades"

LAYERS: tuple[tuple[str, ...], ...] = (
    ("pleiades.__main__",),
    ("pleiades.cli",),
    ("pleiades.check", "pleiades.demo", "pleiades.replay", "pleiades.verify"),
    ("pleiades.pipeline",),
    ("pleiades.range_reader",),
    ("pleiades.reader", "pleiades.parser", "pleiades.publisher"),
    ("pleiades.upstream", "pleiades.sinks", "pleiades.simulator"),
    ("pleiades.runtime",),
    ("pleiades.config",),
    ("pleiades.runtime.errors",),
    ("pleiades.core",),
)
"""From top to bottom; modules of one layer do not import each other. `pleiades` itself is for all."""

IMPURE = {
    *("time", "os", "socket", "ssl", "select", "selectors", "asyncio", "threading", "subprocess"),
    *("multiprocessing", "concurrent", "random", "secrets", "uuid", "pathlib", "io", "tempfile"),
    *("shutil", "signal", "fcntl", "prometheus_client", "logging", "sys", "requests", "urllib3"),
    *("http", "urllib", "confluent_kafka", "aiohttp"),
}
"""Clocks, I/O, processes, randomness and metrics."""

FORBIDDEN = (
    ("pleiades.runtime.supervisor", "the supervisor never imports a stage", LAYERS[4] + LAYERS[5]),
    ("pleiades.core*", "the core imports nothing of pleiades but the core", ("pleiades.[!c]*",)),
    ("pleiades.core*", "the core is pure", tuple(IMPURE)),
    ("pleiades.core*", "the core is pure", tuple(f"{name}.*" for name in IMPURE)),
)

SIMULATOR_MAY_IMPORT = (
    *("pleiades.core", "pleiades.runtime.errors", "pleiades.runtime.logs"),
    *("pleiades.config.flags", "pleiades.config.sources", "pleiades.config.values"),
)

QUEUE_OWNER = "pleiades.runtime.channel"
QUEUES = {"Queue", "SimpleQueue", "JoinableQueue"}


class Import(NamedTuple):
    importer: str
    imported: str
    line: int

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}, imports {self.imported}"


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_in(name: str, source: str) -> Iterator[Import]:
    """All imports, including those inside functions and under TYPE_CHECKING."""
    package = name if MODULES.get(name, Path()).name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(name, alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*up, base]).rstrip(".")
            for alias in node.names:
                # `from pleiades import reader` imports a module, `from pleiades.reader import run`
                # a name in it.
                whole = f"{base}.{alias.name}"
                known = whole in MODULES or base in ("pleiades", "multiprocessing")
                yield Import(name, whole if known else base, node.lineno)


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def layer_of(name: str) -> tuple[int, str] | None:
    """The layer with the most specific name for a module."""
    members = [(number, member) for number, layer in enumerate(LAYERS) for member in layer]
    within = [(number, member) for number, member in members if is_within(name, member)]
    return max(within, key=lambda found: len(found[1]), default=None)


def broken_rules(name: str, source: str) -> list[str]:
    broken = []
    own = layer_of(name)
    if own is None and name != "pleiades":
        broken.append(f"{name} has no place in LAYERS: give it one")
    for found in imports_in(name, source):
        target = layer_of(found.imported)
        if own is not None and target is not None and target != own and target[0] <= own[0]:
            broken.append(f"{found}: imports point down only, and that lies above or beside it")
        if own is None and target is not None:
            broken.append(f"{found}: the package itself imports nothing of its own")
        for pattern, rule, forbidden in FORBIDDEN:
            if fnmatch(name, pattern) and any(fnmatch(found.imported, no) for no in forbidden):
                broken.append(f"{found}: {rule}")
        if (
            is_within(name, "pleiades.simulator")
            and is_within(found.imported, "pleiades")
            and not is_within(found.imported, "pleiades.simulator")
            and target is not None
            and not any(is_within(found.imported, may) for may in SIMULATOR_MAY_IMPORT)
        ):
            broken.append(f"{found}: the simulator may import {SIMULATOR_MAY_IMPORT} only")
    broken += [] if name == QUEUE_OWNER else list(queues_in(name, source))
    return broken


def queues_in(name: str, source: str) -> Iterator[str]:
    """Uses of `multiprocessing`'s queues, which are unusable once a killed process has touched them."""
    tree = ast.parse(source)
    rule = f"only {QUEUE_OWNER} touches multiprocessing's queues"
    for found in imports_in(name, source):
        if is_within(found.imported, "multiprocessing.queues") or found.imported in {
            f"multiprocessing.{queue}" for queue in QUEUES
        }:
            yield f"{found}: {rule}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in QUEUES:
            owner = ast.unparse(node.value)
            if owner != "queue" and "asyncio" not in owner:
                yield f"{name}, line {node.lineno}, uses {owner}.{node.attr}: {rule}"


@pytest.mark.parametrize("name", MODULES)
def test_imports(name: str) -> None:
    broken = broken_rules(name, MODULES[name].read_text(encoding="utf-8"))
    assert not broken, "\n" + "\n".join(broken)


@pytest.mark.parametrize(
    ("name", "source", "breaks"),
    [
        ("pleiades.core.x", "from pleiades.core.event import Event", False),
        ("pleiades.core.x", "import re, datetime", False),
        ("pleiades.core.x", "import time", True),
        ("pleiades.core.x", "from os import path", True),
        ("pleiades.core.x", "def f():\n    import logging.handlers", True),
        ("pleiades.core.x", "from pleiades.runtime.errors import Fatal", True),
        ("pleiades.core.x", "from pleiades import reader", True),
        ("pleiades.core.x", "from ..runtime import errors", True),
        ("pleiades.runtime.x", "from pleiades.core import event", False),
        ("pleiades.runtime.x", "from pleiades import __version__", False),
        ("pleiades.runtime.x", "from pleiades.sinks.base import Sink", True),
        ("pleiades.config.x", "from pleiades.runtime.errors import Fatal", False),
        ("pleiades.config.x", "from pleiades.runtime import logs", True),
        ("pleiades.config.x", "from pleiades.sinks.registry import DESTINATIONS", True),
        ("pleiades.runtime.supervisor", "from pleiades import reader", True),
        ("pleiades.sinks.x", "from pleiades.runtime.errors import Fatal", False),
        ("pleiades.sinks.x", "from pleiades.sinks import base", False),
        ("pleiades.sinks.x", "from pleiades import upstream", True),
        ("pleiades.reader", "from pleiades.upstream.http import Upstream", False),
        ("pleiades.reader", "import pleiades.publisher", True),
        ("pleiades.reader", "from pleiades.pipeline import ingest", True),
        ("pleiades.simulator.x", "from pleiades.runtime.errors import Fatal", False),
        ("pleiades.simulator.x", "from pleiades.core.event import Event", False),
        ("pleiades.simulator.x", "from pleiades.config.settings import Settings", True),
        ("pleiades.simulator.x", "from pleiades.config.flags import flag", False),
        ("pleiades.cli", "from pleiades.simulator import command", False),
        ("pleiades.new", "", True),
        ("pleiades", "from pleiades.cli import main", True),
        ("pleiades.runtime.x", "import queue\nqueue.Queue()", False),
        ("pleiades.runtime.x", "from multiprocessing import Queue", True),
        ("pleiades.runtime.x", "from multiprocessing.queues import Queue", True),
        ("pleiades.runtime.x", "context.Queue()", True),
        (QUEUE_OWNER, "from multiprocessing.queues import Queue", False),
    ],
)
def test_the_rules_can_be_broken(name: str, source: str, breaks: bool) -> None:
    assert bool(broken_rules(name, source)) == breaks


GENERIC = ("pipeline", "publisher", "check", "replay", "config", "sinks.base")
"""These know a destination only by its description."""


@pytest.mark.parametrize(
    "name",
    [name for name in MODULES if any(is_within(name, f"pleiades.{part}") for part in GENERIC)],
)
def test_no_destination_is_named_outside_of_its_package(name: str) -> None:
    assert list(destinations_in(MODULES[name].read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("from pleiades.sinks.files import sink", ["pleiades.sinks.files"]),
        ("if settings.kafka is None: ...", ["kafka"]),
        ("destination == 'kafka'", ["kafka"]),
        ("isinstance(destination, FilesDestination)", ["FilesDestination"]),
        ("flag['file.enable']", ["file.enable"]),
        ("'''What Kafka is.'''\nfiles = 1  # kafka", ["files"]),
        ("with open('x') as file: 'a file of lines'", []),
    ],
)
def test_a_named_destination_is_found(source: str, named: list[str]) -> None:
    assert list(destinations_in(source)) == named


def destinations_in(source: str) -> Iterator[str]:
    """Names in code, and words in strings; prose may give an example."""
    for node in ast.walk(ast.parse(source)):
        names = [getattr(node, field, None) for field in ("id", "attr", "name", "module", "arg")]
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.append(node.value if re.fullmatch(r"[\w.-]+", node.value) else None)
        for name in filter(None, names):
            if isinstance(name, str) and re.search(r"kafka|files|^file\.", name, re.IGNORECASE):
                yield name
