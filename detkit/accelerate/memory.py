"""Keeps freed memory in the process, because asking the system for new memory is slow.

glibc returns every large block that is freed to the system. The next block has new pages, which are cleared and mapped
4 KiB at a time, so features and gradients of a training on the CPU are written at a tenth of the speed of memory.
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
