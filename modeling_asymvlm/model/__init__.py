"""AsymVLM itself: configuration, model, head, distributions, objective, checkpoints.

All of it, and only it, travels with a published checkpoint: it needs torch and transformers alone, imports nothing of
the rest of the package, and its files import one another by `from .name import`, as transformers copies them.
"""
