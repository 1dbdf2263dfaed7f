"""The flags of all commands, where they are read from, and the settings that they stand for."""
