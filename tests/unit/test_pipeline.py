"""The parts of a pipeline beside its processes."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from pleiades.pipeline import _modules
from pleiades.replay.arguments import arguments_from, replay_parser
from tests.harness.settings import settings_of


@pytest.mark.parametrize("flag", ["--file.enable", "--kafka.enable"])
def test_modules_to_import_before_the_children_exist(flag: str) -> None:
    """A wrong name would go unnoticed: the children would only start more slowly."""
    for module in _modules(settings_of(flag)):
        assert find_spec(module), module


def test_so_do_those_of_a_replay() -> None:
    from dataclasses import replace

    from pleiades.config.settings import ReplaySettings
    from pleiades.core.range import Bound, Range

    told = arguments_from(vars(replay_parser().parse_args(["--from=1", "--dry-run"])))
    span = ReplaySettings(Range(Bound(1), Bound(2)), 2, {}, 2, 0.0, None, False, False, False)
    for module in _modules(replace(told.settings, replay=span)):
        assert find_spec(module), module
