"""torchvision's Faster R-CNN checkpoints, https://docs.pytorch.org/vision/stable/models.html#object-detection.

Their 91 outputs are background and the COCO ids 1-90, of which ten were never used: those classes are called "N/A" here
too and stay, because the softmax runs over all of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models import get_model_weights

from detkit.config import UserError
from detkit.detectors.build import build_detector
from detkit.detectors.detector import Detector
from detkit.detectors.faster_rcnn import FasterRCNNConfig
from detkit.nn.backbones.mobilenet import MobileNetV3Config
from detkit.nn.backbones.resnet import ResNetConfig
from detkit.nn.backbones.staged import download
from detkit.nn.heads.rpn import AnchorConfig, RPNConfig
from detkit.nn.input import InputConfig, ShortSideConfig

# the detectors as torchvision builds them; norm_eps 0: it overwrites the epsilon of COCO_V1's frozen batch norms
CONFIGS = {
    "fasterrcnn_resnet50_fpn": FasterRCNNConfig(backbone=ResNetConfig(norm_eps=0.0)),
    "fasterrcnn_mobilenet_v3_large_320_fpn": FasterRCNNConfig(
        backbone=MobileNetV3Config(),
        rpn=RPNConfig(
            anchors=AnchorConfig(sizes=((32, 64, 128, 256, 512),) * 3),
            pre_nms_top_k_test=150,
            post_nms_top_k_test=150,
            score_threshold=0.05,
        ),
        input=InputConfig(resize=ShortSideConfig(size=320, max_size=640)),
    ),
}

# torchvision's name -> ours, tried in order; an optional `.0` stands for the Sequential of newer versions
KEYS = [
    (r"backbone\.body\.", "backbone."),
    (r"backbone\.fpn\.inner_blocks\.(\d+)(\.0)?\.(?=weight|bias)", r"neck.lateral.\1."),
    (r"backbone\.fpn\.layer_blocks\.(\d+)(\.0)?\.(?=weight|bias)", r"neck.output.\1."),
    (r"rpn\.head\.conv(\.0\.0)?\.", "rpn.conv."),
    (r"rpn\.head\.cls_logits\.", "rpn.objectness."),
    (r"rpn\.head\.bbox_pred\.", "rpn.deltas."),
    (r"roi_heads\.box_head\.fc6\.", "roi.hidden.0."),
    (r"roi_heads\.box_head\.fc7\.", "roi.hidden.1."),
    (r"roi_heads\.box_predictor\.cls_score\.", "roi.classifier."),
    (r"roi_heads\.box_predictor\.bbox_pred\.", "roi.regressor."),
]


def convert_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A torchvision Faster R-CNN state dict under our names. Raises UserError for a key that is none of its."""
    converted = {}
    for key, tensor in state.items():
        ours = next((re.sub(f"^{theirs}", name, key) for theirs, name in KEYS if re.match(theirs, key)), None)
        if ours is None:
            raise UserError(f"{key!r} is no key of a torchvision Faster R-CNN; known models: {', '.join(CONFIGS)}")
        converted[ours] = tensor
    return converted


def load_torchvision(name: str, file: Path | None = None) -> Detector:
    """A public detector by its torchvision name, in evaluation mode, with the COCO_V1 weights.

    They are downloaded once and checked by hash, or read from `file`, the same `.pth` fetched by other means.
    """
    if name not in CONFIGS:
        raise UserError(f"torchvision:{name}: not known; known: {', '.join(CONFIGS)}")
    public = get_model_weights(name)["COCO_V1"]
    detector = build_detector(CONFIGS[name], public.meta["categories"][1:])
    state = _read(file) if file else download(public)
    try:
        detector.load_state_dict(convert_keys(state))
    except RuntimeError as error:
        raise UserError(f"{file}: not the weights of {name}: {str(error).splitlines()[1].strip()}") from error
    return detector.eval()


def _read(file: Path) -> Any:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{file}: cannot read this checkpoint: {error.strerror or error}") from error
    except Exception as error:  # the unpickler lets through whatever a garbled file makes it stumble over
        raise UserError(
            f"{file}: not a torchvision checkpoint: the file is no archive of tensors, or is cut short"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{file}: not a torchvision checkpoint: expected a dict of tensors")
    return state
