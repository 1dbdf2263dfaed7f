"""The targets, grouped by the origin of the bytes: see `tests.fuzz.registry`."""
