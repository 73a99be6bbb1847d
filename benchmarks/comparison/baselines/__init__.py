"""Rivals of AsymVLM and its own ablations, all post hoc on the same cached features. See docs/comparison.md."""
