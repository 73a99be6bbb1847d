"""What setup.cfg cannot say: README as it stands on the package's page, where the files that it links to are not."""

import re
from pathlib import Path

from setuptools import setup


readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
setup(long_description=re.sub(r"(?<!!)\[([^\]]+)\]\((?![a-z]+:)[^)\s]+\)", r"\1", readme))
