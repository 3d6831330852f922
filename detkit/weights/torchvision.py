"""torchvision's checkpoints of detectors, https://docs.pytorch.org/vision/stable/models.html#object-detection.

Their 91 outputs are background and the COCO ids 1-90, of which ten were never used: those classes stay, under the name
"N/A" as in torchvision, because the softmax runs over all of them. RetinaNet and FCOS have no softmax: their first
output, background, was never a target and is left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from detkit.config import UserError
from detkit.detectors.build import build_detector
from detkit.detectors.detector import AnyDetector
from detkit.detectors.faster_rcnn import FasterRCNNConfig
from detkit.detectors.fcos import FCOSConfig
from detkit.detectors.retinanet import RetinaNetConfig
from detkit.detectors.ssd import SSDConfig, SSDInputConfig
from detkit.nn.anchors import AnchorConfig, PriorConfig
from detkit.nn.backbones.mobilenet import MobileNetV3Config, SSDLiteMobileNetConfig
from detkit.nn.backbones.resnet import ResNetConfig
from detkit.nn.backbones.staged import download, public_weights
from detkit.nn.heads.dense import TowerConfig
from detkit.nn.heads.retinanet import RetinaNetHeadConfig
from detkit.nn.heads.rpn import RPNConfig
from detkit.nn.heads.ssd import SSDHeadConfig, SSDSelectionConfig
from detkit.nn.input import InputConfig, ShortSideConfig, StretchConfig
from detkit.nn.necks.extra_levels import ExtraLevelsConfig
from detkit.nn.necks.fpn import DenseFPNConfig
from detkit.structures import Categories
from detkit.weights.files import Change, read_state, unchanged

_SSD_SCALES = [300 * scale for scale in (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)]
_SSDLITE_SCALES = [320 * (0.2 + 0.15 * level) for level in range(6)] + [320.0]
_CLAMP = math.log(1000 / 16)

# the detectors as torchvision builds them; norm_eps 0: it overwrites the epsilon of COCO_V1's frozen batch norms
CONFIGS: dict[str, FasterRCNNConfig | SSDConfig | RetinaNetConfig | FCOSConfig] = {
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


# torchvision's names -> detkit's, tried in order; an optional `.0` stands for the Sequential of newer versions
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
    is_fcos = any("bbox_ctrness" in key for key in state)
    rules = [*KEYS, *_numbered_towers(3 if is_fcos else 2)]  # with its norm and ReLU, or with ReLU
    for key, tensor in state.items():
        name = next((re.sub(f"^{source}", target, key) for source, target in rules if re.match(source, key)), None)
        if name is None:
            raise UserError(f"{key!r} is no key of a torchvision detector that detkit converts: {', '.join(CONFIGS)}")
        converted[name] = tensor
    return converted


def without_first_class(state: Mapping[str, Tensor], num_classes: int) -> dict[str, Tensor]:
    """The weights of a dense detector, under detkit's names, without the first of `num_classes` outputs an anchor."""
    cut = dict(state)
    for name in ("head.classifier.weight", "head.classifier.bias"):
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
    detector = build_detector(config, Categories.of_names(names[1:]))
    state = convert_keys(read_state(file, "torchvision") if file else download(public.url, str(public)))
    if isinstance(config, RetinaNetConfig | FCOSConfig):
        state = without_first_class(state, len(names))
    try:
        detector.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{file}: not the weights of {name}: {str(error).splitlines()[1].strip()}") from error
    return detector.eval()
