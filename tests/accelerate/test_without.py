"""Without the folder `detkit/accelerate` everything works and gives the same."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import importlib.util, json, sys
from pathlib import Path

# An editable installation would offer the folder that is missing.
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__name__", "").lower()]
from detkit.engine.speed import prepare_process
prepare_process()
import detkit, torch
from detkit.engine.evaluate import evaluate_source
from detkit.engine.prediction.run import predict_files
from detkit.engine.prediction.settings import PredictionConfig
from detkit.engine.train import train_config
from detkit.ops.iou import box_iou
from detkit.ops.nms import nms
from tests.engine.settings import SEPARABLE, make_config, write_pictures

if importlib.util.find_spec("detkit.accelerate"):
    from detkit.accelerate import processor
    processor.has_avx2_alone = lambda: True  # every fast path that there is
    processor.is_amd_with_avx512 = lambda: True
folder = Path(sys.argv[1])
(folder / "run").mkdir()
changes = ("eval.coco_backend=fast", "model.neck.out_channels=32")
config = make_config(write_pictures(folder / "data", 6), *SEPARABLE, *changes)
train_config(config, folder / "run")
evaluation, _ = evaluate_source(folder / "run", ["voc07", "coco"])
pictures = [folder / "data/VOC2007/JPEGImages"]
predict_files(folder / "run", pictures, folder / "drawn", PredictionConfig(score_threshold=0), device="cpu")
detections = json.loads((folder / "drawn/detections.json").read_text())
boxes = torch.arange(40.0).view(-1, 4).cumsum(1)
print(json.dumps({
    "accelerated": "detkit.accelerate" in sys.modules,
    "package": detkit.__file__,
    "metrics": {name: result.metrics for name, result in evaluation.results.items()},
    "scores": [found["score"] for picture in detections for found in picture["detections"][:5]],
    "iou": box_iou(boxes, boxes).tolist(),
    "kept": nms(boxes, boxes[:, 0], 0.3).tolist(),
}))
"""


def run(package: Path, folder: Path) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """What the program prints, and the losses of the steps, with the package in the folder `package`."""
    folder.mkdir()
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(folder)]
    printed = subprocess.run(command, cwd=package, check=True, capture_output=True, text=True).stdout
    lines = (folder / "run/metrics.jsonl").read_text().splitlines()
    return json.loads(printed.splitlines()[-1]), [json.loads(line) for line in lines]


def test_everything_is_the_same_without_the_folder(tmp_path: Path) -> None:
    without = tmp_path / "without"
    for name in ("detkit", "tests"):
        shutil.copytree(ROOT / name, without / name, ignore=shutil.ignore_patterns("__pycache__", "accelerate"))
    (plain, plain_steps), (fast, fast_steps) = run(without, tmp_path / "plain"), run(ROOT, tmp_path / "fast")
    assert (plain.pop("accelerated"), fast.pop("accelerated")) == (False, True)
    assert plain.pop("package") != fast.pop("package")
    assert len(plain_steps) == len(fast_steps) > 0
    for plain_step, fast_step in zip(plain_steps, fast_steps, strict=True):
        assert plain_step.keys() == fast_step.keys()
        for key, value in plain_step.items():
            if key not in ("kind", "time", "seconds"):
                assert fast_step[key] == pytest.approx(value, rel=1e-3, abs=1e-3), key
    for protocol, metrics in plain["metrics"].items():
        assert fast["metrics"][protocol] == pytest.approx(metrics, abs=0.02, nan_ok=True)
    assert fast["scores"] == pytest.approx(plain["scores"], abs=1e-3)
    assert fast["kept"] == plain["kept"]
    np.testing.assert_allclose(fast["iou"], plain["iou"], atol=1e-6)
