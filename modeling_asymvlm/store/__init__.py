"""The backbone's features on disk: built, verified, read in place."""

from ..utils.extras import require


require(__name__, "filelock", "pyarrow")
