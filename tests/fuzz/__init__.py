"""Feeds arbitrary bytes to all code that reads foreign bytes."""
