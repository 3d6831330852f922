"""YOLOX's public checkpoints (Megvii-BaseDetection/YOLOX, Apache-2.0) -> detkit's YOLOX."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from detkit.config import UserError
from detkit.detectors.yolox import YOLOX, YOLOXConfig, build_yolox
from detkit.nn.backbones.csp_darknet import CSPDarknetConfig, scaled_depth
from detkit.nn.backbones.staged import download
from detkit.nn.heads.yolox import YOLOXHeadConfig
from detkit.nn.input import LetterboxConfig
from detkit.nn.necks.pan import PANConfig
from detkit.weights.class_names import categories_of_count
from detkit.weights.files import Change, load_into, read_state, unchanged

URL = "https://github.com/Megvii-BaseDetection/YOLOX/releases/download/0.1.1rc0/"
SIZES = {  # depth, width, whether depthwise, and the side of the input in px
    "yolox_nano": (1 / 3, 0.25, True, 416),
    "yolox_tiny": (1 / 3, 0.375, False, 416),
    "yolox_s": (1 / 3, 0.5, False, 640),
    "yolox_m": (2 / 3, 0.75, False, 640),
    "yolox_l": (1.0, 1.0, False, 640),
    "yolox_x": (4 / 3, 1.25, False, 640),
}
KEYS = [  # pattern of a part of a key, converted; applied one after the other
    (r"^backbone\.backbone\.stem\.conv\.", "backbone.stem.conv."),
    *((rf"^backbone\.backbone\.dark{stage + 1}\.", f"backbone.stage{stage}.") for stage in range(1, 5)),
    (r"^backbone\.lateral_conv0\.", "neck.lateral.0."),
    (r"^backbone\.reduce_conv1\.", "neck.lateral.1."),
    (r"^backbone\.C3_p4\.", "neck.top_down.0."),
    (r"^backbone\.C3_p3\.", "neck.top_down.1."),
    (r"^backbone\.bu_conv2\.", "neck.down.0."),
    (r"^backbone\.bu_conv1\.", "neck.down.1."),
    (r"^backbone\.C3_n3\.", "neck.bottom_up.0."),
    (r"^backbone\.C3_n4\.", "neck.bottom_up.1."),
    (r"^head\.cls_convs\.", "head.class_branch."),
    (r"^head\.reg_convs\.", "head.box_branch."),
    (r"^head\.cls_preds\.", "head.classifier."),
    (r"^head\.reg_preds\.", "head.regressor."),
    (r"^head\.obj_preds\.", "head.objectness."),
    (r"(stage4\.1)\.conv1\.", r"\1.reduce."),  # the pools
    (r"(stage4\.1)\.conv2\.", r"\1.merge."),
    (r"\.m\.(\d+)\.conv1\.", r".blocks.\1.reduce."),
    (r"\.m\.(\d+)\.conv2\.", r".blocks.\1.expand."),
    (r"\.conv1\.", ".main."),
    (r"\.conv2\.", ".side."),
    (r"\.conv3\.", ".merge."),
    (r"\.dconv\.", ".0."),  # depthwise
    (r"\.pconv\.", ".1."),
    (r"\.bn\.", ".norm."),
]


def yolox_config(name: str) -> YOLOXConfig:
    """The configuration of a published size."""
    depth, width, depthwise, size = SIZES[name]
    config = YOLOXConfig(
        backbone=CSPDarknetConfig(depth=depth, width=width, depthwise=depthwise),
        neck=PANConfig(blocks=scaled_depth(3, depth), depthwise=depthwise),
        head=YOLOXHeadConfig(channels=int(256 * width), depthwise=depthwise),
    )
    resize = LetterboxConfig(size=size, centred=False, fill=114)
    return config.model_copy(update={"input": config.input.model_copy(update={"resize": resize})})


def convert_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of YOLOX's authors with detkit's keys. Raises UserError for one that is of another network."""
    if "head.obj_preds.0.weight" not in state:
        raise UserError(f"not the keys of a YOLOX: expected head.obj_preds, found {', '.join(list(state)[:3])}, ...")
    converted = {}
    for key, tensor in state.items():
        for pattern, name in KEYS:
            key = re.sub(pattern, name, key)
        converted[key] = tensor
    return converted


def load_yolox(name: str, file: Path | None = None, change: Change = unchanged) -> YOLOX:
    """A public YOLOX by its name, such as yolox_s, in evaluation mode.

    The weights are downloaded once, or read from `file`: the same `.pth` fetched by other means, or one of the same
    size that was trained on other classes, which are then called "class 0" and so on, as it has no names.
    """
    if name not in SIZES:
        raise UserError(f"yolox:{name}: not known; known: {', '.join(SIZES)}")
    state = convert_keys(read_state(file, "YOLOX") if file else download(f"{URL}{name}.pth", name)["model"])
    categories = categories_of_count(len(state["head.classifier.0.bias"]))
    detector = build_yolox(change(yolox_config(name)), categories)
    load_into(detector, state, file or name, name)
    return detector.eval()
