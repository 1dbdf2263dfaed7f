"""For all tests."""

from __future__ import annotations

from hypothesis import settings

# A machine that is busy with something else makes no law untrue.
settings.register_profile("pleiades", deadline=None)
settings.load_profile("pleiades")
