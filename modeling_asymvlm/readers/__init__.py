"""Readers of the layouts that pairs of images and captions come in; each gives a `PairSource` per split."""
