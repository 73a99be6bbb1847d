"""python -m benchmarks.comparison [ARGUMENTS]"""

import sys

from .compare import main


sys.exit(main())
