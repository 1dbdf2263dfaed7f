"""The context of a publisher, without processes."""

from tests.unit.conftest import metrics, settings_of

__all__ = ["metrics", "settings_of"]
