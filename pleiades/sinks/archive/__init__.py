"""Compressed segments: many events in one file, which databases read as a table."""
