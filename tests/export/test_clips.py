"""Detectors of clips as files: they take clips, and give tubelets where the detector does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from detkit.config import UserError, parse_config
from detkit.detectors.build import build_detector
from detkit.engine.checkpoint import save_checkpoint
from detkit.engine.predict import predict
from detkit.engine.run import detector_state
from detkit.engine.settings import RunConfig
from detkit.engine.sources import load_detector
from detkit.export.export import ExportOptions, export_source
from detkit.export.program import Form
from detkit.structures import Categories
from tests.detectors.batches import make_batch
from tests.export.test_export_report import weights as random_weights

MODELS: dict[str, dict[str, Any]] = {
    "c3d": {
        "name": "faster_rcnn",
        "backbone": {"name": "c3d", "width": 0.125, "norm": "bn", "strides": [8], "frames": 8},
        "neck": None,
        "rpn": {"anchors": {"sizes": [[24]]}, "post_nms_top_k_test": 20},
        "roi": {"hidden": [32]},
        "input": {"resize": {"name": "short_side", "size": 64, "max_size": 128}},
    },
    "act": {
        "name": "act",
        "frames": 3,
        "backbone": {"name": "resnet18", "weights": None, "norm": "bn", "frozen_stages": 0, "strides": [8]},
        "neck": None,
        "head": {
            "priors": {"min_sizes": [20], "max_sizes": [28], "ratios": [[]], "steps": None},
            "selection": {"top_k_per_class": 20, "max_detections": 30},
        },
        "input": {"resize": {"name": "stretch", "size": 64}},
    },
}


def write_run(name: str, folder: Path) -> Path:
    torch.manual_seed(0)
    data = {"name": "moving_shapes", "root": str(folder / "shapes"), "num_train": 1, "num_val": 1}
    train = {"epochs": 1, "batch_size": 1, "optimizer": {"name": "sgd", "lr": 0.1}}
    settings = parse_config({"model": MODELS[name], "data": data, "train": train, "augment": []}, RunConfig)
    detector = build_detector(settings.model, Categories.of_names([f"class {i}" for i in range(8)]))
    random_weights.spread(detector, make_batch(detector, [3, 2], targets=False))
    save_checkpoint(folder / "model.pt", detector_state(settings, detector))
    return folder / "model.pt"


@pytest.mark.long
@pytest.mark.parametrize("name", list(MODELS))
def test_a_file_of_clips_does_what_the_detector_does(name: str, tmp_path: Path) -> None:
    source, file = write_run(name, tmp_path), tmp_path / "model.onnx"
    report = export_source(source, file, ExportOptions(Form(), num_pictures=3))
    assert not report.problems
    assert report.matches is not None
    assert report.matches.torch >= 1
    (images, *_) = onnx.load(file).graph.input
    frames = {"c3d": 8, "act": 3}[name]
    sides = [side.dim_value or side.dim_param for side in images.type.tensor_type.shape.dim]
    assert sides[:3] == ["batch", 3, frames]
    detector, _ = load_detector(source)
    exported, _ = load_detector(file)
    assert exported.input.clip is not None
    assert detector.input.clip is not None
    assert replace(exported.input.clip, tubes=detector.input.clip.tubes) == detector.input.clip
    clip = np.random.default_rng(0).integers(0, 256, (frames, 120, 160, 3)).astype(np.uint8)
    (expected,), (actual,) = predict(detector, [clip]), predict(exported, [clip])
    assert len(actual) == len(expected) > 0
    torch.testing.assert_close(actual.scores, expected.scores, rtol=0, atol=1e-4)
    assert (actual.objects.tubes is not None) == (name == "act")
    if actual.objects.tubes is not None and expected.objects.tubes is not None:
        torch.testing.assert_close(actual.objects.tubes[:3], expected.objects.tubes[:3], rtol=0, atol=1e-2)
        torch.testing.assert_close(actual.objects.tubes[:, 0], actual.boxes)


def test_a_file_does_not_resize_clips(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--input resize: this detector takes clips"):
        export_source(write_run("act", tmp_path), tmp_path / "model.onnx", ExportOptions(Form(pictures="resize")))
