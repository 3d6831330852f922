"""`python tools/overfit.py --help`; after an install, `detkit overfit` is the same."""

import sys

from detkit.cli import overfit

if __name__ == "__main__":
    sys.exit(overfit())
