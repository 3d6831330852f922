"""`python tools/serve.py --help`; after an install, `detkit serve` is the same."""

import sys

from detkit.cli import serve

if __name__ == "__main__":
    sys.exit(serve())
