"""Timing of several works in turn, so that a slow spell of the machine meets all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch


def interleaved(works: Sequence[Callable[[], object]], repeats: int, device: torch.device) -> list[float]:
    """Median seconds of each, after one run that is not counted."""
    times: list[list[float]] = [[] for _ in works]
    for repeat in range(repeats + 1):
        for work, seconds in zip(works, times, strict=True):
            start = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat:
                seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in times]
