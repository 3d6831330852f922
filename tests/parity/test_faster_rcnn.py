"""Faster R-CNN against torchvision's, from the same random weights."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.ops import FrozenBatchNorm2d

from detkit.detectors.faster_rcnn import FasterRCNN, build_faster_rcnn
from detkit.structures import Batch, Categories
from detkit.weights.torchvision import CONFIGS, convert_keys
from tests.parity.batches import in_order_of, padded_batch
from tests.parity.conftest import KINKS, TOOLS, AsRun, Ledger

SIZES = [(256, 320), (288, 256), (256, 256)]  # the short side is 256: neither resizes anything
OBJECTS = [0, 1, 12]
CATEGORIES = Categories.of_names([f"class {i}" for i in range(90)])
MODELS = ["fasterrcnn_resnet50_fpn", "fasterrcnn_mobilenet_v3_large_320_fpn"]


@pytest.fixture(scope="module", params=MODELS)
def pair(request: pytest.FixtureRequest, as_run: AsRun) -> tuple[str, FasterRCNN, nn.Module]:
    """(name, detkit's, torchvision's) with the same lively random weights: no output is constant, no score is tied."""
    torch.manual_seed(3)
    config = CONFIGS[request.param]
    eps = config.backbone.norm_eps
    build = detection.__dict__[request.param]
    # the reference normalises pixels of 0-255 too, so that both see the same input to the last bit
    pixels = {"image_mean": config.input.mean, "image_std": config.input.std}
    reference = build(weights=None, weights_backbone=None, min_size=256, max_size=400, **pixels)
    freeze_batch_norms(reference, eps)
    nn.init.normal_(reference.rpn.head.cls_logits.weight, std=0.1)
    nn.init.normal_(reference.rpn.head.bbox_pred.weight, std=0.02)
    lively = 1 if "resnet" in request.param else 40  # MobileNet's random features are faint
    nn.init.normal_(reference.roi_heads.box_predictor.cls_score.weight, std=0.12 * lively)
    nn.init.normal_(reference.roi_heads.box_predictor.bbox_pred.weight, std=0.02 * lively)
    backbone = config.backbone.model_copy(update={"frozen_stages": 0})
    detector = build_faster_rcnn(config.model_copy(update={"backbone": backbone}), CATEGORIES)
    detector.load_state_dict(convert_keys(reference.state_dict()))
    return request.param, as_run(detector), reference


def freeze_batch_norms(module: nn.Module, eps: float) -> None:
    """Turns batch norms into frozen ones with random statistics that keep activations of order one."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, eps)
            frozen.weight.uniform_(0.2, 0.5) if name == "bn3" else frozen.weight.uniform_(0.8, 1.2)
            frozen.bias.normal_(std=0.1)
            frozen.running_mean.normal_(std=0.1)
            frozen.running_var.uniform_(0.5, 1.5)
            setattr(module, name, frozen)
        else:
            freeze_batch_norms(child, eps)


def make_batch() -> Batch:
    return padded_batch(SIZES, OBJECTS, len(CATEGORIES), corner=150, side=90)


def as_torchvision(batch: Batch) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    assert batch.targets
    images = [image[:, :h, :w].float() for image, (h, w) in zip(batch.images, SIZES, strict=True)]
    return images, [{"boxes": target.objects.boxes, "labels": target.objects.labels + 1} for target in batch.targets]


def test_detections(pair: tuple[str, FasterRCNN, nn.Module], compare: Ledger) -> None:
    name, detector, reference = pair
    batch = make_batch()
    detector.eval(), reference.eval()
    with torch.no_grad():
        actual = detector.postprocess(detector(batch), batch.infos)
        expected = reference(as_torchvision(batch)[0])
    assert min(len(detections) for detections in actual) >= 10, "too few detections to compare"
    pairs = [
        in_order_of(detections, public["boxes"], public["labels"] - 1)
        for detections, public in zip(actual, expected, strict=True)
    ]
    enter = partial(compare, "Faster R-CNN", f"torchvision {name}")
    enter("detections: boxes (px)", [(boxes, e["boxes"]) for (boxes, _), e in zip(pairs, expected, strict=True)])
    enter("detections: scores", [(scores, e["scores"]) for (_, scores), e in zip(pairs, expected, strict=True)])


def test_losses_and_gradients(
    pair: tuple[str, FasterRCNN, nn.Module], compare: Ledger, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, detector, reference = pair
    # both draw their samples with randperm: without chance both take the first ones
    monkeypatch.setattr(torch, "randperm", lambda count, device=None, **_: torch.arange(count, device=device))
    batch = make_batch()
    detector.train(), reference.train()
    losses = detector.criterion(detector(batch), batch.targets)
    expected = reference(*as_torchvision(batch))
    names = {
        "rpn_objectness": "loss_objectness",
        "rpn_box": "loss_rpn_box_reg",
        "roi_class": "loss_classifier",
        "roi_box": "loss_box_reg",
    }
    enter = partial(compare, "Faster R-CNN", f"torchvision {name}")
    enter("four losses", [(losses[key], expected[public]) for key, public in names.items()])

    detector.zero_grad(), reference.zero_grad()
    sum(losses.values()).backward()
    sum(expected.values()).backward()
    expected_grads = convert_keys({key: p.grad for key, p in reference.named_parameters()})
    grads = {key: p.grad for key, p in detector.named_parameters()}
    assert grads.keys() == expected_grads.keys()
    scale = {key: max(1.0, grad.abs().max().item()) for key, grad in expected_grads.items()}
    pairs = [(grads[key] / scale[key], expected_grads[key] / scale[key]) for key in scale]
    enter("gradients, all parameters", pairs, limit=KINKS if way == TOOLS else 1e-4)
