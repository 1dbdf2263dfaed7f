"""`python -m pleiades` is `pleiades`."""

import sys

from pleiades.cli import main

if __name__ == "__main__":
    sys.exit(main())
