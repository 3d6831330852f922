"""`python tools/schema.py --help`; after an install, `detkit schema` is the same."""

import sys

from detkit.cli.configurations import schema

if __name__ == "__main__":
    sys.exit(schema())
