"""Does memory grow with time? A training of 2,000 steps and a prediction on 5,000 pictures, watched from outside.

python benchmarks/memory_growth.py [--steps N] [--pictures N]

Both are the commands as a user starts them, with the loader's workers: Faster R-CNN on the built-in shapes in batches
of two with mosaic, affine maps and inputs of three sizes, measured on validation pictures twenty times; then that
detector on drawn pictures of a hundred sizes. The memory is that of all processes of the command, shared pages counted
once (PSS), without pages of files: most are libraries, whose share changes with what else the machine runs. Growth is
from the second tenth of the time, when everything is loaded and measured once, to the last: medians of each.
Writes one JSON and prints a table. Linux only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from detkit.data.shapes_drawing import draw_picture

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks/results/memory_growth.json"
INTERVAL = 2.0  # seconds between two looks
VALIDATIONS, BATCH = 20, 2
SIZES = 100  # of the pictures to predict on
SETTINGS = {
    "model.input.resize.train_sizes": "[96, 128, 160]",
    "augment": "[mosaic, random_affine, horizontal_flip]",
    "train.batch_size": BATCH,
    "train.epochs": VALIDATIONS,
    "train.eval_every": 1,
    "train.warmup.iterations": 20,
    "data.num_val": 50,
    "loader.workers": 2,
    "device": "cpu",
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="of the training (2000)")
    parser.add_argument("--pictures", type=int, default=5000, help="to predict on (5000)")
    parser.add_argument("--json", type=Path, default=RESULT, metavar="FILE", help="where the figures go")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        figures = {
            f"training of {options.steps} steps": watch(training(root, options.steps)),
            f"prediction on {options.pictures} pictures": watch(prediction(root, options.pictures)),
        }
    environment = {"torch": torch.__version__, "python": sys.version.split()[0]}
    options.json.write_text(json.dumps(figures | environment, indent=1) + "\n")
    print("| | seconds | MiB in the second tenth | in the last | most | growth |\n|---|---|---|---|---|---|")
    for work, seen in figures.items():
        print(f"| {work} | {' | '.join(str(seen[key]) for key in ('seconds', 'early', 'late', 'most', 'growth'))} |")
    return 0


def training(root: Path, steps: int) -> list[str]:
    """The command; `steps` in as many epochs as there are validations."""
    settings = {**SETTINGS, "data.root": root / "shapes", "data.num_train": steps * BATCH // VALIDATIONS}
    changes = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return ["tools/train.py", "configs/faster_rcnn.yaml", "--output", str(root / "run"), *changes]


def prediction(root: Path, count: int) -> list[str]:
    """The command, on `count` names of a hundred pictures of different sizes."""
    folder, rng = root / "pictures", np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        path = folder / f"{number}.png"
        if number < SIZES:
            height, width = rng.integers(150, 600, 2).tolist()
            picture, _ = draw_picture(rng)
            Image.fromarray(picture).resize((width, height)).save(path)
        else:
            path.hardlink_to(folder / f"{number % SIZES}.png")
    return ["tools/predict.py", str(root / "run"), str(folder), "--output", str(root / "detections"), "--device", "cpu"]


def watch(command: Sequence[str]) -> dict[str, Any]:
    """Runs the command and looks at its memory, in MiB. Raises SystemExit if it fails."""
    with tempfile.TemporaryFile("w+") as output:
        start = time.monotonic()
        process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=output, stderr=output)
        series = []
        while process.poll() is None:
            series.append(sum(proportional_kib(pid) for pid in family(process.pid)) / 1024)
            time.sleep(INTERVAL)
        if process.returncode:
            output.seek(0)
            raise SystemExit(output.read()[-3000:])
    tenth = max(len(series) // 10, 1)
    early, late = statistics.median(series[tenth : 2 * tenth]), statistics.median(series[-tenth:])
    return {
        "seconds": round(time.monotonic() - start),
        "early": round(early),
        "late": round(late),
        "most": round(max(series)),
        "growth": round(late - early),
        "tenths": [round(statistics.median(series[at : at + tenth])) for at in range(0, 10 * tenth, tenth)],
    }


def family(process: int) -> Iterator[int]:
    """The process and all that it has started, as far as they still live."""
    yield process
    for tasks in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):
            for child in tasks.read_text().split():
                yield from family(int(child))


def proportional_kib(process: int) -> int:
    """Anonymous and shared memory of a process, a page of n processes counted as 1 / n; 0 if it has ended."""
    with suppress(OSError):
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
