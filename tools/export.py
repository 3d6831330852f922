"""`python tools/export.py --help`; after an install, `detkit export` is the same."""

import sys

from detkit.cli import export

if __name__ == "__main__":
    sys.exit(export())
