"""`python tools/eval.py --help`; after an install, `detkit eval` is the same."""

import sys

from detkit.cli import evaluate

if __name__ == "__main__":
    sys.exit(evaluate())
