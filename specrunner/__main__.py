"""`python -m specrunner`."""

import sys

from specrunner.cli import main

if __name__ == "__main__":
    sys.exit(main())
