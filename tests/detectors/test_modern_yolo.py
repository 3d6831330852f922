"""YOLOv4, YOLOv5, YOLOv7 and YOLOX in their published sizes."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from detkit.detectors.build import build_detector
from detkit.detectors.yolov4 import YOLOv4Config
from detkit.detectors.yolov5 import YOLOv5Config
from detkit.detectors.yolov7 import YOLOv7Config
from detkit.detectors.yolox import YOLOXConfig
from detkit.nn.backbones.csp_darknet import CSPDarknetConfig
from detkit.nn.backbones.csp_darknet53 import CSPDarknet53Config
from detkit.nn.backbones.elan import ELANConfig
from detkit.nn.heads.yolo_v4 import YOLOv4HeadConfig
from detkit.nn.heads.yolo_v7 import YOLOv7HeadConfig
from detkit.nn.heads.yolox import YOLOXHeadConfig
from detkit.nn.necks.elan_pan import ELANPANConfig
from detkit.nn.necks.pan import PANConfig
from detkit.nn.necks.yolo import YOLONeckConfig
from detkit.structures import Categories
from tests.nn.heads.test_yolo_v4 import TINY

COCO = Categories.of_names([f"class {i}" for i in range(80)])


YOLOV4_TINY = YOLOv4Config(
    backbone=CSPDarknet53Config(name="csp_darknet53_tiny", strides=(16, 32)),
    neck=YOLONeckConfig(name="yolov4_tiny"),
    head=YOLOv4HeadConfig(**TINY),
)


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def build(config: Any) -> Any:
    with torch.device("meta"):
        return build_detector(config, COCO)


def yolox(depth: float, width: float, depthwise: bool = False) -> YOLOXConfig:
    return YOLOXConfig(
        backbone=CSPDarknetConfig(depth=depth, width=width, depthwise=depthwise),
        neck=PANConfig(blocks=max(round(3 * depth), 1), depthwise=depthwise),
        head=YOLOXHeadConfig(channels=int(256 * width), depthwise=depthwise),
    )


def yolov5(depth: float, width: float) -> YOLOv5Config:
    backbone = CSPDarknetConfig(form="yolov5", depth=depth, width=width)
    return YOLOv5Config(backbone=backbone, neck=PANConfig(blocks=max(round(3 * depth), 1)))


def yolov7(size: str, block: Any, implicit: bool) -> YOLOv7Config:
    return YOLOv7Config(
        backbone=ELANConfig(name=f"elan{size}"),  # type: ignore[arg-type]
        neck=ELANPANConfig(name=f"elan_pan{size}"),  # type: ignore[arg-type]
        head=YOLOv7HeadConfig(block=block, implicit=implicit),
    )


@pytest.mark.parametrize(
    ("config", "expected"),
    [  # arithmetic on yolov4.cfg and yolov4-tiny.cfg of AlexeyAB/darknet
        (YOLOv4Config(), 64_363_101),
        (YOLOV4_TINY, 6_056_606),
        # of YOLOX as its own code counts them; of YOLOv5 as release 7.0 prints them
        (yolox(1 / 3, 0.25, True), 912_159),
        (yolox(1 / 3, 0.375), 5_055_855),
        (YOLOXConfig(), 8_968_255),
        (yolox(2 / 3, 0.75), 25_326_495),
        (yolox(1, 1), 54_208_895),
        (yolox(4 / 3, 1.25), 99_071_455),
        (yolov5(1 / 3, 0.25), 1_872_157),
        (YOLOv5Config(), 7_235_389),
        (yolov5(2 / 3, 0.75), 21_190_557),
        (yolov5(1, 1), 46_563_709),
        (yolov5(4 / 3, 1.25), 86_749_405),
        (YOLOv7Config(), 37_622_682),
        # arithmetic on yolov7-tiny.cfg and yolov7x.cfg, in which implicit knowledge is folded
        (yolov7("_tiny", "leaky", False), 6_227_101),
        (yolov7("_x", "conv", False), 71_344_389),
    ],
)
def test_published_parameter_counts(config: Any, expected: int) -> None:
    assert num_parameters(build(config)) == expected


def test_parts_of_yolox_s() -> None:
    detector = build(YOLOXConfig())
    assert num_parameters(detector.backbone) == 4_212_672
    assert num_parameters(detector.backbone) + num_parameters(detector.neck) == 7_047_360
    assert num_parameters(detector.head) == 1_920_895


def test_the_deployed_yolov7_is_the_published_one() -> None:
    """The 1x1 branches of the last convolutions and the implicit knowledge fold away; norms become biases."""
    detector = build(YOLOv7Config())
    norms = sum(module.num_features for module in detector.modules() if isinstance(module, nn.BatchNorm2d))
    small = sum(num_parameters(conv.small) for conv in detector.head.convs)
    implicit = num_parameters(detector.head.added) + num_parameters(detector.head.factors)
    small_norms = sum(conv.small.norm.num_features for conv in detector.head.convs)
    assert num_parameters(detector) - small - implicit - (norms - small_norms) == 36_905_341


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": {"name": "csp_darknet", "strides": (16, 32)}},
        {"head": {"anchors": (((10.0, 13.0),), ((3.0, 3.0),))}},
    ],
)
@pytest.mark.parametrize("config", [YOLOv5Config, YOLOv7Config])
def test_levels_and_anchors_agree(config: Any, change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="expected"):
        config.model_validate(change)
