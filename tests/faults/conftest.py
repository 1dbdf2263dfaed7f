"""The fixtures of the end-to-end tests serve here too."""

from tests.integration.conftest import flags, folder, simulate

__all__ = ["flags", "folder", "simulate"]
