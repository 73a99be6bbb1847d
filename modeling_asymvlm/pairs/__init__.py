"""Images with captions out of every layout that people have."""

from ..utils.extras import require


require(__name__, "PIL", "datasets", "fsspec", "pyarrow")
