"""A long training with workers holds no more memory at its end than after its beginning."""

import ctypes
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from detkit.engine.log import RunLog
from detkit.engine.train import train_config
from tests.engine.settings import ROOT, make_config, write_pictures

PICTURES, BATCH = 50, 2
SOURCE = Path("/proc/self/smaps_rollup")

pytestmark = pytest.mark.skipif(
    not SOURCE.exists() or "Pss_Anon" not in SOURCE.read_text(), reason="needs the Pss_Anon of /proc/PID/smaps_rollup"
)


def held(process: int) -> float:
    """MiB of a process, pages that its workers share with it divided among them (PSS): anonymous and shared memory.

    Pages of files, most of them libraries, are not counted: their share changes with what else the machine runs.
    """
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:"))) / 1024


def grown(folder: Path, steps: int) -> dict[str, float]:
    """MiB by which the training, and that of its workers that grew most, grew from the second quarter to the last.

    Of either the least of 13 measurements: what a checkpoint needs while it is written is no growth.
    """
    seen: list[list[float]] = []
    step_of = RunLog.step

    def step(self: RunLog, number: int, *args: Any, **options: Any) -> None:
        step_of(self, number, *args, **options)
        if number % (steps // 50) == 0:
            workers = sorted(worker.pid or 0 for worker in multiprocessing.active_children())
            seen.append([held(os.getpid()), *map(held, workers)])

    epochs = steps * BATCH // PICTURES
    small = ("model.backbone={name: csp_darknet, width: 0.125, strides: [16, 32]}", "model.input.resize.size=32")
    changes = (f"train.epochs={epochs}", f"train.batch_size={BATCH}", f"train.eval_every={epochs}", "loader.workers=2")
    augment = ("augment=[flip, {name: hsv}, {name: scale_jitter, scale: [0.7, 1.4]}]",)
    (folder / "run").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "step", step)
        train_config(make_config(write_pictures(folder / "data", PICTURES), *small, *changes, *augment), folder / "run")
    assert len(seen) == 50
    assert {len(row) for row in seen} == {3}, "the training and its two workers, the same ones all along"
    early, late = zip(*seen[12:25], strict=True), zip(*seen[-13:], strict=True)
    training, *workers = (min(after) - min(before) for before, after in zip(early, late, strict=True))
    return {"training": training, "worker": max(workers)}


def give_back_at_once() -> None:
    """What is held is then what is in use: else it is the highest that a heap, with its gaps, ever needed."""
    ctypes.CDLL(None).mallopt(-3, 2**17)  # M_MMAP_THRESHOLD, fixed: blocks of 128 KiB and more are no part of the heap


@pytest.mark.parametrize("steps", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_neither_the_training_nor_its_workers_grow(tmp_path: Path, steps: int) -> None:
    """In a process of its own: those of a test run have memory that thousands of tests left behind.

    6 MiB are for what allocators keep and for pages that the fork shared and a process writes to.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), give_back_at_once) as alone:
        growth = alone.submit(grown, tmp_path, steps).result()
    assert max(growth.values()) < 6, growth


def test_what_is_freed_is_kept_and_used_again() -> None:
    """In a process of its own: nothing takes it back."""
    code = (
        "import sys, torch\nfrom detkit.accelerate.memory import keep_memory\n"
        "from tests.accelerate.test_memory import held\n"
        "if sys.argv[1] == 'keep': keep_memory()\n"
        "import os; held_after = []\n"
        "for size in (50, 49, 48):\n    torch.ones(size << 20); held_after.append(held(os.getpid()))\n"
        "print(*held_after)"
    )
    after = {}
    for way in ("keep", "give back"):
        command = [sys.executable, "-c", code, way]
        printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
        after[way] = [float(mib) for mib in printed.split()]
    assert after["keep"][0] > after["give back"][0] + 190, "a block of 200 MiB"
    assert after["keep"][2] < after["keep"][0] + 10, "it serves the next"
