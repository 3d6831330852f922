"""`python tools/train.py --help`; after an install, `detkit train` is the same."""

import sys

from detkit.cli import train

if __name__ == "__main__":
    sys.exit(train())
