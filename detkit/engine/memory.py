"""Memory of the process that trains: kept instead of given back.

glibc gives every large block that is freed back to the system. The next one has new pages, which are cleared and mapped
4 KiB at a time: features and gradients of a training on the CPU are written at a tenth of the speed of memory.
"""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # of glibc's mallopt
PAD = 64 * 2**20  # bytes by which the heap grows


def keep_memory() -> None:
    """From now on this process, and those that it forks, keep what they free. Does nothing where there is no glibc."""
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return
    libc.mallopt(MMAP_MAX, 0)
    libc.mallopt(TRIM_THRESHOLD, -1)  # never
    libc.mallopt(TOP_PAD, PAD)
