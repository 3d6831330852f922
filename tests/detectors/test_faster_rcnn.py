"""Faster R-CNN in its published forms."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from detkit.config import override, parse_config
from detkit.detectors.build import build_detector
from detkit.detectors.faster_rcnn import FasterRCNN, FasterRCNNConfig
from detkit.engine.settings import RunConfig
from detkit.nn.anchors import AnchorConfig
from detkit.nn.backbones.mobilenet import MobileNetV3Config
from detkit.nn.backbones.resnet import ResNetConfig
from detkit.nn.backbones.vgg import VGGConfig
from detkit.nn.heads.roi import RoIConfig
from detkit.nn.heads.rpn import RPNConfig
from detkit.nn.proposals.regions import Regions
from detkit.structures import Categories
from detkit.weights.torchvision import CONFIGS
from tests.detectors.batches import ROOT, cheap_config, enliven, make_batch, published_config
from tests.detectors.overfit import overfit, small_backbone

VOC = Categories.of_names([f"class {i}" for i in range(20)])
COCO = Categories.of_names([f"class {i}" for i in range(90)])  # torchvision's 91 outputs with background
THING = Categories.of_names(["thing"])


def num_parameters(config: FasterRCNNConfig, categories: Categories) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_detector(config, categories).parameters())


@pytest.mark.parametrize(
    ("file", "categories", "expected"),
    [
        ("voc/faster_rcnn_vgg16.yaml", VOC, 137_078_239),  # py-faster-rcnn's prototxt
        ("voc/faster_rcnn_r50_fpn.yaml", VOC, 41_396_536),  # 41,755,286 less 70 classes of 5 x 1025
        ("coco/faster_rcnn_r50_fpn.yaml", COCO, 41_755_286),  # torchvision
        ("coco/faster_rcnn_mobilenet_v3_320.yaml", COCO, 19_386_354),  # torchvision
    ],
)
def test_published_parameter_counts(file: str, categories: Categories, expected: int) -> None:
    assert num_parameters(published_config(ROOT / "configs" / file).model, categories) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [("fasterrcnn_resnet50_fpn", 41_755_286), ("fasterrcnn_mobilenet_v3_large_320_fpn", 19_386_354)],
)
def test_parameter_counts_of_the_public_weights(name: str, expected: int) -> None:
    assert num_parameters(CONFIGS[name], COCO) == expected


def test_vgg16_part_by_part() -> None:
    """The sums of py-faster-rcnn's prototxt for VOC."""
    with torch.device("meta"):
        detector = build_detector(published_config(ROOT / "configs/voc/faster_rcnn_vgg16.yaml").model, VOC)
    parts = {name: sum(p.numel() for p in module.parameters()) for name, module in detector.named_modules()}
    assert parts["backbone"] == 14_714_688
    assert parts["rpn"] == 2_387_510
    assert [parts["roi.hidden.0"], parts["roi.hidden.1"]] == [102_764_544, 16_781_312]
    assert [parts["roi.classifier"], parts["roi.regressor"]] == [86_037, 344_148]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"neck": None}, "backbone.strides: 4 levels of different widths need a neck, found neck: null"),
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
    detector = build_detector(tiny(), THING)
    with pytest.raises(ValueError, match=r"without targets in training mode; call detector.eval\(\)"):
        detector.train()(make_batch(detector, [1], targets=False))


def test_canvas_is_a_multiple_of_the_coarsest_backbone_level() -> None:
    assert build_detector(tiny(), THING).input.stride == 32
    three = tiny().model_copy(update={"backbone": ResNetConfig(name="resnet18", strides=(4, 8, 16))})
    anchors = AnchorConfig(sizes=((16,), (32,), (64,), (128,)))
    three = three.model_copy(update={"rpn": RPNConfig(anchors=anchors)})
    assert build_detector(three, THING).input.stride == 16


def lively(file: str) -> FasterRCNN:
    """With random weights, and few proposals, each of which is a detection."""
    torch.manual_seed(0)
    config = cheap_config(ROOT / "configs" / file)
    rpn = {"score_threshold": 0.0, "pre_nms_top_k_test": 40, "post_nms_top_k_test": 30, "min_size": 1.0}
    changes = [f"model.rpn.{name}={value}" for name, value in rpn.items()] + ["model.roi.selection.score_threshold=0"]
    detector = build_detector(parse_config(override(config.model_dump(mode="json"), changes), RunConfig).model, VOC)
    assert isinstance(detector, FasterRCNN)
    enliven(detector)
    return detector.eval()


@torch.inference_mode()
def test_rows_without_a_proposal_change_no_detection(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = lively("faster_rcnn.yaml")
    batch = make_batch(detector, [2, 1], [(120, 160), (20, 160)], targets=False)
    outputs = detector(batch)
    detections = detector.postprocess(outputs, batch.infos)
    monkeypatch.setattr(Regions, "compact", lambda self: self)
    outputs_of_all_rows = detector(batch)
    assert len(outputs.roi.regions.boxes) < len(outputs_of_all_rows.roi.regions.boxes) == 2 * 30
    for actual, expected in zip(detector.postprocess(outputs_of_all_rows, batch.infos), detections, strict=True):
        assert len(actual) > 5
        torch.testing.assert_close(actual.boxes, expected.boxes, rtol=0, atol=1e-4)
        torch.testing.assert_close(actual.scores, expected.scores, rtol=0, atol=1e-6)


@torch.inference_mode()
def test_its_proposals_can_be_had_alone_and_given_back() -> None:
    detector = lively("faster_rcnn.yaml")
    batch = make_batch(detector, [2, 1], targets=False)
    images, sizes = detector.input(batch.images, batch.sizes()), batch.sizes()
    expected = detector.network(images, sizes)
    proposals = detector.propose(images, sizes)
    assert torch.equal(proposals.compact().boxes, expected.roi.regions.boxes)
    detections = detector.network(images, sizes, proposals).detections
    assert detections is not None
    assert expected.detections is not None
    assert torch.equal(detections.boxes, expected.detections.boxes)


def test_detections_are_computed_in_evaluation_only() -> None:
    detector = build_detector(tiny(), THING)
    batch = make_batch(detector, [1])
    outputs = detector.train()(batch)
    assert outputs.detections is None
    with pytest.raises(ValueError, match=r"no detections: .* training mode; call detector.eval\(\)"):
        detector.detect(outputs, batch.sizes())
    outputs = detector.eval()(batch)
    assert detector.detect(outputs, batch.sizes()) is outputs.detections
    with pytest.raises(ValueError, match="no sampled regions: the outputs were computed in evaluation mode"):
        detector.criterion(outputs, batch.targets)


@pytest.mark.long
def test_it_overfits_three_pictures(tmp_path: Path) -> None:
    changes = ["model.input.resize={name: short_side, size: 96, max_size: 160}", "model.neck.out_channels=64"]
    changes += ["model.roi.hidden=[256]", "model.rpn.post_nms_top_k_test=100", small_backbone((4, 8, 16))]
    assert overfit(ROOT / "configs/faster_rcnn.yaml", tmp_path, changes, pictures=3, steps=100, lr=2e-3) > 0.9


def test_levels_with_a_gap_are_refused() -> None:
    with pytest.raises(ValueError, match=r"backbone.strides: expected no gap between them, found \[8, 32\]"):
        FasterRCNNConfig(backbone=ResNetConfig(name="resnet18", strides=(8, 32)))
