"""Faster R-CNN in its published forms."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from detkit.detectors.build import build_detector
from detkit.detectors.faster_rcnn import FasterRCNNConfig
from detkit.nn.backbones.mobilenet import MobileNetV3Config
from detkit.nn.backbones.resnet import ResNetConfig
from detkit.nn.backbones.vgg import VGGConfig
from detkit.nn.heads.roi import RoIConfig
from detkit.nn.heads.rpn import AnchorConfig, RPNConfig
from detkit.weights.torchvision import CONFIGS
from tests.detectors.batches import ROOT, cheap_config, make_batch
from tests.detectors.overfit import overfit

VOC = [f"class {i}" for i in range(20)]
COCO = [f"class {i}" for i in range(90)]  # torchvision's 91 outputs with background


def num_parameters(config: FasterRCNNConfig, class_names: list[str]) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_detector(config, class_names).parameters())


@pytest.mark.parametrize(
    ("file", "class_names", "expected"),
    [
        ("voc/faster_rcnn_vgg16.yaml", VOC, 137_078_239),  # py-faster-rcnn's prototxt
        ("voc/faster_rcnn_r50_fpn.yaml", VOC, 41_396_536),  # 41,755,286 less 70 classes of 5 x 1025
        ("coco/faster_rcnn_r50_fpn.yaml", COCO, 41_755_286),  # torchvision
        ("coco/faster_rcnn_mobilenet_v3_320.yaml", COCO, 19_386_354),  # torchvision
    ],
)
def test_published_parameter_counts(file: str, class_names: list[str], expected: int) -> None:
    assert num_parameters(cheap_config(ROOT / "configs" / file).model, class_names) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [("fasterrcnn_resnet50_fpn", 41_755_286), ("fasterrcnn_mobilenet_v3_large_320_fpn", 19_386_354)],
)
def test_parameter_counts_of_the_public_weights(name: str, expected: int) -> None:
    assert num_parameters(CONFIGS[name], COCO) == expected


def test_vgg16_part_by_part() -> None:
    """The sums of py-faster-rcnn's prototxt for VOC."""
    with torch.device("meta"):
        detector = build_detector(cheap_config(ROOT / "configs/voc/faster_rcnn_vgg16.yaml").model, VOC)
    parts = {name: sum(p.numel() for p in module.parameters()) for name, module in detector.named_modules()}
    assert parts["backbone"] == 14_714_688
    assert parts["rpn"] == 2_387_510
    assert [parts["roi.hidden.0"], parts["roi.hidden.1"]] == [102_764_544, 16_781_312]
    assert [parts["roi.classifier"], parts["roi.regressor"]] == [86_037, 344_148]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"neck": None}, "backbone.levels: 4 levels of different widths need a neck, found neck: null"),
        ({"roi": RoIConfig(pool="pool")}, "roi.pool: RoIPool reads one level, found 4"),
        (
            {"rpn": RPNConfig(anchors=AnchorConfig(sizes=((32,),)))},
            "rpn.anchors.sizes: expected 5 lists, one a feature level, found 1",
        ),
        ({"backbone": MobileNetV3Config()}, "rpn.anchors.sizes: expected 3 lists, one a feature level, found 5"),
        (
            {"backbone": VGGConfig(), "neck": None},
            "rpn.anchors.sizes: expected 1 lists, one a feature level, found 5",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FasterRCNNConfig(**fields)  # type: ignore[arg-type]


def tiny() -> FasterRCNNConfig:
    return cheap_config(ROOT / "configs/faster_rcnn.yaml").model


def test_training_needs_targets() -> None:
    detector = build_detector(tiny(), ["thing"])
    with pytest.raises(ValueError, match=r"without targets in training mode; call detector.eval\(\)"):
        detector.train()(make_batch(detector, [1], targets=False))


def test_a_detector_needs_a_class() -> None:
    with pytest.raises(ValueError, match="class_names: expected at least one class"):
        build_detector(tiny(), [])


def test_canvas_is_a_multiple_of_the_coarsest_backbone_level() -> None:
    assert build_detector(tiny(), ["thing"]).input.stride == 32
    three = tiny().model_copy(update={"backbone": ResNetConfig(name="resnet18", levels=(2, 3, 4))})
    anchors = AnchorConfig(sizes=((16,), (32,), (64,), (128,)))
    three = three.model_copy(update={"rpn": RPNConfig(anchors=anchors)})
    assert build_detector(three, ["thing"]).input.stride == 16


def test_it_overfits_four_pictures(tmp_path: Path) -> None:
    changes = ["model.input.resize={name: short_side, size: 96, max_size: 160}", "model.neck.out_channels=64"]
    changes += ["model.roi.hidden=[256]", "model.rpn.post_nms_top_k_test=100"]
    assert overfit(ROOT / "configs/faster_rcnn.yaml", tmp_path, changes, pictures=4, steps=70) > 0.9


def test_levels_with_a_gap_are_refused() -> None:
    with pytest.raises(ValueError, match=r"backbone.levels: expected no gap between them, found \[3, 5\]"):
        FasterRCNNConfig(backbone=ResNetConfig(name="resnet18", levels=(3, 5)))
