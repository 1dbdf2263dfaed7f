"""The destination that is a directory, with one file per event."""
