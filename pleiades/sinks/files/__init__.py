"""The destination that is a directory, with one file per event."""

from pleiades.sinks.files.sink import FilesSink, Surroundings, own_folder, refuse_if_held

__all__ = ["FilesSink", "Surroundings", "own_folder", "refuse_if_held"]
