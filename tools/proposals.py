"""`python tools/proposals.py --help`; after an install, `detkit proposals` is the same."""

import sys

from detkit.cli import proposals

if __name__ == "__main__":
    sys.exit(proposals())
