"""What a training runs with, so that its scores can be understood later: versions, device, threads, git revision."""

from __future__ import annotations

import json
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from detkit.engine import distributed
from detkit.files import write_text

FILE = "environment.json"
PACKAGES = ("detkit-vision", "torchvision", "numpy", "opencv-python-headless", "albumentations")


def record_environment(folder: Path, device: torch.device) -> None:
    """Adds the environment to those in the folder of a run: one for its start, and one each time it is resumed.

    The file is a JSON list, `environment.json`, which the first of several processes writes. Raises UserError if it
    cannot.
    """
    _write(folder, [*read_environments(folder), describe_environment(device)])


def record_minutes(folder: Path, minutes: float) -> None:
    """Adds to the last environment how long the training took; a training that is killed has no such entry."""
    environments = read_environments(folder)
    if environments:
        environments[-1]["minutes"] = round(minutes, 2)
        _write(folder, environments)


def read_environments(folder: Path) -> list[dict[str, Any]]:
    """Those that were recorded, oldest first; none in the folder of an earlier detkit, or if the file is broken."""
    try:
        environments = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return environments if isinstance(environments, list) else []


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Plain values by name. `git` is the checkout in which the command was started, None outside of one."""
    return {
        "started": _now().isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {"torch": torch.__version__} | {name: known for name in PACKAGES if (known := _version(name))},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "processes": distributed.world_size(),
        "threads": torch.get_num_threads(),
        "git": git_revision(Path()),
    }


def git_revision(folder: Path) -> dict[str, Any] | None:
    """The commit of the checkout that holds `folder`, and whether tracked files differ from it; None: no checkout."""
    revision = _git(folder, "rev-parse", "HEAD")
    if revision is None:
        return None
    return {"revision": revision, "changed": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _write(folder: Path, environments: list[dict[str, Any]]) -> None:
    if distributed.rank() == 0:
        write_text(folder / FILE, json.dumps(environments, indent=1) + "\n")


def _git(folder: Path, *arguments: str) -> str | None:
    """What git answers; None where there is no git, no checkout or no commit."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, errors="replace", timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
