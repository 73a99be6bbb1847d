"""For the site: links of a page to files outside docs/ become the names of these files, which the site has not."""

import re
from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    """What MkDocs calls for every page."""
    return re.sub(r"(?<!!)\[([^\]]+)\]\(\.\./[^)\s]+\)", r"\1", markdown)
