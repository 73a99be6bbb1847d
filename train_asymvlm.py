"""accelerate launch train_asymvlm.py [ARGUMENTS]: `asymvlm train` in a clone, for any number of processes."""

import sys

from modeling_asymvlm.__main__ import main


if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
