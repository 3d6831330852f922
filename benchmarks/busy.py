"""Runs another benchmark beside a process that keeps one core busy.

python benchmarks/busy.py benchmarks/torchvision_detectors.py --repeats 3
"""

from __future__ import annotations

import os
import subprocess
import sys


def main() -> int:
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as neighbour:
        try:
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(neighbour.pid, {max(os.sched_getaffinity(0))})
            return subprocess.run([sys.executable, *sys.argv[1:]], check=False).returncode
        finally:
            neighbour.kill()


if __name__ == "__main__":
    sys.exit(main())
