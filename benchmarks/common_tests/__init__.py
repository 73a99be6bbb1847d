"""transformers' own common tests, run on AsymVLM: `python -m benchmarks.common_tests`."""
