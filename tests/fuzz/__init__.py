"""Everything that reads foreign bytes, given any bytes."""
