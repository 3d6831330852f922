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
from detkit.structures import Categories
from tests.detectors.batches import ROOT, cheap_config, make_batch, published_config
from tests.detectors.overfit import overfit, small_backbone

VOC, COCO = (Categories.of_names([f"class {i}" for i in range(count)]) for count in (20, 80))


def build(file: str, categories: Categories) -> Detector[Any]:
    with torch.device("meta"):
        return build_detector(published_config(ROOT / "configs" / file).model, categories)


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("file", "categories", "expected"),
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
def test_published_parameter_counts(file: str, categories: Categories, expected: int) -> None:
    assert num_parameters(build(file, categories)) == expected


@pytest.mark.parametrize(
    ("config", "categories", "expected"),
    [
        (YOLOv1Config(), VOC, 271_703_550),
        (YOLOv2Config(), VOC, 50_655_389),
        (YOLOv3Config(), COCO, 61_949_149),
    ],
)
def test_defaults_are_the_published_form(config: Any, categories: Categories, expected: int) -> None:
    with torch.device("meta"):
        assert num_parameters(build_detector(config, categories)) == expected


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
        outputs = detector.network(torch.zeros(1, 3, side, side), torch.tensor([[side, side]]))
        assert detector.head.boxes(outputs).shape == (1, boxes, 4)


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
            {"backbone": DarknetConfig(name="yolov1", strides=(32, 64))},
            r"backbone.strides: expected one level, found \[32, 64\]",
        ),
        (
            YOLOv2Config,
            {"backbone": DarknetConfig(name="darknet19", strides=(8, 16, 32))},
            r"backbone.strides: the passthrough joins two neighbouring levels, found \[8, 16, 32\]",
        ),
        (
            YOLOv2Config,
            {"backbone": DarknetConfig(name="darknet19", strides=(8, 32))},
            r"backbone.strides: the passthrough joins two neighbouring levels, found \[8, 32\]",
        ),
        (
            YOLOv3Config,
            {"backbone": DarknetConfig(strides=(4, 8, 32))},
            r"backbone.strides: expected no gap between them, found \[4, 8, 32\]",
        ),
        (
            YOLOv3Config,
            {"backbone": DarknetConfig(strides=(16, 32))},
            "head.anchors: expected 2 lists, one for each level, found 3",
        ),
        (
            YOLOv3Config,
            {"head": YOLOv3HeadConfig(anchors=(((10, 13),),))},
            "head.anchors: expected 3 lists, one for each level, found 1",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(make: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make(**fields)


def test_yolov2_pulls_boxes_to_their_anchors_while_few_images_were_seen() -> None:
    config = cheap_config(ROOT / "configs/yolov2.yaml").model
    assert isinstance(config, YOLOv2Config)
    detector = build_detector(config, VOC)
    batch = make_batch(detector, [1, 0])
    outputs = detector(batch)
    assert batch.targets
    pulled = []
    for detector.images_seen in (0, config.head.prior_images - 1, config.head.prior_images):
        pulled.append("yolo_prior" in detector.criterion(outputs, batch.targets))
    assert pulled == [True, True, False]


@pytest.mark.long
@pytest.mark.parametrize(("file", "strides"), [("yolov2.yaml", (8, 16)), ("yolov3.yaml", (8, 16, 32))])
def test_it_overfits_four_pictures(file: str, strides: tuple[int, ...], tmp_path: Path) -> None:
    changes = ["model.input.resize.size=96", small_backbone(strides)]
    assert overfit(ROOT / "configs" / file, tmp_path, changes, pictures=4, steps=170, lr=5e-3) > 0.9
