"""`python tools/doctor.py --help`; after an install, `detkit doctor` is the same."""

import sys

from detkit.cli import doctor

if __name__ == "__main__":
    sys.exit(doctor())
