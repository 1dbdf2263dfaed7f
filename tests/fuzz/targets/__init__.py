"""The targets, by what the bytes are: see `tests.fuzz.registry`."""
