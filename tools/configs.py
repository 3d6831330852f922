"""`python tools/configs.py --help`; after an install, `detkit configs` is the same."""

import sys

from detkit.cli.configurations import configs

if __name__ == "__main__":
    sys.exit(configs())
