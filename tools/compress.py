"""`python tools/compress.py --help`; after an install, `detkit compress` is the same."""

import sys

from detkit.cli import compress

if __name__ == "__main__":
    sys.exit(compress())
