"""`python tools/report.py --help`; after an install, `detkit report` is the same."""

import sys

from detkit.cli import report

if __name__ == "__main__":
    sys.exit(report())
