"""Cascade R-CNN in its published form."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from detkit.config import override, parse_config
from detkit.detectors.build import build_detector
from detkit.detectors.cascade_rcnn import CascadeRCNN, CascadeRCNNConfig
from detkit.engine.settings import RunConfig
from detkit.nn.backbones.resnet import ResNetConfig
from detkit.nn.heads.cascade import CascadeConfig
from detkit.nn.proposals.regions import Regions
from detkit.structures import Categories
from tests.detectors.batches import ROOT, cheap_config, enliven, make_batch, published_config
from tests.detectors.overfit import overfit, small_backbone

COCO = Categories.of_names([f"class {i}" for i in range(80)])
THING = Categories.of_names(["thing"])


def test_published_parameter_counts() -> None:
    """Detectron2's layers: Faster R-CNN's 27,393,231 before its head, and three heads of 13,982,805."""
    with torch.device("meta"):
        detector = build_detector(published_config(ROOT / "configs/coco/cascade_rcnn_r50_fpn.yaml").model, COCO)
    assert sum(parameter.numel() for parameter in detector.parameters()) == 69_341_646
    assert sum(parameter.numel() for parameter in detector.roi.parameters()) == 3 * 13_982_805


def test_defaults_are_the_published_stages() -> None:
    """IoU .5, .6 and .7; weights of the deltas 10 and 5, twice and three times as much (Detectron2)."""
    stages = CascadeConfig().stages()
    assert [stage.fg_threshold for stage in stages] == [0.5, 0.6, 0.7]
    assert [stage.box_weights for stage in stages] == [(10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)]


def test_a_stage_goes_on_from_one_box() -> None:
    with pytest.raises(ValidationError, match="class_agnostic"):
        CascadeConfig(class_agnostic=False)
    with pytest.raises(ValidationError, match=r"backbone.strides: expected no gap between them, found \[8, 32\]"):
        CascadeRCNNConfig(backbone=ResNetConfig(strides=(8, 32)))


def tiny(*changes: str) -> CascadeRCNN:
    torch.manual_seed(0)
    config = cheap_config(ROOT / "configs/cascade_rcnn.yaml")
    config = parse_config(override(config.model_dump(mode="json"), changes), RunConfig)
    detector = build_detector(config.model, THING)
    assert isinstance(detector, CascadeRCNN)
    return detector


def test_training_has_the_losses_of_all_stages_and_weighs_classes_in_each() -> None:
    detector = tiny()
    batch = make_batch(detector, [3, 0])
    assert batch.targets
    names = {f"stage{i}_{part}" for i in (1, 2, 3) for part in ("class", "box")} | {"rpn_objectness", "rpn_box"}
    assert detector.train().criterion(detector(batch), batch.targets).keys() == names
    detector.set_class_weights(torch.tensor([3.0]))
    assert [stage.class_weights.tolist() for stage in detector.roi.heads()] == [[3.0]] * 3


@torch.inference_mode()
def test_rows_without_a_proposal_change_no_detection(monkeypatch: pytest.MonkeyPatch) -> None:
    rpn = ("pre_nms_top_k_test=40", "post_nms_top_k_test=30", "min_size=1.0")
    selection = ("score_threshold=0", "nms_threshold=null")
    changes = [*(f"model.rpn.{change}" for change in rpn), *(f"model.roi.selection.{change}" for change in selection)]
    detector = tiny(*changes)
    enliven(detector)
    batch = make_batch(detector.eval(), [2, 1], [(120, 160), (20, 160)], targets=False)
    outputs = detector(batch)
    detections = detector.postprocess(outputs, batch.infos)
    monkeypatch.setattr(Regions, "compact", lambda self: self)
    all_rows = detector(batch)
    assert len(outputs.roi.regions.boxes) < len(all_rows.roi.regions.boxes)
    for actual, expected in zip(detector.postprocess(all_rows, batch.infos), detections, strict=True):
        assert len(actual) > 5
        torch.testing.assert_close(actual.boxes, expected.boxes, rtol=0, atol=1e-3)
        torch.testing.assert_close(actual.scores, expected.scores, rtol=0, atol=1e-5)


@pytest.mark.long
def test_a_few_pictures_are_learned_by_heart(tmp_path: Path) -> None:
    changes = ["model.input.resize={name: short_side, size: 96, max_size: 160}", "model.neck.out_channels=64"]
    changes += ["model.roi.hidden=[256]", "model.rpn.post_nms_top_k_test=100", small_backbone((4, 8, 16))]
    assert overfit(ROOT / "configs/cascade_rcnn.yaml", tmp_path, changes, pictures=3, steps=110, lr=2e-3) > 0.9
