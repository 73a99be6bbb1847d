"""A page to look at: how certain prompts are, the pictures they find, and the captions that pictures find."""

from ..utils.extras import require


require(__name__, "gradio")
