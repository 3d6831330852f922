"""`python tools/convert.py --help`; after an install, `detkit convert` is the same."""

import sys

from detkit.cli.convert import convert

if __name__ == "__main__":
    sys.exit(convert())
