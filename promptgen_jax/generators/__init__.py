"""Frozen generators, one adapter a file."""
