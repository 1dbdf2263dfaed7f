"""Destinations: one file each, all under the contract in base.py."""
