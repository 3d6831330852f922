"""Training that is killed again and again: is every checkpoint whole, and the result that of an undisturbed run?

python benchmarks/kills.py --kills 200

Trains a small YOLOX on a few built-in pictures once without disturbance. Then it trains the same runs again: each
attempt is a process that is ended by SIGKILL at a random moment, three of four times uniform over the length of the
undisturbed run, else the next time that a checkpoint is written after such a moment. After each kill every checkpoint
of the run must load, and the next attempt resumes. A run that reaches its end must have the checkpoints of the
undisturbed run to the bit, and the same records.

The attempts are forked from this process, which has imported everything and has no threads, so that a start costs no
import; they draw no curves, which would be half of their time. Writes one JSON and prints one line. Status 1 if a
checkpoint could not be read, a result differs or an attempt ended in another way.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = "1"  # read by the libraries when they are imported

import argparse
import contextlib
import importlib
import json
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml

from detkit import cli
from detkit.engine import log
from detkit.engine.checkpoint import CheckpointError, load_checkpoint

RESULT = Path(__file__).resolve().parent / "results" / "kills.json"
CHECKPOINTS = ("last.pt", "best.pt")
WORKERS = 2  # in every eighth run; else the process that trains loads the pictures itself
SETTINGS: dict[str, Any] = {
    "model": {
        "name": "yolox",
        "backbone": {"name": "csp_darknet", "width": 0.0625},
        "head": {"channels": 8},
        "input": {"resize": {"name": "letterbox", "size": 64, "centred": False, "fill": 114}},
    },
    "augment": "flip",
    "train": {
        "epochs": 3,
        "batch_size": 4,
        "optimizer": {"name": "sgd", "lr": 0.01},
        "schedule": {"name": "cosine"},
        "warmup": {"iterations": 4},
        "ema": {"decay": 0.9},
    },
    "eval": {"protocol": "voc07"},
    "device": "cpu",
}


@dataclass
class Tally:
    """What was seen.

    kills              attempts that were ended by SIGKILL
    while_writing      of them, those that left a checkpoint half written beside the whole one
    before_checkpoint  of them, those after which there was no checkpoint yet
    resumes            attempts that went on from what there was
    runs               that reached their end, each compared with the undisturbed one
    unreadable         checkpoints that did not load
    different          names of what differs from the undisturbed run
    failed             attempts that ended neither by themselves with status 0 nor by the kill
    """

    kills: int = 0
    while_writing: int = 0
    before_checkpoint: int = 0
    resumes: int = 0
    runs: int = 0
    unreadable: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def start(root: Path, folder: Path, workers: int) -> int:
    """The id of a new process that trains in `folder`, or goes on there."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with (root / "output.txt").open("a") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        arguments = [str(root / "config.yaml"), "--set", f"loader.workers={workers}"]
        arguments += ["--resume" if (folder / "config.yaml").exists() else "--output", str(folder)]
        status = cli.train(arguments)
        (root / "modules.txt").write_text("\n".join(list(sys.modules)))
    finally:
        os._exit(status)  # nothing that this process would do at its end


def import_all(names: Sequence[str]) -> None:
    """What an attempt imports while it runs, so that the next ones need not."""
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def ended(child: int) -> int | None:
    """The exit status of a process, negative for a signal; None while it runs."""
    done, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def wait(child: int, seconds: float, folder: Path | None = None) -> int | None:
    """Waits until the process ends, `seconds` are over or, with `folder`, a checkpoint is written there after them."""
    begin, before = time.monotonic(), half_written(folder)
    while (status := ended(child)) is None:
        late = time.monotonic() - begin >= seconds
        if late and (folder is None or half_written(folder) - before):
            return None
        time.sleep(0.0002 if late else 0.005)
    return status


def half_written(folder: Path | None) -> set[tuple[str, int]]:
    """The files that are to take the place of a checkpoint, and when they were last written: a kill leaves one."""
    files = set()
    for name in CHECKPOINTS if folder else ():
        with contextlib.suppress(FileNotFoundError):
            files.add((name, (folder / f".{name}.writing").stat().st_mtime_ns))
    return files


def kill_at(child: int, folder: Path, length: float, rng: np.random.Generator) -> int | None:
    """Kills the process at a random moment; its exit status if it has ended before."""
    writing = rng.random() < 0.25
    status = wait(child, rng.uniform(0, length), folder if writing else None)
    if status is not None:
        return status
    if writing:
        time.sleep(rng.uniform(0, 0.002))
    os.kill(child, signal.SIGKILL)
    _, raw = os.waitpid(child, 0)
    status = os.waitstatus_to_exitcode(raw)
    return None if status == -signal.SIGKILL else status


def inspect(folder: Path, before: set[tuple[str, int]], tally: Tally) -> None:
    """After a kill: every checkpoint there is must load."""
    tally.kills += 1
    tally.while_writing += bool(half_written(folder) - before)
    tally.before_checkpoint += not (folder / "last.pt").exists()
    for path in (folder / name for name in CHECKPOINTS):
        try:
            if path.exists():
                load_checkpoint(path)
        except CheckpointError as error:
            tally.unreadable.append(str(error))


def differences(one: Any, two: Any, path: str) -> list[str]:
    """The places at which two states of tensors and plain values are not equal to the bit."""
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return [] if one.dtype == two.dtype and torch.equal(one, two) else [path]
    if isinstance(one, dict) and isinstance(two, dict):
        return [p for key in {*one, *two} for p in differences(one.get(key), two.get(key), f"{path}.{key}")]
    return [] if type(one) is type(two) and one == two else [path]


def compare(folder: Path, expected: Path) -> list[str]:
    """What a run that was killed has otherwise than the undisturbed one: checkpoints and records."""
    found = []
    for name in CHECKPOINTS:
        if not (folder / name).exists():
            found.append(f"{name} is missing")
            continue
        one, two = load_checkpoint(folder / name), load_checkpoint(expected / name)
        for state in (one, two):
            state["config"] = {**yaml.safe_load(state["config"]), "loader": None}  # the number of workers may differ
        found += differences(one, two, name)[:3]  # the first tell enough
    if (folder / "metrics.jsonl").read_text() != (expected / "metrics.jsonl").read_text():
        found.append("metrics.jsonl")
    return found


def train_and_kill(
    root: Path, folder: Path, lengths: dict[int, float], kills: int, rng: np.random.Generator, tally: Tally
) -> None:
    """One run, killed until it reaches its end; undisturbed after the last of `kills`.

    lengths  seconds of an undisturbed run, by the number of workers; the shortest that was seen
    """
    workers = WORKERS if tally.runs % 8 == 7 else 0
    length = lengths[workers]
    begun = False
    while True:
        before, moment = half_written(folder), time.monotonic()
        child = start(root, folder, workers)
        status = kill_at(child, folder, length, rng) if tally.kills < kills else wait(child, float("inf"))
        if status == 0 and not begun:
            lengths[workers] = min(length, time.monotonic() - moment)
        tally.resumes += begun
        begun = True
        if status is None:
            inspect(folder, before, tally)
            continue
        if status != 0:
            tally.failed.append(f"{folder.name}: status {status}")
            return
        tally.runs += 1
        tally.different += [f"{folder.name}: {name}" for name in compare(folder, root / "undisturbed")]
        return


def measure(root: Path, kills: int, seed: int, epochs: int) -> dict[str, Any]:
    """Trains in `root`; see above."""
    settings = {**SETTINGS, "data": {"name": "shapes", "root": str(root / "shapes"), "num_train": 12, "num_val": 4}}
    settings["train"] = {**settings["train"], "epochs": epochs}
    (root / "config.yaml").write_text(yaml.safe_dump(settings))
    begin, lengths = time.monotonic(), dict[int, float]()
    for name, workers in (("first", 0), ("with_workers", WORKERS), ("undisturbed", 0)):  # the first also draws pictures
        start_of_run = time.monotonic()
        if wait(start(root, root / name, workers), float("inf")) != 0:
            raise SystemExit((root / "output.txt").read_text()[-3000:])
        lengths[workers] = time.monotonic() - start_of_run
        import_all((root / "modules.txt").read_text().split())
    rng, tally = np.random.default_rng(seed), Tally()
    while tally.kills < kills and not tally.failed:
        folder = root / f"run_{tally.runs}"
        train_and_kill(root, folder, lengths, kills, rng, tally)
        print(f"{tally.runs} runs, {tally.kills} kills", file=sys.stderr)
        if not tally.failed:
            shutil.rmtree(folder)
    counts = {name: getattr(tally, name) for name in ("kills", "while_writing", "before_checkpoint", "resumes", "runs")}
    return {
        **counts,
        "unreadable": len(tally.unreadable),
        "equal": not tally.different and not tally.failed and tally.runs > 0,
        "problems": [*tally.unreadable, *tally.different, *tally.failed],
        "seconds": round(time.monotonic() - begin, 1),
        "seconds_undisturbed": round(lengths[0], 2),
        "seed": seed,
        "epochs": epochs,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="to survive (200)")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments (0)")
    parser.add_argument("--epochs", type=int, default=SETTINGS["train"]["epochs"], help="of each run (3)")
    parser.add_argument("--json", type=Path, default=RESULT, metavar="FILE", help="where the figures go")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="trains here, and leaves what is there")
    options = parser.parse_args(arguments)
    log.draw_curves = lambda *_: None
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    with contextlib.ExitStack() as stack:
        root = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        root.mkdir(parents=True, exist_ok=True)
        figures = measure(root, options.kills, options.seed, options.epochs)
        output = (root / "output.txt").read_text()
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(figures, indent=1) + "\n")
    print(
        f"{figures['kills']} kills in {figures['runs']} runs, {figures['while_writing']} while a checkpoint was "
        f"written: "
        f"{figures['unreadable']} unreadable, results {'equal' if figures['equal'] else 'NOT equal'} "
        f"({figures['seconds']:.0f} s)"
    )
    if figures["unreadable"] or not figures["equal"]:
        print("\n".join(figures["problems"]), output[-3000:], sep="\n", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
