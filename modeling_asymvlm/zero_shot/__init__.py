"""Classes as fused prompt distributions."""

from ..utils.extras import require


require(__name__, "PIL")
