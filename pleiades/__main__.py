"""`python -m pleiades` is `pleiades`."""

import os
import sys

try:
    working_directory = os.getcwd()  # noqa: PTH109  # `pathlib` would be imported from there
except OSError:
    working_directory = ""
if not sys.flags.safe_path and sys.path[0] == working_directory:
    # Python has put the working directory first, and any `socket.py` in it would hide the real one. Only
    # if this package itself was found there, it stays, as the last.
    del sys.path[0]
    if __file__.startswith(f"{working_directory}/"):
        sys.path.append(working_directory)

from pleiades.cli import main

if __name__ == "__main__":
    sys.exit(main())
