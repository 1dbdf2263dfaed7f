"""The real command against a local upstream, and an oracle that reads the destination from scratch."""
