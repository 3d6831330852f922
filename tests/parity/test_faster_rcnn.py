"""Faster, Mask and Keypoint R-CNN against torchvision's, from the same random weights."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.ops import FrozenBatchNorm2d

from detkit.config import override, parse_config
from detkit.detectors.build import build_detector
from detkit.detectors.faster_rcnn import FasterRCNN, TwoStageConfig
from detkit.nn.selection import KEYPOINT_SCORES
from detkit.structures import Batch, Categories, Detections, EncodedMasks, MaskCrops
from detkit.weights.coco_keypoints import COCO_KEYPOINTS
from detkit.weights.torchvision import CONFIGS, convert_keys, without_first_class
from tests.parity.batches import in_order_of, padded_batch, places_in, with_keypoints, with_masks
from tests.parity.conftest import KINKS, TOOLS, AsRun, Ledger

SIZES = [(160, 224), (192, 160), (160, 160)]  # the short side is 160: neither resizes anything
OBJECTS = [0, 1, 12]
OUTPUTS = 91
MODELS = {
    "fasterrcnn_resnet50_fpn": "Faster R-CNN",
    "fasterrcnn_mobilenet_v3_large_320_fpn": "Faster R-CNN",
    "fasterrcnn_resnet50_fpn_v2": "Faster R-CNN",
    "maskrcnn_resnet50_fpn": "Mask R-CNN",
    "maskrcnn_resnet50_fpn_v2": "Mask R-CNN",
    "keypointrcnn_resnet50_fpn": "Keypoint R-CNN",
}
LOSSES = {
    "rpn_objectness": "loss_objectness",
    "rpn_box": "loss_rpn_box_reg",
    "roi_class": "loss_classifier",
    "roi_box": "loss_box_reg",
    "mask": "loss_mask",
    "keypoint": "loss_keypoint",
}
FEW = {  # regions and detections, where each passes several convolutions, which takes long
    "box_batch_size_per_image": ("roi.batch_size_per_image", 32),
    "rpn_post_nms_top_n_test": ("rpn.post_nms_top_k_test", 200),
    "box_score_thresh": ("roi.selection.score_threshold", 0.02),
    "box_detections_per_img": ("roi.selection.max_detections", 10),
}
COUNTS = {4: "four losses", 5: "five losses"}
HALF = 1e-4  # a probability this near to one half may become a pixel or not


# Their parts are those of the others, but for masks without norms; `make parity` compares them too.
PARTS = ("fasterrcnn_resnet50_fpn_v2", "maskrcnn_resnet50_fpn")
EVERY = [pytest.param(name, marks=[pytest.mark.slow] * (name in PARTS)) for name in MODELS]


@pytest.fixture(scope="module", params=EVERY)
def pair(request: pytest.FixtureRequest, as_run: AsRun) -> tuple[str, FasterRCNN, nn.Module]:
    """(name, detkit's, torchvision's) with the same lively random weights: no output is constant, no score is tied."""
    torch.manual_seed(3)
    name: str = request.param
    config = CONFIGS[name]
    assert isinstance(config, TwoStageConfig)
    build = detection.__dict__[name]
    # the reference normalises pixels of 0-255 too, so that both see the same input to the last bit
    pixels = {"image_mean": config.input.mean, "image_std": config.input.std}
    few = FEW if "resnet" in name else {}
    options = {public: value for public, (_, value) in few.items()}
    if config.columns:
        options["num_classes"] = OUTPUTS  # of keypoints torchvision has one class
    reference = build(weights=None, weights_backbone=None, min_size=160, max_size=250, **options, **pixels)
    if "v2" in name:
        enliven_batch_norms(reference)
    else:
        freeze_batch_norms(reference, config.backbone.norm_eps)
    enliven_predictors(reference, 1 if "resnet" in name else 40)  # MobileNet's random features are faint
    changes = ["model.backbone.frozen_stages=0", *(f"model.{field}={value}" for field, value in few.values())]
    tree = override({"model": config.model_dump(mode="json")}, changes)
    categories = replace(Categories.of_names([f"class {i}" for i in range(OUTPUTS - 1)]), keypoints=COCO_KEYPOINTS)
    detector = build_detector(parse_config(tree["model"], type(config)), categories)
    assert isinstance(detector, FasterRCNN)
    detector.load_state_dict(without_first_class(convert_keys(reference.state_dict()), OUTPUTS))
    return name, as_run(detector), reference


def enliven_predictors(reference: nn.Module, lively: float) -> None:
    nn.init.normal_(reference.rpn.head.cls_logits.weight, std=0.1)
    nn.init.normal_(reference.rpn.head.bbox_pred.weight, std=0.02)
    nn.init.normal_(reference.roi_heads.box_predictor.cls_score.weight, std=0.12 * lively)
    nn.init.normal_(reference.roi_heads.box_predictor.bbox_pred.weight, std=0.02 * lively)


def freeze_batch_norms(module: nn.Module, eps: float) -> None:
    """Turns batch norms into frozen ones with random statistics that keep activations of order one."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, eps)
            _set_randomly(frozen, name)
            setattr(module, name, frozen)
        else:
            freeze_batch_norms(child, eps)


@torch.no_grad()
def enliven_batch_norms(module: nn.Module) -> None:
    for name, child in module.named_modules():
        if isinstance(child, nn.BatchNorm2d):
            _set_randomly(child, name.rpartition(".")[2])


def _set_randomly(norm: nn.Module, name: str) -> None:
    norm.weight.uniform_(0.2, 0.5) if name == "bn3" else norm.weight.uniform_(0.8, 1.2)
    norm.bias.normal_(std=0.1)
    norm.running_mean.normal_(std=0.1)
    norm.running_var.uniform_(0.5, 1.5)


def hold_statistics(*modules: nn.Module) -> None:
    """In training too: rounding is amplified by the statistics of a batch."""
    for module in modules:
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.eval()


def make_batch(detector: FasterRCNN) -> Batch:
    batch = padded_batch(SIZES, OBJECTS, OUTPUTS - 1, corner=90, side=60)
    if "mask" in detector.branches:
        batch = with_masks(batch)
    if "keypoint" in detector.branches:
        batch = with_keypoints(batch, len(COCO_KEYPOINTS.names))
    return batch


def as_torchvision(batch: Batch) -> tuple[list[Tensor], list[dict[str, Any]]]:
    assert batch.targets
    images, targets = [], []
    for image, target, (height, width) in zip(batch.images, batch.targets, SIZES, strict=True):
        objects = target.objects
        columns: dict[str, Any] = {"boxes": objects.boxes, "labels": objects.labels + 1}
        if isinstance(objects.masks, MaskCrops):
            columns["masks"] = objects.masks.dense((height, width)).to(torch.uint8)
        if objects.keypoints is not None:
            columns["keypoints"] = objects.keypoints
        images.append(image[:, :height, :width].float())
        targets.append(columns)
    return images, targets


def test_detections(pair: tuple[str, FasterRCNN, nn.Module], compare: Ledger, way: str) -> None:
    name, detector, reference = pair
    batch = make_batch(detector)
    detector.eval(), reference.eval()
    with torch.no_grad():
        actual = detector.postprocess(detector(batch), batch.infos)
        expected = reference(as_torchvision(batch)[0])
    assert min(len(detections) for detections in actual) >= 10, "too few detections to compare"
    pairs = [
        in_order_of(detections, public["boxes"], public["labels"] - 1)
        for detections, public in zip(actual, expected, strict=True)
    ]
    enter = partial(compare, MODELS[name], f"torchvision {name}")
    enter("detections: boxes (px)", [(boxes, e["boxes"]) for (boxes, _), e in zip(pairs, expected, strict=True)])
    enter("detections: scores", [(scores, e["scores"]) for (_, scores), e in zip(pairs, expected, strict=True)])
    if "mask" in detector.branches:
        enter("detections: masks (part of pixels)", list(map(masks_of, actual, expected)))
    if "keypoint" in detector.branches:
        places, logits = zip(*map(keypoints_of, actual, expected), strict=True)
        limit = 2e-4 if way == TOOLS else 1e-4  # places are counted from the corners of boxes, which differ as well
        enter("detections: keypoints (px)", list(places), limit=limit)
        enter("detections: logits of keypoints", list(logits))


def masks_of(detections: Detections, public: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The part of the picture that differs in each mask, and zeros; pixels that may be either do not count."""
    assert isinstance(detections.objects.masks, EncodedMasks)
    order = places_in(detections, public["boxes"], public["labels"] - 1)
    masks, soft = torch.from_numpy(detections.objects.masks[order].dense()), public["masks"][:, 0]
    assert masks.shape == soft.shape
    assert 0.002 < masks.float().mean() < 0.9, "masks with nothing or everything in them compare nothing"
    other = (masks != (soft >= 0.5)) & ((soft - 0.5).abs() > HALF)
    assert (masks != (soft >= 0.5)).float().mean() < HALF
    parts = other.float().mean(dim=(1, 2))
    return parts, torch.zeros_like(parts)


def keypoints_of(
    detections: Detections, public: dict[str, Tensor]
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    order = places_in(detections, public["boxes"], public["labels"] - 1)
    keypoints = detections.objects.keypoints
    assert keypoints is not None
    assert (keypoints[..., 2] == 2).all()
    scores = detections.objects.extra[KEYPOINT_SCORES][order]
    return (keypoints[order, :, :2], public["keypoints"][..., :2]), (scores, public["keypoints_scores"])


def test_losses_and_gradients(
    pair: tuple[str, FasterRCNN, nn.Module], compare: Ledger, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, detector, reference = pair
    # both draw their samples with randperm: without chance both take the first ones
    monkeypatch.setattr(torch, "randperm", lambda count, device=None, **_: torch.arange(count, device=device))
    batch = make_batch(detector)
    detector.train(), reference.train()
    hold_statistics(detector, reference)
    losses = detector.criterion(detector(batch), batch.targets)
    expected = reference(*as_torchvision(batch))
    assert len(losses) == len(expected)
    enter = partial(compare, MODELS[name], f"torchvision {name}")
    enter(COUNTS[len(losses)], [(losses[key], expected[LOSSES[key]]) for key in losses])

    detector.zero_grad(), reference.zero_grad()
    sum(losses.values()).backward()
    sum(expected.values()).backward()
    expected_grads = convert_keys({key: p.grad for key, p in reference.named_parameters()})
    expected_grads = without_first_class(expected_grads, OUTPUTS)
    grads = {key: p.grad for key, p in detector.named_parameters()}
    assert grads.keys() == expected_grads.keys()
    scale = {key: max(1.0, grad.abs().max().item()) for key, grad in expected_grads.items()}
    pairs = [(grads[key] / scale[key], expected_grads[key] / scale[key]) for key in scale]
    enter("gradients, all parameters", pairs, limit=KINKS if way == TOOLS else 1e-4)
