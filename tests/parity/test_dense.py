"""RetinaNet and FCOS against torchvision's, from the same random weights."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection

from detkit.config import override, parse_config
from detkit.detectors.build import build_detector
from detkit.detectors.detector import AnyDetector
from detkit.nn.selection import MIN_SIZE
from detkit.ops.boxes import valid_boxes
from detkit.structures import Batch, Categories
from detkit.weights.torchvision import CONFIGS, convert_keys
from tests.parity.batches import in_order_of, padded_batch
from tests.parity.conftest import KINKS, TOOLS, AsRun, Ledger
from tests.parity.test_faster_rcnn import freeze_batch_norms

SIZES = [(160, 224), (192, 160), (160, 160)]  # the short side is 160: neither resizes anything
CATEGORIES = Categories.of_names([f"class {i}" for i in range(91)])  # torchvision's first output is a class as well
DETECTORS = {
    "retinanet_resnet50_fpn": "RetinaNet",
    "retinanet_resnet50_fpn_v2": "RetinaNet",
    "fcos_resnet50_fpn": "FCOS",
}
ALL = 3000  # detections: none is cut, so that those without area take no place from others
LOSSES = {
    "retinanet_class": "classification",
    "retinanet_box": "bbox_regression",
    "fcos_class": "classification",
    "fcos_box": "bbox_regression",
    "fcos_centerness": "bbox_ctrness",
}


@pytest.fixture(scope="module", params=DETECTORS)
def pair(request: pytest.FixtureRequest, as_run: AsRun) -> tuple[str, AnyDetector, nn.Module]:
    """(name, detkit's, torchvision's) with the same lively random weights: no output is constant, no score is tied."""
    torch.manual_seed(3)
    config = CONFIGS[request.param]
    pixels = {"image_mean": config.input.mean, "image_std": config.input.std}
    build = detection.__dict__[request.param]
    limits = {"min_size": 160, "max_size": 250, "detections_per_img": ALL}
    reference = build(weights=None, weights_backbone=None, **limits, **pixels)
    freeze_batch_norms(reference, config.backbone.norm_eps)
    enliven_head(reference.head)
    tree = config.model_dump(mode="json")
    changes = ["model.backbone.frozen_stages=0", "model.backbone.norm=frozen_bn"]
    tree = override({"model": tree}, [*changes, f"model.head.selection.max_detections={ALL}"])
    detector = build_detector(parse_config(tree["model"], type(config)), CATEGORIES)
    detector.load_state_dict(convert_keys(reference.state_dict()))
    return request.param, as_run(detector), reference


@torch.no_grad()
def enliven_head(head: nn.Module) -> None:
    """Fresh towers of small weights pass nothing on; these do, and a part of the scores is above the threshold."""
    for tower in (head.classification_head, head.regression_head):
        for conv in tower.conv.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.kaiming_normal_(conv.weight)
    nn.init.normal_(head.classification_head.cls_logits.weight, std=0.03)
    nn.init.constant_(head.classification_head.cls_logits.bias, -3.0)
    nn.init.normal_(head.regression_head.bbox_reg.weight, std=0.0005)
    if hasattr(head.regression_head, "bbox_ctrness"):
        nn.init.constant_(head.regression_head.bbox_reg.bias, 3.0)  # distances that are not negative
        nn.init.normal_(head.regression_head.bbox_ctrness.weight, std=0.03)


def make_batch() -> Batch:
    return padded_batch(SIZES, [0, 1, 12], len(CATEGORIES), corner=90, side=60)


def as_torchvision(batch: Batch) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    assert batch.targets
    images = [image[:, :h, :w].float() for image, (h, w) in zip(batch.images, SIZES, strict=True)]
    return images, [{"boxes": target.objects.boxes, "labels": target.objects.labels} for target in batch.targets]


@torch.no_grad()
def test_outputs_and_detections(pair: tuple[str, AnyDetector, nn.Module], compare: Ledger) -> None:
    name, detector, reference = pair
    batch = make_batch()
    detector.eval(), reference.eval()
    heads: list[dict[str, Tensor]] = []
    hook = reference.head.register_forward_hook(lambda _, __, output: heads.append(output))
    expected = reference(as_torchvision(batch)[0])
    hook.remove()
    outputs = detector(batch)
    boxes = outputs.boxes if DETECTORS[name] == "FCOS" else outputs.deltas
    enter = partial(compare, DETECTORS[name], f"torchvision {name}")
    pairs = [(torch.cat(outputs.logits, dim=1), heads[0]["cls_logits"]), (boxes, heads[0]["bbox_regression"])]
    if DETECTORS[name] == "FCOS":
        pairs.append((torch.cat(outputs.centerness, dim=1), heads[0]["bbox_ctrness"]))
    enter("outputs of the head", pairs)
    actual = detector.postprocess(outputs, batch.infos)
    assert min(len(detections) for detections in actual) >= 10, "too few detections to compare"
    # torchvision returns boxes that lie beside the image, cut to nothing; detkit does not
    expected = [{key: value[valid_boxes(e["boxes"], MIN_SIZE)] for key, value in e.items()} for e in expected]
    same = [in_order_of(mine, other["boxes"], other["labels"]) for mine, other in zip(actual, expected, strict=True)]
    enter("detections: boxes (px)", [(mine, e["boxes"]) for (mine, _), e in zip(same, expected, strict=True)])
    enter("detections: scores", [(scores, e["scores"]) for (_, scores), e in zip(same, expected, strict=True)])


def test_losses_and_gradients(pair: tuple[str, AnyDetector, nn.Module], compare: Ledger, way: str) -> None:
    name, detector, reference = pair
    batch = make_batch()
    detector.train(), reference.train()
    losses = detector.criterion(detector(batch), batch.targets)
    expected = reference(*as_torchvision(batch))
    enter = partial(compare, DETECTORS[name], f"torchvision {name}")
    assert len(losses) == len(expected)
    public = {key: expected[LOSSES[key]] for key in losses}
    size = {key: max(1.0, loss.item()) for key, loss in public.items()}  # that of an image without objects is large
    enter("losses", [(losses[key] / size[key], public[key] / size[key]) for key in losses])

    detector.zero_grad(), reference.zero_grad()
    sum(losses.values()).backward()
    sum(expected.values()).backward()
    expected_grads = convert_keys({key: p.grad for key, p in reference.named_parameters()})
    grads = {key: p.grad for key, p in detector.named_parameters()}
    assert grads.keys() == expected_grads.keys()
    scale = {key: max(1.0, grad.abs().max().item()) for key, grad in expected_grads.items()}
    pairs = [(grads[key] / scale[key], expected_grads[key] / scale[key]) for key in scale]
    enter("gradients, all parameters", pairs, limit=KINKS if way == TOOLS else 1e-4)
