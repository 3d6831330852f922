"""Timing of several works in turn, so that a slow spell of the machine meets all, and the table that shows it."""

from __future__ import annotations

import datetime
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

BUSY = 0.1  # part of all CPUs that others may use before a row is called disturbed


def head(columns: Sequence[str], packages: Sequence[str], device: torch.device, repeats: int) -> None:
    """Prints the date, the machine and the versions, and the head of a table whose first column is the work."""
    machine = torch.cuda.get_device_name() if device.type == "cuda" else f"{_cpu()}, {torch.get_num_threads()} threads"
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", *packages))
    print(f"{datetime.date.today()}; {machine}; {versions}; median seconds of {repeats}, runs in turn\n")
    print(f"| {' | '.join(('work', *columns))} |\n|{'---|' * (len(columns) + 1)}", flush=True)


def row(work: str, ways: Mapping[str, Callable[[], object]], repeats: int, device: torch.device) -> None:
    """Prints a row: the seconds of each way, then how many times as long each after the first took."""
    first, *others = interleaved(list(ways.values()), repeats, device)
    cells = [f"{seconds:.3g}" for seconds in (first, *others)] + [f"{seconds / first:.2f}" for seconds in others]
    print(f"| {' | '.join((work, *cells))} |", flush=True)


def interleaved(works: Sequence[Callable[[], object]], repeats: int, device: torch.device) -> list[float]:
    """Median seconds of each, after one run that is not counted; a warning if other processes had the CPUs too."""
    times: list[list[float]] = [[] for _ in works]
    for repeat in range(repeats + 1):
        if repeat == 1:
            before = _busy_seconds(), time.perf_counter()
        for work, seconds in zip(works, times, strict=True):
            start = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat:
                seconds.append(time.perf_counter() - start)
    others = (_busy_seconds() - before[0]) / (time.perf_counter() - before[1]) / (os.cpu_count() or 1)
    if others > BUSY:
        print(f"warning: other processes used {others:.0%} of the CPUs during the next row", file=sys.stderr)
    return [statistics.median(seconds) for seconds in times]


def peak_memory(device: torch.device) -> int:
    """MiB that this process had at most so far: resident, or allocated on CUDA."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() // 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit // 2**20


def _busy_seconds() -> float:
    """Of all CPUs together since the start, without those of this process and its children; 0 where /proc is absent."""
    if not Path("/proc/stat").exists():
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    own = os.times()
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return busy - (own.user + own.system + own.children_user + own.children_system)


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
