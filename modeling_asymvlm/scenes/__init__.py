"""The embedded example: generated pictures of one shape, captions of known ambiguity, their oracle and a tiny CLIP."""
