"""Exact indexes and posteriors."""

from ..utils.extras import require


require(__name__, "faiss", "pyarrow")
