"""`python tools/anchors.py --help`; after an install, `detkit anchors` is the same."""

import sys

from detkit.cli import anchors

if __name__ == "__main__":
    sys.exit(anchors())
