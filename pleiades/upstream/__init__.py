"""One connection to EventStreams at a time: ask, read all that waits, cut into frames, reconnect."""
