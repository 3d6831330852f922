"""YOLOv1, YOLOv2 and YOLOv3 in their published forms."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from detkit.detectors.build import build_detector
from detkit.detectors.detector import Detector
from detkit.detectors.yolov1 import YOLOv1Config
from detkit.detectors.yolov2 import YOLOv2Config
from detkit.detectors.yolov3 import YOLOv3Config
from detkit.nn.backbones.darknet import DarknetConfig, conv_blocks
from detkit.nn.heads.yolo_v3 import YOLOv3HeadConfig
from detkit.nn.input import DarknetInputConfig, LetterboxConfig, StretchConfig
from tests.detectors.batches import ROOT, cheap_config
from tests.detectors.overfit import overfit

VOC = [f"class {i}" for i in range(20)]
COCO = [f"class {i}" for i in range(80)]


def build(file: str, class_names: list[str]) -> Detector:
    with torch.device("meta"):
        return build_detector(cheap_config(ROOT / "configs" / file).model, class_names)


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("file", "class_names", "expected"),
    [
        ("voc/yolov1.yaml", VOC, 271_703_550),  # arithmetic on the paper's figure 3
        ("voc/yolov1_cfg.yaml", VOC, 197_301_875),  # the others: arithmetic on the cfg files of pjreddie/darknet
        ("voc/yolov1_tiny.yaml", VOC, 27_095_374),
        ("voc/yolov2.yaml", VOC, 50_655_389),
        ("coco/yolov2.yaml", COCO, 50_962_889),
        ("voc/yolov3.yaml", VOC, 61_626_049),
        ("coco/yolov3.yaml", COCO, 61_949_149),
        ("coco/yolov3_spp.yaml", COCO, 62_998_749),
        ("coco/yolov3_tiny.yaml", COCO, 8_852_366),
    ],
)
def test_published_parameter_counts(file: str, class_names: list[str], expected: int) -> None:
    assert num_parameters(build(file, class_names)) == expected


@pytest.mark.parametrize(
    ("config", "class_names", "expected"),
    [
        (YOLOv1Config(), VOC, 271_703_550),
        (YOLOv2Config(), VOC, 50_655_389),
        (YOLOv3Config(), COCO, 61_949_149),
    ],
)
def test_defaults_are_the_published_form(config: Any, class_names: list[str], expected: int) -> None:
    with torch.device("meta"):
        assert num_parameters(build_detector(config, class_names)) == expected


def test_yolov1_part_by_part() -> None:
    detector: Any = build("voc/yolov1.yaml", VOC)
    parts = [detector.backbone, detector.head.hidden, detector.head.output]
    assert [num_parameters(part) for part in parts] == [60_155_968, 205_524_992, 6_022_590]
    assert (len(conv_blocks(detector)), len([m for m in detector.modules() if isinstance(m, nn.Linear)])) == (24, 2)


@pytest.mark.parametrize(
    ("file", "convolutions"),
    [("voc/yolov1_tiny.yaml", 8), ("voc/yolov2.yaml", 23), ("coco/yolov3.yaml", 75), ("coco/yolov3_tiny.yaml", 13)],
)
def test_number_of_convolutions(file: str, convolutions: int) -> None:
    """With those that predict. YOLOv2's passthrough is one of its 23; YOLOv3: 52 in the trunk and 23 after it."""
    detector = build(file, VOC)
    assert sum(isinstance(module, nn.Conv2d) for module in detector.modules()) == convolutions


@pytest.mark.parametrize(
    ("file", "side", "boxes"),
    [
        ("voc/yolov1.yaml", 448, 98),
        ("voc/yolov1_cfg.yaml", 448, 147),
        ("voc/yolov2.yaml", 416, 845),
        ("coco/yolov3.yaml", 416, 10_647),
        ("coco/yolov3.yaml", 608, 22_743),
        ("coco/yolov3_tiny.yaml", 416, 2_535),  # 3 * (13^2 + 26^2)
    ],
)
def test_number_of_boxes(file: str, side: int, boxes: int) -> None:
    detector: Any = build(file, VOC).eval()
    with torch.device("meta"), torch.no_grad():
        features = detector.backbone(torch.zeros(1, 3, side, side))
        outputs = detector.head(detector.neck(features) if detector.neck else features, (side, side))
    found = outputs.raw.shape[1] if hasattr(outputs, "raw") else outputs.confidences.shape[1:].numel()
    assert found == boxes


def test_inputs_are_darknets() -> None:
    """Pixels divided by 255; YOLOv1 stretches to 448, the others fit into 416 on grey."""
    for config in (YOLOv1Config(), YOLOv2Config(), YOLOv3Config()):
        assert (config.input.mean, config.input.std, config.input.channel_order) == ((0,) * 3, (255,) * 3, "rgb")
    assert YOLOv1Config().input.resize == StretchConfig(size=448)
    assert YOLOv2Config().input.resize == YOLOv3Config().input.resize == LetterboxConfig(size=416)
    assert [build(f"voc/yolov{version}.yaml", VOC).input.stride for version in (1, 2, 3)] == [64, 32, 32]


@pytest.mark.parametrize(
    ("make", "fields", "message"),
    [
        (
            YOLOv1Config,
            {"input": DarknetInputConfig(resize=LetterboxConfig())},
            r"input.resize: the fully connected layers read one size; use \{name: stretch, size: 448\}",
        ),
        (
            YOLOv1Config,
            {"input": DarknetInputConfig(resize=StretchConfig(size=448, train_sizes=(384, 448)))},
            "input.resize: the fully connected layers read one size",
        ),
        (
            YOLOv1Config,
            {"backbone": DarknetConfig(name="yolov1", levels=(5, 6))},
            r"backbone.levels: expected one level, found \[5, 6\]",
        ),
        (
            YOLOv2Config,
            {"backbone": DarknetConfig(name="darknet19", levels=(3, 4, 5))},
            r"backbone.levels: the passthrough joins two neighbouring levels, found \[3, 4, 5\]",
        ),
        (
            YOLOv2Config,
            {"backbone": DarknetConfig(name="darknet19", levels=(3, 5))},
            r"backbone.levels: the passthrough joins two neighbouring levels, found \[3, 5\]",
        ),
        (
            YOLOv3Config,
            {"backbone": DarknetConfig(levels=(2, 3, 5))},
            r"backbone.levels: expected no gap between them, found \[2, 3, 5\]",
        ),
        (
            YOLOv3Config,
            {"backbone": DarknetConfig(levels=(4, 5))},
            "head.anchors: expected 2 lists, one a level, found 3",
        ),
        (
            YOLOv3Config,
            {"head": YOLOv3HeadConfig(anchors=(((10, 13),),))},
            "head.anchors: expected 3 lists, one a level, found 1",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(make: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make(**fields)


@pytest.mark.parametrize("file", ["yolov2.yaml", "yolov3.yaml"])
def test_it_overfits_four_pictures(file: str, tmp_path: Path) -> None:
    assert overfit(ROOT / "configs" / file, tmp_path, ["model.input.resize.size=96"], pictures=4, steps=75) > 0.9
