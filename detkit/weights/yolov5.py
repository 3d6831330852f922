"""YOLOv5's checkpoints (Jocher et al., release 6.0 and later), as tensors under public names -> detkit's YOLOv5.

The names are those of ONNX files and state dicts; no code of that package was read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from detkit.config import UserError
from detkit.detectors.yolov5 import YOLOv5, YOLOv5Config, build_yolov5
from detkit.nn.backbones.csp_darknet import CSPDarknetConfig, scaled_depth
from detkit.nn.necks.pan import PANConfig
from detkit.weights.class_names import categories_of_count
from detkit.weights.files import Change, load_into, read_state, unchanged
from detkit.weights.numbered_layers import anchors_of, by_layer, num_classes_of, required_file

SIZES = {  # depth and width
    "yolov5n": (1 / 3, 0.25),
    "yolov5s": (1 / 3, 0.5),
    "yolov5m": (2 / 3, 0.75),
    "yolov5l": (1.0, 1.0),
    "yolov5x": (4 / 3, 1.25),
}
LAYERS = {
    0: "backbone.stem",
    **{2 * stage - 1: f"backbone.stage{stage}.0" for stage in range(1, 5)},
    **{2 * stage: f"backbone.stage{stage}.1" for stage in range(1, 5)},
    9: "backbone.stage4.2",
    10: "neck.lateral.0",
    13: "neck.top_down.0",
    14: "neck.lateral.1",
    17: "neck.top_down.1",
    18: "neck.down.0",
    20: "neck.bottom_up.0",
    21: "neck.down.1",
    23: "neck.bottom_up.1",
}
POOLS, LAST = 9, 24  # layers
PARTS = [  # pattern of a part of a key, converted; applied one after the other
    (r"^m\.(\d+)\.cv1\.", r"blocks.\1.reduce."),
    (r"^m\.(\d+)\.cv2\.", r"blocks.\1.expand."),
    (r"^cv1\.", "main."),
    (r"^cv2\.", "side."),
    (r"^cv3\.", "merge."),
    (r"(^|\.)bn\.", r"\1norm."),
]
PARTS_OF_POOLS = [(r"^cv1\.", "reduce."), (r"^cv2\.", "merge."), (r"(^|\.)bn\.", r"\1norm.")]


def yolov5_config(name: str) -> YOLOv5Config:
    """The configuration of a published size."""
    depth, width = SIZES[name]
    return YOLOv5Config(
        backbone=CSPDarknetConfig(form="yolov5", depth=depth, width=width),
        neck=PANConfig(blocks=scaled_depth(3, depth)),
    )


def convert_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of YOLOv5's authors with detkit's keys; anchors are left out.

    Raises UserError for one that is of another network, or whose batch norms are folded into the convolutions.
    """
    layers = by_layer(state, "YOLOv5")
    if "conv.conv.weight" in layers.get(0, {}):
        raise UserError("a YOLOv5 of release 5.0 or before, which begins with Focus; expected release 6.0 or later")
    if "m.0.weight" not in layers.get(LAST, {}) or not layers.keys() <= {*LAYERS, LAST}:
        raise UserError(
            f"not the keys of a YOLOv5 with three levels: expected predictions in layer {LAST}, as {LAST}.m.0.weight, "
            f"found layers 0 to {max(layers)}"
        )
    converted = {}
    for number, tensors in layers.items():
        for key, tensor in tensors.items():
            if number != LAST:
                converted[f"{LAYERS[number]}.{_part(key, number)}"] = tensor
            elif key.startswith("m."):
                converted[f"head.predict.{key.removeprefix('m.')}"] = tensor
    return converted


def _part(key: str, layer: int) -> str:
    for pattern, name in PARTS_OF_POOLS if layer == POOLS else PARTS:
        key = re.sub(pattern, name, key)
    return key


def load_yolov5(name: str, file: Path | None = None, change: Change = unchanged) -> YOLOv5:
    """A YOLOv5 of a published size, such as yolov5s, from its tensors in `file`, in evaluation mode.

    Anchors are those of the file, and so is the number of classes: 80 are COCO's, others are called "class 0" and so
    on, as it has no names. Raises UserError if the file is another one, or a pickled class.
    """
    if name not in SIZES:
        raise UserError(f"yolov5:{name}: not known; known: {', '.join(SIZES)}")
    file = required_file(file, f"yolov5:{name}")
    state = read_state(file, "YOLOv5")
    try:
        converted, anchors = convert_keys(state), anchors_of(state)
        count = num_classes_of(converted["head.predict.0.weight"], anchors)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    config = yolov5_config(name)
    config = config.model_copy(update={"head": config.head.model_copy(update={"anchors": anchors})})
    detector = build_yolov5(change(config), categories_of_count(count))
    load_into(detector, converted, file, name)
    return detector.eval()
