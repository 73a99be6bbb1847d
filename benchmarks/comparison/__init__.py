"""AsymVLM and its rivals on the same frozen features: `python -m benchmarks.comparison`."""
