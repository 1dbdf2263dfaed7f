"""A local upstream that speaks the EventStreams protocol, with all its unpleasantness."""
