"""Process 1 of a replay: each topic-partition on a connection of its own, several side by side."""
