"""Fixtures of the tests about a relay's surroundings."""

from tests.integration.conftest import flags, folder, simulate

__all__ = ["flags", "folder", "simulate"]
