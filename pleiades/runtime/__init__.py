"""Serves every stage, knows none of them."""
