"""Measurements, each a command: `python -m benchmarks.search`."""
