"""`python tools/predict.py --help`; after an install, `detkit predict` is the same."""

import sys

from detkit.cli import predict

if __name__ == "__main__":
    sys.exit(predict())
