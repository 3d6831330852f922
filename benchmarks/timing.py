"""Timing of several works in turn, so that a slow spell of the machine meets all, and the table that shows it."""

from __future__ import annotations

import datetime
import gc
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from detkit.accelerate.memory import keep_memory
from detkit.accelerate.threads import settings

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


class Remote:
    """A work in a process of its own, as its users have it: called here, done there.

    `build(*args)`, a function of a module, gives the work there; both must be picklable. detkit's side has the memory
    and the threads that its tools have.
    """

    def __init__(self, build: Callable[..., Callable[[], object]], *args: Any, as_tools: bool = False) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        before = os.environ.copy()
        os.environ.update(settings() if as_tools else {})  # which the process inherits, before it imports torch
        self._process = context.Process(target=_serve, args=(other, build, args, as_tools), daemon=True)
        self._process.start()
        other.close()  # so that a process that fails ends the wait here
        self._pipe.recv()
        os.environ.clear()
        os.environ.update(before)

    def __call__(self) -> None:
        self._pipe.send("work")
        self._pipe.recv()

    def end(self) -> int:
        """Ends the process. MiB by which the work made its peak of memory grow (on CUDA: of what is allocated)."""
        self._pipe.send("end")
        grown: int = self._pipe.recv()
        self._process.join()  # else the next one would see a neighbour
        return grown


def _serve(pipe: Any, build: Callable[..., Callable[[], object]], args: Sequence[Any], as_tools: bool) -> None:
    if as_tools:
        keep_memory()
    work = build(*args)
    gc.collect()
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() // 2**20 if cuda else peak_memory(reset=True)
    pipe.send("ready")
    while pipe.recv() == "work":
        work()
        if cuda:
            torch.cuda.synchronize()
        pipe.send("done")
    pipe.send((torch.cuda.max_memory_allocated() // 2**20 if cuda else peak_memory()) - before)


def peak_memory(*, reset: bool = False) -> int:
    """MiB that were resident in this process at most; with `reset`: that are now, and the peak begins anew."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (2**20 if sys.platform == "darwin" else 2**10)
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) // 2**10


def _busy_seconds() -> float:
    """Of all CPUs together since the start, without those of this process and its children; 0 where /proc is absent."""
    if not Path("/proc/stat").exists():
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    ticks = user + nice + system + irq + softirq + steal
    for child in multiprocessing.active_children():
        ticks -= sum(map(int, Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]))
    own = os.times()
    return ticks / os.sysconf("SC_CLK_TCK") - (own.user + own.system + own.children_user + own.children_system)


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
