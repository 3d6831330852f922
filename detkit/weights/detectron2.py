"""Detectron2's checkpoints: the pickles of its model zoo, and the `.pth` files that it trains.

https://github.com/facebookresearch/detectron2/blob/main/MODEL_ZOO.md has R-CNNs on a pyramid and RetinaNet. Which
detector a file belongs to is read from its names, and the number of classes from its shapes. What is not in a file is
taken to be as in the zoo: pixels of 0-255 in BGR, and the stride of a bottleneck in its 1x1 convolution.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from detkit.config import UserError
from detkit.detectors.build import build_detector
from detkit.detectors.cascade_rcnn import CascadeRCNNConfig
from detkit.detectors.detector import AnyDetector
from detkit.detectors.faster_rcnn import FasterRCNNConfig, TwoStageConfig
from detkit.detectors.keypoint_rcnn import KeypointRCNNConfig
from detkit.detectors.mask_rcnn import MaskRCNNConfig
from detkit.detectors.retinanet import RetinaNetConfig
from detkit.nn.anchors import AnchorConfig
from detkit.nn.backbones.resnet import ResNetConfig
from detkit.nn.heads.cascade import CascadeConfig
from detkit.nn.heads.dense import DenseSelectionConfig
from detkit.nn.heads.keypoint import KeypointConfig
from detkit.nn.heads.mask import MaskConfig
from detkit.nn.heads.retinanet import RetinaNetAnchorConfig, RetinaNetHeadConfig
from detkit.nn.heads.roi import RoIConfig
from detkit.nn.heads.rpn import RPNConfig
from detkit.nn.input import InputConfig, ShortSideConfig
from detkit.nn.necks.fpn import DenseFPNConfig
from detkit.pickles import read_pickle
from detkit.structures import Categories
from detkit.weights.class_names import coco_categories, read_names
from detkit.weights.coco_keypoints import COCO_KEYPOINTS
from detkit.weights.files import Change, read_state, unchanged

Config = TwoStageConfig | RetinaNetConfig
Kind = Literal["Faster R-CNN", "Mask R-CNN", "Keypoint R-CNN", "Cascade R-CNN", "RetinaNet"]

INPUT = InputConfig(
    resize=ShortSideConfig(size=800, max_size=1333, train_sizes=tuple(range(640, 801, 32))),
    mean=(103.53, 116.28, 123.675),
    std=(1.0, 1.0, 1.0),
    channel_order="bgr",
)
_ALIGN: dict[str, Any] = {"sampling_ratio": 0, "aligned": True}  # its RoIAlign
_MASK, _KEYPOINT = MaskConfig(**_ALIGN, target="binary"), KeypointConfig(**_ALIGN)
_BOTTOM_UP = r"backbone\.bottom_up\."
_PARTS = r"(?=weight|bias|running_mean|running_var)"

# Detectron2's names -> detkit's, tried in order; a number between <> is counted from another start
KEYS = [
    (rf"{_BOTTOM_UP}stem\.conv1\.norm\.", "backbone.bn1."),
    (rf"{_BOTTOM_UP}stem\.conv1\.(?=weight)", "backbone.conv1."),
    (rf"{_BOTTOM_UP}res(\d)\.(\d+)\.shortcut\.norm\.", r"backbone.layer<\1-1>.\2.downsample.1."),
    (rf"{_BOTTOM_UP}res(\d)\.(\d+)\.shortcut\.(?=weight)", r"backbone.layer<\1-1>.\2.downsample.0."),
    (rf"{_BOTTOM_UP}res(\d)\.(\d+)\.conv(\d)\.norm\.", r"backbone.layer<\1-1>.\2.bn\3."),
    (rf"{_BOTTOM_UP}res(\d)\.(\d+)\.conv(\d)\.(?=weight)", r"backbone.layer<\1-1>.\2.conv\3."),
    (r"backbone\.top_block\.p(\d)\.", r"neck.extra.<\1-6>."),
    (r"proposal_generator\.rpn_head\.conv\.", "rpn.conv."),
    (r"proposal_generator\.rpn_head\.objectness_logits\.", "rpn.objectness."),
    (r"proposal_generator\.rpn_head\.anchor_deltas\.", "rpn.deltas."),
    # one box head, or one of each stage
    (r"roi_heads\.box_head\.fc(\d)\.", r"roi.hidden.<\1-1>."),
    (r"roi_heads\.box_head\.(\d)\.fc(\d)\.", r"roi.stages.\1.hidden.<\2-1>."),
    (r"roi_heads\.box_predictor\.cls_score\.", "roi.classifier."),
    (r"roi_heads\.box_predictor\.bbox_pred\.", "roi.regressor."),
    (r"roi_heads\.box_predictor\.(\d)\.cls_score\.", r"roi.stages.\1.classifier."),
    (r"roi_heads\.box_predictor\.(\d)\.bbox_pred\.", r"roi.stages.\1.regressor."),
    (r"roi_heads\.mask_head\.deconv\.", "branches.mask.deconv."),
    (r"roi_heads\.mask_head\.predictor\.", "branches.mask.classifier."),
    (r"roi_heads\.keypoint_head\.score_lowres\.", "branches.keypoint.deconv."),
    *((rf"roi_heads\.mask_head\.mask_fcn{i + 1}\.{_PARTS}", f"branches.mask.layers.{2 * i}.") for i in range(4)),
    *((rf"roi_heads\.keypoint_head\.conv_fcn{i + 1}\.", f"branches.keypoint.layers.{2 * i}.") for i in range(8)),
    *(
        (rf"head\.{source}\.{2 * i}\.", f"head.{tower}.{i}.0.")
        for source, tower in (("cls_subnet", "class_tower"), ("bbox_subnet", "box_tower"))
        for i in range(4)
    ),
    (r"head\.cls_score\.", "head.classifier."),
    (r"head\.bbox_pred\.", "head.regressor."),
]
LEFT_OUT = re.compile(r"pixel_(mean|std)$|(proposal_generator\.)?anchor_generator\.cell_anchors\.\d+$")
SIZES, RATIOS = 3, 3  # of the anchors of a cell of RetinaNet


def convert_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A Detectron2 state dict under detkit's names, its rows in detkit's order. Raises UserError for other names."""
    first_level = 3 if _is_retinanet(state) else 2
    levels = [
        (rf"backbone\.fpn_{layer}(\d)\.", rf"neck.{layer}.<\1-{first_level}>.") for layer in ("lateral", "output")
    ]
    converted = {}
    for key, tensor in state.items():
        if LEFT_OUT.match(key):
            continue
        name = next(
            (re.sub(f"^{source}", target, key) for source, target in [*levels, *KEYS] if re.match(source, key)), None
        )
        if name is None:
            raise UserError(f"{key!r} is no key of a Detectron2 detector that detkit converts: R-CNNs on a pyramid")
        converted[re.sub(r"<(\d)-(\d)>", lambda match: str(int(match[1]) - int(match[2])), name)] = tensor
    return _rows_in_order(converted)


def _rows_in_order(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Background comes first and not last, and has a box of its own, which nothing reads; anchors of one ratio stand
    together, not those of one size."""
    changes: dict[str, Callable[[Tensor], Tensor]] = {}
    for part in ("weight", "bias"):
        changes[rf"roi\.(stages\.\d\.)?classifier\.{part}"] = lambda rows: rows.roll(1, 0)
        changes[rf"roi\.regressor\.{part}"] = lambda rows: torch.cat([torch.zeros_like(rows[:4]), rows])
        changes[rf"head\.(classifier|regressor)\.{part}"] = _by_ratio
    for name, tensor in state.items():
        for pattern, change in changes.items():
            if re.fullmatch(pattern, name):
                state[name] = change(tensor)
    return state


def _by_ratio(rows: Tensor) -> Tensor:
    if len(rows) % (SIZES * RATIOS):
        raise UserError(f"a RetinaNet with {SIZES * RATIOS} anchors in a cell was expected, found {len(rows)} outputs")
    return rows.view(SIZES, RATIOS, -1, *rows.shape[1:]).transpose(0, 1).flatten(0, 2)


def _is_retinanet(state: Mapping[str, Tensor]) -> bool:
    return any(key.startswith("head.cls_subnet.") for key in state)


def config_of(state: Mapping[str, Tensor]) -> Config:
    """The detector that a state dict with Detectron2's names belongs to, as its model zoo trains it."""
    depth = sum(re.fullmatch(rf"{_BOTTOM_UP}res4\.\d+\.conv1\.weight", key) is not None for key in state)
    if depth not in (6, 23):
        raise UserError(f"expected a ResNet of 50 or 101 layers, whose C4 has 6 or 23 blocks, found {depth}")
    backbone: dict[str, Any] = {"name": "resnet50" if depth == 6 else "resnet101", "stride_in_1x1": True}
    if _is_retinanet(state):
        anchors = RetinaNetAnchorConfig(rounding="none", spacing="stride")
        selection = DenseSelectionConfig(max_detections=100)
        return RetinaNetConfig(
            backbone=ResNetConfig(**backbone, strides=(8, 16, 32)),
            neck=DenseFPNConfig(extra_level="conv_c5"),
            head=RetinaNetHeadConfig(anchors=anchors, selection=selection),
            input=INPUT,
        )
    return _two_stage(state, ResNetConfig(**backbone))


def _two_stage(state: Mapping[str, Tensor], backbone: ResNetConfig) -> TwoStageConfig:
    masks, keypoints, stages = (
        any(key.startswith(f"roi_heads.{part}.") for key in state)
        for part in ("mask_head", "keypoint_head", "box_predictor.0")
    )
    rpn = partial(RPNConfig, anchors=AnchorConfig(rounding="none", spacing="stride"), smooth_l1_beta=0.0)
    shared: dict[str, Any] = {"backbone": backbone, "input": INPUT}
    if stages:
        mask = _MASK if masks else None
        return CascadeRCNNConfig(**shared, rpn=rpn(), roi=CascadeConfig(), mask=mask)
    if keypoints:
        roi = RoIConfig(**_ALIGN, smooth_l1_beta=0.5)
        return KeypointRCNNConfig(**shared, rpn=rpn(post_nms_top_k_train=1500), roi=roi, keypoint=_KEYPOINT)
    shared |= {"rpn": rpn(post_nms_top_k_train=1000), "roi": RoIConfig(**_ALIGN, smooth_l1_beta=0.0)}
    return MaskRCNNConfig(**shared, mask=_MASK) if masks else FasterRCNNConfig(**shared)


def load_detectron2(source: str, change: Change = unchanged) -> AnyDetector:
    """A detector of Detectron2 by `FILE` or `FILE:NAMES`, in evaluation mode.

    FILE   a `.pkl` of the model zoo, or a `.pth` of Detectron2
    NAMES  a text file with the names of the classes, one a line, where they are not COCO's
    """
    path, _, names = source.partition(":")
    file = Path(path)
    if not path:
        raise UserError("detectron2:: expected detectron2:FILE or detectron2:FILE:NAMES, a .pkl of its model zoo")
    state = _state_in(file)
    try:
        config, converted = config_of(state), convert_keys(state)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    categories = _categories(file, config, converted, Path(names) if names else None)
    detector = build_detector(change(config), categories)
    try:
        detector.load_state_dict(converted)
    except RuntimeError as error:
        raise UserError(f"{file}: not the weights of Detectron2's: {str(error).splitlines()[1].strip()}") from error
    return detector.eval()


def _state_in(file: Path) -> dict[str, Tensor]:
    if file.suffix != ".pkl":
        return read_state(file, "Detectron2")
    content = read_pickle(file)
    arrays = content.get("model") if isinstance(content, dict) else None
    if not isinstance(arrays, dict) or not all(
        isinstance(key, str) and isinstance(array, np.ndarray) for key, array in arrays.items()
    ):
        raise UserError(f"{file}: not a model of Detectron2: expected arrays by name under 'model'")
    return {key: torch.from_numpy(array.astype(array.dtype.newbyteorder("="))) for key, array in arrays.items()}


def _categories(file: Path, config: Config, state: Mapping[str, Tensor], names: Path | None) -> Categories:
    if isinstance(config, RetinaNetConfig):
        count = len(state.get("head.classifier.bias", ())) // (SIZES * RATIOS)
    else:
        layer = "roi.stages.0.classifier" if isinstance(config, CascadeRCNNConfig) else "roi.classifier"
        count = len(state.get(f"{layer}.bias", ())) - 1
    if count < 1:
        raise UserError(f"{file}: not a model of Detectron2: it has no classifier")
    if names:
        categories = Categories.of_names(read_names(names, count))
    elif count == len(coco := coco_categories()):
        categories = coco
    elif isinstance(config, KeypointRCNNConfig) and count == 1:
        categories = Categories.of_names(("person",))
    else:
        raise UserError(
            f"{file}: the names of its {count} classes are not known; name a file with one a line: "
            f"detectron2:{file}:NAMES"
        )
    return replace(categories, keypoints=COCO_KEYPOINTS) if isinstance(config, KeypointRCNNConfig) else categories
