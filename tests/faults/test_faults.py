"""In the middle of a training: no memory, other pictures, a full disk, a clock that jumps."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from detkit import cli
from detkit.config import UserError
from detkit.data.loader import Batches, Loader
from detkit.detectors.yolox import YOLOX
from detkit.engine import environment
from detkit.engine.checkpoint import load_checkpoint
from detkit.engine.train import Run
from tests.engine.test_run_folder import space_for
from tests.faults.small import check_same, train_again

ROOT = Path(__file__).resolve().parents[2]


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err.splitlines()[-1]


# ---- no memory


def too_much() -> None:
    torch.empty(2**56)  # more than a processor can address


def refused_by_cuda() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


@pytest.mark.parametrize("allocate", [too_much, refused_by_cuda])
@pytest.mark.parametrize(
    ("call", "setting"),
    [(2, "a batch of 2 images of 64 x 64 (w x h) px; set train.batch_size lower"), (4, "set eval.batch_size lower")],
)
def test_a_batch_without_memory_names_the_batch_size(
    allocate: Callable[[], None],
    call: int,
    setting: str,
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    network, calls = YOLOX.network, itertools.count(1)

    def full(*arguments: Any) -> Any:
        if next(calls) == call:
            allocate()
        return network(*arguments)

    monkeypatch.setattr(YOLOX, "network", full)
    assert cli.train([str(config), "--output", str(tmp_path / "run")]) == 2
    message = last_line(capsys)
    assert message.startswith("error: out of memory in a batch of ")
    assert setting in message


def test_other_errors_of_a_batch_are_not_hidden(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a mistake in detkit")

    monkeypatch.setattr(YOLOX, "network", fail)
    with pytest.raises(RuntimeError, match="a mistake in detkit"):
        cli.train([str(config), "--output", str(tmp_path / "run")])


def without_memory(key: int) -> int:
    if key == 0:
        np.empty(2**60, np.uint8)
    too_much()
    return key


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("key", [0, 1])
def test_a_loader_without_memory_is_one_line(key: int, workers: int) -> None:
    with pytest.raises(UserError, match=r"^out of memory while a batch was loaded; set loader.workers or") as error:
        list(Loader(without_memory, [key], workers=workers))
    assert "\n" not in str(error.value)


def test_a_picture_without_memory_is_one_line(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Batches, "_load", lambda *_: np.empty(2**60, np.uint8))
    assert cli.train([str(config), "--output", str(tmp_path / "run")]) == 2
    assert last_line(capsys).startswith("error: out of memory while a batch was loaded; set loader.workers")


# ---- pictures that are others than when they were checked


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (Path.unlink, "does not exist (it was in order when"),
        (
            lambda path: cv2.imwrite(str(path), np.zeros((40, 50, 3), np.uint8)),
            "expected 96 x 64 (w x h) as checked, fo",
        ),
        (lambda path: path.write_bytes(path.read_bytes()[:300]), "(it was in order when"),
    ],
    ids=["removed", "of another size", "cut short"],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_changes_in_an_epoch(
    change: Callable[[Path], Any],
    words: str,
    workers: int,
    config: Path,
    undisturbed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = Path(shutil.copytree(config.with_name("data"), tmp_path / "data"))
    step = Run.optimizer_step

    def disturb(run: Run, *arguments: Any) -> None:
        step(run, *arguments)
        if run.step == 4 - workers:  # in the second epoch; a worker is ahead, and has all of its batches by then
            for path in root.rglob("*.jpg"):
                change(path)

    settings = ["--set", f"data.root={root}", "--set", f"loader.workers={workers}", "--set", "train.eval_every=2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "optimizer_step", disturb)
        assert cli.train([str(config), "--output", str(tmp_path / "run"), *settings]) == 2
    message = last_line(capsys)
    assert message.startswith("error: ")
    assert ".jpg" in message
    assert words in message
    assert load_checkpoint(tmp_path / "run/last.pt")["epoch"] == 1
    shutil.copytree(config.with_name("data"), root, dirs_exist_ok=True)
    assert train_again(config, tmp_path / "run") == 0
    one, two = (load_checkpoint(folder / "last.pt")["trained"] for folder in (tmp_path / "run", undisturbed))
    assert all(torch.equal(one[key], value) for key, value in two.items())


# ---- a disk that is full


IN_TMPFS = """
mount -t tmpfs -o size={size}k tmpfs {folder} || exit 77
{python} -m detkit train {config} --output {folder}/run
status=$?
cp -r {folder}/run {kept}
exit $status
"""


@pytest.mark.parametrize(
    "command",
    [
        "predict --save coco",
        "predict --save yolo",
        "predict --save voc",
        "eval --json",
        "eval --save-detections",
        "report",
    ],
)
def test_results_on_a_full_disk(
    command: str, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *options = command.split()
    pictures = undisturbed.with_name("data") / "VOC2007/JPEGImages"
    arguments = {
        "predict": [str(undisturbed), str(pictures), "--output", str(tmp_path), "--score-threshold", "0", *options],
        "eval": [str(undisturbed), *options, str(tmp_path / "out.json")],
        "report": [str(undisturbed), "--output", str(tmp_path / "out.html")],
    }[name]
    with space_for(10):
        assert cli.main([name, *arguments]) == 2
    assert last_line(capsys).endswith("cannot write: File too large")


@pytest.mark.long
def test_a_disk_with_room_for_one_checkpoint(config: Path, undisturbed: Path, tmp_path: Path) -> None:
    """A file system of its own, on which the second checkpoint does not fit beside the first."""
    if shutil.which("unshare") is None:
        pytest.skip("no program unshare")
    (tmp_path / "disk").mkdir()
    length = (undisturbed / "last.pt").stat().st_size // 1024
    script = IN_TMPFS.format(
        size=length + 300, folder=tmp_path / "disk", python=sys.executable, config=config, kept=tmp_path / "kept"
    )
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode in (1, 77) and "error:" not in done.stderr:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()[-200:]}")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].endswith("cannot write: No space left on device")
    state = load_checkpoint(tmp_path / "kept/last.pt")
    assert state["epoch"] == 1
    assert not list((tmp_path / "kept").glob(".*.writing"))
    assert train_again(config, tmp_path / "kept") == 0
    check_same(tmp_path / "kept", undisturbed)


# ---- a clock that jumps


@pytest.mark.parametrize("day", [86_400.0, -86_400.0])
def test_a_clock_that_jumps(day: float, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By a day at each look at it: what takes time is measured by another one."""
    looks, now = itertools.count(1), time.time()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: now + day * next(looks))
        patch.setattr("tqdm.std.time", time.time)
        patch.setattr(environment, "_now", lambda: datetime.fromtimestamp(time.time(), timezone.utc))
        arguments = [str(config), "--output", str(tmp_path / "run"), "--set", "train.max_minutes=30"]
        assert cli.train(arguments) == 0
    output = capsys.readouterr()
    assert "ended early" not in output.out
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 4
    (entry,) = json.loads((tmp_path / "run/environment.json").read_text())
    assert 0 <= entry["minutes"] < 30
    elapsed = re.findall(r"epoch ./2:.*?\[(.*?)<", output.err)
    assert elapsed
    assert all(re.fullmatch(r"\d\d:\d\d", text) for text in elapsed), "minutes and seconds, no hours"
