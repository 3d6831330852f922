"""What stands in the written pages runs: commands and Python on tiny settings, and the example of a new detector."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from detkit import cli
from detkit.config import dump_config, load_config
from detkit.engine.settings import RunConfig
from tests import docs

pytestmark = pytest.mark.long

TINY = (
    "data.num_train=4",
    "data.num_val=3",
    "train.batch_size=4",
    "train.epochs=1",
    "train.eval_every=100",
    "train.warmup.iterations=1",
    "loader.workers=0",
    "device=cpu",
)
SMALL_INPUT = {
    "faster_rcnn": ("model.input.resize.size=64", "model.roi.batch_size_per_image=16"),
    "fast_rcnn": ("model.input.resize.size=64", "model.roi.batch_size_per_image=16"),
    "yolov3": ("model.input.resize.size=64",),
}
# Data, weights or machines we lack here; what `detkit init` writes is run by tests/engine/test_init_config.py.
ELSEWHERE = re.compile(
    "ROOT|RUN|torchrun|torchvision:|detr:|detectron2:|hf:|yolox:|darknet:|[.]cfg|(my|tuned)[.]yaml|runs/my|my[.]onnx|exported|runs/ssd|coco/|comp4"
    "|camera:|better[.]yaml"
)


PAGES = [
    "README.md",
    "docs/use.md",
    "docs/predict.md",
    "docs/evaluation.md",
    "docs/results.md",
    "docs/report.md",
    "docs/doctor.md",
]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what the pages speak of: configurations, made tiny, a run, and pictures and a film of one's own."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "configs").mkdir()
    for name, settings in SMALL_INPUT.items():
        config = load_config(docs.ROOT / f"configs/{name}.yaml", RunConfig, [*TINY, *settings])
        (folder / f"configs/{name}.yaml").write_text(dump_config(config), encoding="utf-8")
    (folder / "photos").mkdir()
    picture = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    for file in ("photo.jpg", "photos/one.jpg"):
        cv2.imwrite(str(folder / file), picture)
    truth = {
        "images": [{"id": 1, "file_name": "one.jpg", "width": 64, "height": 48}],
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 4, 20, 20], "area": 400, "iscrowd": 0}],
    }
    for file in ("instances.json", "instances_val2017.json"):
        (folder / file).write_text(json.dumps(truth), encoding="utf-8")
    results = [{"image_id": 1, "category_id": 1, "bbox": [5, 4, 20, 20], "score": 0.9}]
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    (folder / "list.txt").write_text("photos/one.jpg\n", encoding="utf-8")
    film = cv2.VideoWriter(str(folder / "film.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 25, (64, 48))
    film.write(picture)
    film.release()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.train(["configs/faster_rcnn.yaml"]) == 0
        yield folder


def runnable(command: str, workplace: Path) -> bool:
    files = re.findall(r"\bconfigs/\S+", command)
    return (
        command.startswith(("python tools/", "python -m detkit ", "detkit "))
        and len(command.split()) > 2
        and not ELSEWHERE.search(command)
        and all((workplace / file).exists() for file in files)
    )


@pytest.mark.parametrize("page", PAGES)
def test_commands_run(page: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the page."""
    commands = [command for command in docs.commands(docs.ROOT / page) if runnable(command, workplace)]
    assert commands
    for command in commands:
        assert docs.run(docs.split(command), monkeypatch) == 0, command


@pytest.mark.parametrize("page", ["README.md", "docs/use.md"])
def test_python_runs(page: str, workplace: Path) -> None:
    """The last block of `docs/use.md` is run by `tests/engine/test_python.py`."""
    blocks = [block for block in docs.blocks(docs.ROOT / page, "python") if "class Backbone" not in block]
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), {"__name__": "example"})


def test_the_worked_example_of_a_new_detector(tmp_path: Path) -> None:
    """`docs/new_detector.diff` applies to a copy, and the detector trains, detects and learns there."""
    for name in ("detkit", "configs", "tests"):
        # The files of compiled kernels come along; others of `__pycache__` may vanish, as tests beside write them.
        shutil.copytree(docs.ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.pyc*", "*.tmp.*"))
    shutil.copy(docs.ROOT / "pyproject.toml", tmp_path)
    subprocess.run(["git", "apply", docs.ROOT / "docs/new_detector.diff"], cwd=tmp_path, check=True)
    tests = ["tests/detectors/test_dense_box.py", "tests/detectors/test_contract.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "dense_box", *tests],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
