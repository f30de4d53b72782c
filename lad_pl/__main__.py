"""``python -m lad_pl``."""

import sys

from lad_pl.cli import main

if __name__ == "__main__":
    sys.exit(main())
