"""python app.py [ARGUMENTS]: the command `asymvlm demo`, as a Space starts it."""

import sys

from modeling_asymvlm.__main__ import main


if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
