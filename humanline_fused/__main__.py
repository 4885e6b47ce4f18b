"""``python -m humanline_fused`` is the command ``humanline``."""

import sys

from humanline_fused.cli import main

if __name__ == "__main__":
    sys.exit(main())
