"""Mask R-CNN and Keypoint R-CNN as ONNX files: the smallest that there can be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from detkit.config import parse_config
from detkit.detectors.build import build_detector
from detkit.detectors.faster_rcnn import TwoStageConfig
from detkit.detectors.keypoint_rcnn import KeypointRCNNConfig
from detkit.detectors.mask_rcnn import MaskRCNNConfig
from detkit.engine.predict import predict
from detkit.export.program import Form
from detkit.export.runtime import load_exported
from detkit.structures import Categories, KeypointCategories
from tests.detectors.batches import enliven
from tests.export.detectors import assert_same_predictions, random_pictures, write_exported

SMALL: dict[str, Any] = {
    "backbone": {"name": "lenet5", "strides": [2, 4]},
    "neck": {"name": "fpn", "out_channels": 8, "extra_level": "none"},
    "rpn": {"anchors": {"sizes": [[16], [32]]}, "pre_nms_top_k_test": 30, "post_nms_top_k_test": 20},
    "roi": {"hidden": [32], "output_size": 3, "selection": {"score_threshold": 0.2, "max_detections": 10}},
    "input": {"resize": {"name": "stretch", "size": 64}},
}
CATEGORIES = replace(Categories.of_names(["red", "green"]), keypoints=KeypointCategories(("first", "last")))


@pytest.mark.long
@pytest.mark.parametrize(
    ("config", "branch"),
    [
        (MaskRCNNConfig, {"mask": {"channels": [8], "deconv_channels": 8, "output_size": 4}}),
        (KeypointRCNNConfig, {"keypoint": {"channels": [8], "output_size": 4}}),
    ],
)
def test_masks_and_keypoints_as_an_onnx_file(
    config: type[TwoStageConfig], branch: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    detector: Any = build_detector(parse_config({**SMALL, **branch}, config), CATEGORIES)
    enliven(detector)
    for name, parameter in detector.named_parameters():
        if "deltas" in name or "regressor" in name:  # random ones would make every box as large as the picture
            parameter.data.mul_(0.05)
    pictures = random_pictures((50, 70), (90, 40))
    assert min(map(len, predict(detector.eval(), pictures))) > 2
    form = Form(batch=1 if "keypoint" in branch else None)  # any number of pictures takes twice as long to export
    assert_same_predictions(load_exported(write_exported(detector, tmp_path / "model.onnx", form)), detector, pictures)
