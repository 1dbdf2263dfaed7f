"""All rows of the matrix, in the order of the table."""

from tests.faults.rows import processes

__all__ = ["processes"]
