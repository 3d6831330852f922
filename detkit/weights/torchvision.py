"""torchvision's checkpoints of detectors, https://docs.pytorch.org/vision/stable/models.html#object-detection.

Their 91 outputs are background and the COCO ids 1-90, of which ten were never used: those classes stay, under the name
"N/A" as in torchvision, because the softmax runs over all of them. RetinaNet, FCOS and the masks of Mask R-CNN have no
softmax: their first output, background, was never a target and is left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from detkit.config import UserError
from detkit.detectors.build import build_detector
from detkit.detectors.detector import AnyDetector
from detkit.detectors.faster_rcnn import FasterRCNNConfig, TwoStageConfig
from detkit.detectors.fcos import FCOSConfig
from detkit.detectors.keypoint_rcnn import KeypointRCNNConfig
from detkit.detectors.mask_rcnn import MaskRCNNConfig
from detkit.detectors.retinanet import RetinaNetConfig
from detkit.detectors.ssd import SSDConfig, SSDInputConfig
from detkit.nn.anchors import AnchorConfig, PriorConfig
from detkit.nn.backbones.mobilenet import MobileNetV3Config, SSDLiteMobileNetConfig
from detkit.nn.backbones.resnet import ResNetConfig
from detkit.nn.backbones.staged import download, public_weights
from detkit.nn.heads.dense import TowerConfig
from detkit.nn.heads.mask import MaskConfig
from detkit.nn.heads.retinanet import RetinaNetHeadConfig
from detkit.nn.heads.roi import RoIConfig
from detkit.nn.heads.rpn import RPNConfig
from detkit.nn.heads.ssd import SSDHeadConfig, SSDSelectionConfig
from detkit.nn.input import InputConfig, ShortSideConfig, StretchConfig
from detkit.nn.necks.extra_levels import ExtraLevelsConfig
from detkit.nn.necks.fpn import DenseFPNConfig, FPNConfig
from detkit.structures import Categories
from detkit.weights.coco_keypoints import COCO_KEYPOINTS
from detkit.weights.files import Change, read_state, unchanged

_SSD_SCALES = [300 * scale for scale in (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)]
_SSDLITE_SCALES = [320 * (0.2 + 0.15 * level) for level in range(6)] + [320.0]
_CLAMP = math.log(1000 / 16)

_MOBILENET_ANCHORS = AnchorConfig(sizes=((32, 64, 128, 256, 512),) * 3)
_EPS_0 = ResNetConfig(norm_eps=0.0)  # torchvision overwrites the epsilon of COCO_V1's frozen batch norms
# version 2 of the R-CNNs: batch norms that train everywhere but in the RPN, and more convolutions (arXiv 2111.11429)
_V2: dict[str, Any] = {
    "backbone": ResNetConfig(norm="bn"),
    "neck": FPNConfig(norm="bn"),
    "rpn": RPNConfig(conv_depth=2),
    "roi": RoIConfig(conv_channels=(256,) * 4, norm="bn", hidden=(1024,)),
}

# the detectors as torchvision builds them
CONFIGS: dict[str, TwoStageConfig | SSDConfig | RetinaNetConfig | FCOSConfig] = {
    "fasterrcnn_resnet50_fpn": FasterRCNNConfig(backbone=_EPS_0),
    "fasterrcnn_resnet50_fpn_v2": FasterRCNNConfig(**_V2),
    "maskrcnn_resnet50_fpn": MaskRCNNConfig(backbone=_EPS_0),
    "maskrcnn_resnet50_fpn_v2": MaskRCNNConfig(**_V2, mask=MaskConfig(norm="bn")),
    "keypointrcnn_resnet50_fpn": KeypointRCNNConfig(
        backbone=_EPS_0, input=InputConfig(resize=ShortSideConfig(train_sizes=tuple(range(640, 801, 32))))
    ),
    "fasterrcnn_mobilenet_v3_large_fpn": FasterRCNNConfig(
        backbone=MobileNetV3Config(), rpn=RPNConfig(anchors=_MOBILENET_ANCHORS)
    ),
    "fasterrcnn_mobilenet_v3_large_320_fpn": FasterRCNNConfig(
        backbone=MobileNetV3Config(),
        rpn=RPNConfig(
            anchors=_MOBILENET_ANCHORS,
            pre_nms_top_k_test=150,
            post_nms_top_k_test=150,
            score_threshold=0.05,
        ),
        input=InputConfig(resize=ShortSideConfig(size=320, max_size=640)),
    ),
    "retinanet_resnet50_fpn": RetinaNetConfig(backbone=ResNetConfig(strides=(8, 16, 32), norm_eps=0.0)),
    "retinanet_resnet50_fpn_v2": RetinaNetConfig(
        backbone=ResNetConfig(strides=(8, 16, 32), norm="bn"),
        neck=DenseFPNConfig(extra_level="conv_c5"),
        head=RetinaNetHeadConfig(tower=TowerConfig(groups=32, bias=False), box_loss="giou"),
    ),
    "fcos_resnet50_fpn": FCOSConfig(),
    "ssd300_vgg16": SSDConfig(
        head=SSDHeadConfig(
            priors=PriorConfig(min_sizes=tuple(_SSD_SCALES[:-1]), max_sizes=tuple(_SSD_SCALES[1:]), clip_sides=True),
            clamp=_CLAMP,
        ),
        input=SSDInputConfig(
            resize=StretchConfig(size=300), mean=(123.00084, 116.99984, 103.9992), std=(1.0, 1.0, 1.0)
        ),
    ),
    "ssdlite320_mobilenet_v3_large": SSDConfig(
        backbone=SSDLiteMobileNetConfig(),
        neck=ExtraLevelsConfig(
            out_channels=(512, 256, 256, 128),
            reduce=("stride",) * 4,
            l2_norm=None,
            norm=True,
            norm_eps=1e-3,
            norm_momentum=0.03,
            act="relu6",
            depthwise=True,
        ),
        head=SSDHeadConfig(
            priors=PriorConfig(
                min_sizes=tuple(_SSDLITE_SCALES[:-1]),
                max_sizes=tuple(_SSDLITE_SCALES[1:]),
                ratios=((2, 3),) * 6,
                steps=None,
                clip_sides=True,
            ),
            depthwise=True,
            norm_eps=1e-3,
            norm_momentum=0.03,
            clamp=_CLAMP,
            selection=SSDSelectionConfig(
                score_threshold=0.001, top_k_per_class=300, nms_threshold=0.55, max_detections=300
            ),
        ),
        input=SSDInputConfig(resize=StretchConfig(size=320), mean=(127.5,) * 3, std=(127.5,) * 3),
    ),
}

FPN_LAYERS = (("inner_blocks", "lateral"), ("layer_blocks", "output"))
TOWERS = (("classification_head", "class_tower"), ("regression_head", "box_tower"))


def _numbered_towers(parts: int) -> list[tuple[str, str]]:
    """Towers whose layers have one number, blocks of a convolution and `parts` - 1 others: FCOS's, and RetinaNet's in
    older checkpoints, such as the published one."""
    return [
        (rf"head\.{source}\.conv\.{parts * block + part}\.(?=weight|bias)", f"head.{tower}.{block}.{part}.")
        for source, tower in TOWERS
        for block in range(4)
        for part in range(parts - 1)
    ]


def _pyramid(norm: bool) -> list[tuple[str, str]]:
    """An optional `.0` stands for the Sequential of newer versions."""
    if norm:
        return [
            (rf"backbone\.fpn\.{source}\.(\d+)\.([01])\.", rf"neck.{layers}.\1.\2.") for source, layers in FPN_LAYERS
        ]
    return [
        (rf"backbone\.fpn\.{source}\.(\d+)(\.0)?\.(?=weight|bias)", rf"neck.{layers}.\1.")
        for source, layers in FPN_LAYERS
    ]


def _mask_layers(norm: bool) -> list[tuple[str, str]]:
    """Four convolutions, each with a ReLU and, in version 2, a norm between them."""
    parts = 3 if norm else 2
    return [
        (rf"roi_heads\.mask_head\.{source}\.(?=weight|bias|running|num)", f"branches.mask.layers.{parts * i + part}.")
        for i in range(4)
        for part, sources in enumerate(((f"{i}\\.0", f"mask_fcn{i + 1}"), (f"{i}\\.1",))[: parts - 1])
        for source in sources
    ]


# torchvision's names -> detkit's, tried in order
KEYS = [
    (r"backbone\.body\.", "backbone."),
    (r"rpn\.head\.conv(\.0\.0)?\.(?=weight|bias)", "rpn.conv."),
    (r"rpn\.head\.conv\.1\.0\.", "rpn.further_convs.0."),
    (r"rpn\.head\.cls_logits\.", "rpn.objectness."),
    (r"rpn\.head\.bbox_pred\.", "rpn.deltas."),
    (r"roi_heads\.box_head\.fc6\.", "roi.hidden.0."),
    (r"roi_heads\.box_head\.fc7\.", "roi.hidden.1."),
    (r"roi_heads\.box_predictor\.cls_score\.", "roi.classifier."),
    (r"roi_heads\.box_predictor\.bbox_pred\.", "roi.regressor."),
    *((rf"roi_heads\.box_head\.{i}\.{part}\.", f"roi.convs.{3 * i + part}.") for i in range(4) for part in (0, 1)),
    (r"roi_heads\.box_head\.5\.", "roi.hidden.0."),
    # Mask and Keypoint R-CNN
    (r"roi_heads\.mask_predictor\.conv5_mask\.", "branches.mask.deconv."),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.", "branches.mask.classifier."),
    (r"roi_heads\.keypoint_head\.(\d+)\.", r"branches.keypoint.layers.\1."),
    (r"roi_heads\.keypoint_predictor\.kps_score_lowres\.", "branches.keypoint.deconv."),
    # RetinaNet and FCOS
    *((rf"backbone\.fpn\.extra_blocks\.p{6 + i}\.", f"neck.extra.{i}.") for i in range(2)),
    *((rf"head\.{source}\.conv\.(\d)\.(\d)\.", rf"head.{tower}.\1.\2.") for source, tower in TOWERS),
    (r"head\.classification_head\.cls_logits\.", "head.classifier."),
    (r"head\.regression_head\.bbox_reg\.", "head.regressor."),
    (r"head\.regression_head\.bbox_ctrness\.", "head.centerness."),
    # SSD and SSDLite
    *(
        (rf"head\.{source}\.module_list\.(\d)\.0\.{i}\.", rf"head.{converted}.\1.0.{part}.")
        for source, converted in (("classification_head", "classifier"), ("regression_head", "regressor"))
        for i, part in enumerate(("conv", "norm"))
    ),
    (r"head\.classification_head\.module_list\.", "head.classifier."),
    (r"head\.regression_head\.module_list\.", "head.regressor."),
    # SSD300: VGG to conv4_3, to fc7, and the extra levels
    (r"backbone\.scale_weight", "neck.l2_norm.scale"),
    (r"backbone\.features\.(\d+)\.(?=weight|bias)", r"backbone.\1."),
    *((rf"backbone\.extra\.0\.{i}\.(?=weight|bias)", f"backbone.{23 + i}.") for i in (1, 3, 5)),
    (r"backbone\.extra\.0\.7\.1\.", "backbone.fc6."),
    (r"backbone\.extra\.0\.7\.3\.", "backbone.fc7."),
    *(
        (rf"backbone\.extra\.{i}\.{j}\.(?=weight|bias)", f"neck.levels.{i - 1}.{j // 2}.conv.")
        for i in range(1, 5)
        for j in (0, 2)
    ),
    # SSDLite: MobileNetV3 to the expansion of C4, from there on, and the extra levels
    (r"backbone\.features\.0\.13\.", "backbone.13_expand."),
    (r"backbone\.features\.0\.(\d+)\.", r"backbone.\1."),
    (r"backbone\.features\.1\.0\.", "backbone.13_reduce."),
    *((rf"backbone\.features\.1\.{i}\.", f"backbone.{13 + i}.") for i in (1, 2, 3)),
    (r"backbone\.extra\.(\d)\.(\d)\.0\.", r"neck.levels.\1.\2.conv."),
    (r"backbone\.extra\.(\d)\.(\d)\.1\.", r"neck.levels.\1.\2.norm."),
]


def convert_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A torchvision state dict under detkit's names. Raises UserError for a name that torchvision does not use."""
    converted = {}
    is_fcos, pyramid_norm, mask_norm = (
        any(part in key for key in state) for part in ("bbox_ctrness", "inner_blocks.0.1.", "mask_head.0.1.")
    )
    towers = _numbered_towers(3 if is_fcos else 2)  # with its norm and ReLU, or with ReLU
    rules = [*_pyramid(pyramid_norm), *_mask_layers(mask_norm), *KEYS, *towers]
    for key, tensor in state.items():
        name = next((re.sub(f"^{source}", target, key) for source, target in rules if re.match(source, key)), None)
        if name is None:
            raise UserError(f"{key!r} is no key of a torchvision detector that detkit converts: {', '.join(CONFIGS)}")
        converted[name] = tensor
    return converted


WITHOUT_SOFTMAX = ("head.classifier", "branches.mask.classifier")


def without_first_class(state: Mapping[str, Tensor], num_classes: int) -> dict[str, Tensor]:
    """The weights of a detector, under detkit's names, without the first of the `num_classes` outputs of a classifier
    that has no softmax: those of each anchor of a dense head, and those of the masks."""
    cut = dict(state)
    for name in (f"{layer}.{part}" for layer in WITHOUT_SOFTMAX for part in ("weight", "bias")):
        if name in cut and len(cut[name]) % num_classes == 0:
            cut[name] = cut[name].view(-1, num_classes, *cut[name].shape[1:])[:, 1:].flatten(0, 1)
    return cut


def load_torchvision(name: str, file: Path | None = None, change: Change = unchanged) -> AnyDetector:
    """A public detector by its torchvision name, in evaluation mode, with the COCO_V1 weights.

    They are downloaded once and checked by hash, or read from `file`, the same `.pth` fetched by other means.
    """
    if name not in CONFIGS:
        raise UserError(f"torchvision:{name}: not known; known: {', '.join(CONFIGS)}")
    public = public_weights(name)["COCO_V1"]
    config, names = change(CONFIGS[name]), public.meta["categories"]
    categories = Categories.of_names(names[1:])
    if isinstance(config, KeypointRCNNConfig):
        categories = replace(categories, keypoints=COCO_KEYPOINTS)
    detector = build_detector(config, categories)
    state = convert_keys(read_state(file, "torchvision") if file else download(public.url, str(public)))
    try:
        detector.load_state_dict(without_first_class(state, len(names)))
    except RuntimeError as error:
        raise UserError(f"{file}: not the weights of {name}: {str(error).splitlines()[1].strip()}") from error
    return detector.eval()
