"""`python tools/init.py --help`; after an install, `detkit init` is the same."""

import sys

from detkit.cli.configurations import init

if __name__ == "__main__":
    sys.exit(init())
