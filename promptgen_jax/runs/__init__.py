"""Runs: what the command line does, from a configuration to a report."""
