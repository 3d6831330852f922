"""What the processor is, as far as that decides which of two ways to compute is faster."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch


def has_avx2_alone() -> bool:
    return torch.backends.cpu.get_cpu_capability() == "AVX2"


def is_amd_with_avx512() -> bool:
    """Intel's processors, whose units for AVX-512 are wider, were not measured."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and _is_amd()


@cache
def _is_amd() -> bool:
    processor = Path("/proc/cpuinfo")
    return processor.exists() and "AuthenticAMD" in processor.read_text()
