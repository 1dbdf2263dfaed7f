"""`pleiades replay`: a bounded piece of history, to its end."""
