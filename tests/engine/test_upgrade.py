"""Configurations and checkpoints that detkit 0.1 wrote."""

from typing import Any

import pytest
import torch

from detkit.config import UserError, parse_config
from detkit.engine.settings import RunConfig, RunSettings
from detkit.engine.upgrade import upgrade_config, upgrade_state

REST: dict[str, Any] = {
    "data": {"name": "shapes", "root": "shapes"},
    "train": {"epochs": 1, "batch_size": 2, "optimizer": {"name": "sgd", "lr": 0.01}},
}

# (model as 0.1 wrote it, its values in the present form)
MODELS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (
        {
            "name": "faster_rcnn",
            "backbone": {"name": "resnet18", "levels": [3, 4, 5]},
            "neck": {"name": "fpn", "extra_level": "none"},
            "rpn": {"anchors": {"sizes": [[16], [32], [64]]}, "nms_threshold": 0.6, "score_threshold": 0.1},
            "roi": {"score_threshold": 0.2, "nms_threshold": 0.3, "detections_per_image": 7, "hidden": [8]},
        },
        {
            "backbone.strides": (8, 16, 32),
            "rpn.nms_threshold": 0.6,
            "rpn.score_threshold": 0.1,
            "roi.hidden": (8,),
            "roi.selection.score_threshold": 0.2,
            "roi.selection.nms_threshold": 0.3,
            "roi.selection.max_detections": 7,
        },
    ),
    (
        {
            "name": "ssd",
            "backbone": {"name": "vgg16_ssd", "levels": [4, 6]},
            "head": {"min_sizes": [1, 2, 3, 4, 5, 6], "clip_sides": True, "top_k_per_class": 9},
        },
        {
            "backbone.strides": (8, 16),
            "head.priors.min_sizes": (1, 2, 3, 4, 5, 6),
            "head.priors.clip_sides": True,
            "head.selection.top_k_per_class": 9,
            "head.selection.nms_threshold": 0.45,
        },
    ),
    (
        {"name": "yolov1", "backbone": {"name": "yolov1", "levels": [6]}, "head": {"max_detections": 5}},
        {"backbone.strides": (64,), "head.selection.max_detections": 5},
    ),
    (
        {"name": "yolov1", "backbone": {"name": "yolov1", "levels": [6], "frozen_stages": 3}},  # froze two
        {"backbone.frozen_stages": 2},
    ),
    (
        {"name": "rcnn", "backbone": {"name": "alexnet", "levels": [5]}, "roi": {"detections_per_image": 800}},
        {"backbone.strides": (16,), "roi.selection.max_detections": 800},
    ),
    (
        {"name": "sliding_window", "backbone": {"name": "lenet5", "levels": [2]}, "roi": {"suppression": "merge"}},
        {"backbone.strides": (4,), "roi.selection.suppression": "merge"},
    ),
    (
        {"name": "detr", "backbone": {"name": "resnet50", "levels": [5], "dilation": True}},
        {"backbone.strides": (16,)},
    ),
    (
        {"name": "fast_rcnn", "backbone": {"name": "vgg16", "levels": [5], "frozen_stages": 2}},
        {"backbone.strides": (16,), "backbone.frozen_stages": 2},
    ),
    (
        {
            "name": "ssd",
            "backbone": {"name": "mobilenet_v1", "levels": [4, 5], "frozen_stages": 3},  # froze two
            "neck": {"name": "extra_levels"},
        },
        {"backbone.strides": (16, 32), "backbone.frozen_stages": 2},
    ),
    (
        {
            "name": "faster_rcnn",
            "backbone": {"name": "mobilenet_v3_large", "levels": [4, 5]},
            "rpn": {"anchors": {"sizes": [[32, 64]] * 3}},
        },
        {"backbone.strides": (32, 32)},
    ),
]


@pytest.mark.parametrize(("model", "expected"), MODELS, ids=lambda value: value.get("name"))
def test_a_configuration_of_before(model: dict[str, Any], expected: dict[str, Any]) -> None:
    config = parse_config(upgrade_config({"model": model, **REST}), RunConfig)
    for path, value in expected.items():
        node: Any = config.model
        for name in path.split("."):
            node = getattr(node, name)
        assert node == value, path


@pytest.mark.parametrize(("model", "expected"), MODELS, ids=lambda value: value.get("name"))
def test_a_configuration_in_the_present_form_stays(model: dict[str, Any], expected: dict[str, Any]) -> None:
    present = parse_config(upgrade_config({"model": model, **REST}), RunConfig).model_dump(mode="json")
    assert upgrade_config(present) == present


@pytest.mark.parametrize(("factor", "lr_factors"), [(0.1, {"backbone": 0.1}), (1.0, {})])
def test_the_learning_rate_of_the_backbone_is_that_of_a_part(factor: float, lr_factors: dict[str, float]) -> None:
    """Runs from Python, whose configuration has no model, too."""
    optimizer = {"name": "adamw", "lr": 0.01, "betas": [0.8, 0.9], "backbone_lr_factor": factor}
    tree = {"train": {"epochs": 1, "batch_size": 2, "optimizer": optimizer}}
    config = parse_config(upgrade_config(tree), RunSettings)
    assert config.train.optimizer.lr_factors == lr_factors
    assert "backbone_lr_factor" in optimizer, "the file's own tree is left alone"


def test_a_level_without_a_name_of_its_own_is_refused() -> None:
    model = {"name": "rcnn", "backbone": {"name": "alexnet", "levels": [4]}}
    with pytest.raises(UserError, match=r"alexnet has several levels of stride 16, \[3, 4, 5\], .* found \[4\]"):
        upgrade_config({"model": model})


def test_a_checkpoint_of_before() -> None:
    weights = {"head.predict.0.weight": torch.zeros(2), "head.images_seen": torch.tensor(640)}
    state = upgrade_state({"class_names": ["cat", "dog"], "model": weights, "trained": weights, "epoch": 3})
    assert state["categories"] == {"names": ["cat", "dog"], "ids": [1, 2]}
    assert state["images_seen"] == 640
    assert state["finished"] is True
    assert list(state["model"]) == list(state["trained"]) == ["head.predict.0.weight"]
    assert "head.images_seen" in weights, "the file's own state is left alone"
    assert upgrade_state(state) == state
