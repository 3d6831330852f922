"""How many threads torch and the kernels use, and how idle threads wait for work.

Imports nothing heavy: the settings are read when torch loads its thread library.
"""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
SAMPLE = 0.1  # s
BUSY = 0.2  # of the time of the CPUs of this process, above which it has neighbours
# How often an idle thread of GNU OpenMP looks for work before it sleeps, beside neighbours; its default is 300,000.
# Measured on two cores, one of them kept busy or not: seconds of SSDLite320 on one picture, and of a training step of
# Faster R-CNN MobileNet-320 on four:
#
#     alone          default 0.023, 1.45;   3000: 0.026, 1.42;   1000: 0.026, 1.43
#     one core busy  default 0.067, 3.30;   3000: 0.068, 2.56;   1000: 0.044, 2.63
SPIN_COUNT = 1000


def set_up_threads() -> None:
    """Sets how many threads torch will start and how they wait, unless the user has set it or torch is there already.

    torch starts one for each CPU of the affinity mask. It does not see the quota of a container, which stops all
    threads for the rest of a period once they have used up their time; so OMP_NUM_THREADS follows the quota.

    An idle thread spins for milliseconds, waiting for more work. That is fastest on CPUs of one's own; where a
    neighbour wants them, it takes time from the thread that the others wait for. So it spins less if there is one.
    """
    if "torch" not in sys.modules:
        os.environ.update(settings())


def settings() -> dict[str, str]:
    """The environment variables that are set for torch; none that has a value already."""
    values = {}
    if "OMP_WAIT_POLICY" not in os.environ and _neighbours() > BUSY:
        values["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
    cpus = available_cpus()
    if cpus < _affinity():
        values["OMP_NUM_THREADS"] = str(cpus)
    return {name: value for name, value in values.items() if name not in os.environ}


def available_cpus(cgroups: Path = CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> int:
    """The CPUs that the affinity mask and the quotas of the process's control groups leave to it, at least 1."""
    return max(1, min([_affinity(), *(math.floor(quota) for quota in _quotas(cgroups, membership))]))


def _neighbours() -> float:
    """The part of the time of the CPUs of this process that others use just now, in [0, 1]."""
    before, idle_before = _cpu_times()
    time.sleep(SAMPLE)
    total, idle = _cpu_times()
    return 1 - (idle - idle_before) / (total - before) if total > before else 0.0


def _cpu_times(statistics: Path = Path("/proc/stat")) -> tuple[int, int]:
    """Ticks of the CPUs of this process since the start of the machine: all, and those without work; 0 if unknown."""
    if not statistics.exists() or not hasattr(os, "sched_getaffinity"):
        return 0, 0
    cpus = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    lines = [line.split() for line in statistics.read_text().splitlines()]
    times = [list(map(int, values[:8])) for name, *values in lines if name in cpus]
    return sum(map(sum, times)), sum(ticks[3] + ticks[4] for ticks in times)  # idle and iowait


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quotas(cgroups: Path, membership: Path) -> list[float]:
    """Of the group of the process and of each group around it, versions 1 and 2, in CPUs."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # no Linux
        return []
    quotas = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            quotas += [_quota_v2(folder / "cpu.max") for folder in _upwards(cgroups, path)]
        elif "cpu" in controllers.split(","):
            quotas += [_quota_v1(folder) for folder in _upwards(cgroups / controllers, path)]
            quotas += [_quota_v1(folder) for folder in _upwards(cgroups / "cpu", path)]
    return [quota for quota in quotas if quota is not None]


def _upwards(root: Path, path: str) -> list[Path]:
    """The folder of a group and of each around it. Within a container the own group may be mounted as the root."""
    folder = root / path.strip("/")
    return [folder, *(parent for parent in folder.parents if parent == root or root in parent.parents)]


def _quota_v2(file: Path) -> float | None:
    try:
        quota, period = file.read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 else None
