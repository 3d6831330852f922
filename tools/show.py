"""`python tools/show.py --help`; after an install, `detkit show` is the same."""

import sys

from detkit.cli import show

if __name__ == "__main__":
    sys.exit(show())
