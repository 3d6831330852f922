"""How many threads torch and the kernels use, and how those wait that have nothing to do.

Imports nothing heavy: the settings are read when torch loads its thread library.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


# How often an idle thread of GNU OpenMP looks for work before it sleeps, MEASURED
SPIN_COUNT = 3000


def set_up_threads() -> None:
    """Sets how many threads torch will start and how they wait, unless the user has set it or torch is there already.

    torch starts one for each CPU of the affinity mask. It does not see the quota of a container, which stops all
    threads for the rest of a period once they have used up their time; so OMP_NUM_THREADS follows the quota.
    """
    if "torch" in sys.modules:
        return
    cpus = available_cpus()
    if cpus < _affinity():
        os.environ.setdefault("OMP_NUM_THREADS", str(cpus))
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))


def available_cpus(cgroups: Path = CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> int:
    """The CPUs that the affinity mask and the quotas of the process's control groups leave to it, at least 1."""
    return max(1, min([_affinity(), *(math.floor(quota) for quota in _quotas(cgroups, membership))]))


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
