"""YOLOX beside its authors' own code, from the same random weights.

DETKIT_YOLOX names a clone of github.com/Megvii-BaseDetection/YOLOX (Apache-2.0), into which
`pip install --no-deps --target CLONE loguru psutil` puts what its modules import. Losses are relative where
they are above 1.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detkit.detectors.yolox import YOLOX, build_yolox
from detkit.ops.boxes import xyxy_to_cxcywh
from detkit.structures import Batch, Categories
from detkit.weights.yolox import SIZES, convert_keys, yolox_config
from tests.parity.batches import padded_batch
from tests.parity.conftest import TOOLS, AsRun, Ledger

NUM_CLASSES = 5
PICTURES = [(160, 192), (128, 192), (160, 128)]
OBJECTS = [0, 1, 12]
LOSSES = {"yolox_box": "iou_loss", "yolox_object": "conf_loss", "yolox_class": "cls_loss", "yolox_l1": "l1_loss"}
REFERENCE = "the authors' code"
Pair = tuple[str, YOLOX, Any]


@pytest.fixture(scope="module")
def authors() -> Iterator[Any]:
    """Their package `yolox.models`."""
    folder = os.environ.get("DETKIT_YOLOX")
    if not folder:
        pytest.skip("DETKIT_YOLOX is not set: a clone of github.com/Megvii-BaseDetection/YOLOX")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield import_module("yolox.models")


@pytest.fixture(scope="module", params=["yolox_nano", "yolox_tiny", "yolox_s"])
def pair(request: pytest.FixtureRequest, authors: Any, as_run: AsRun) -> Pair:
    torch.manual_seed(1)
    depth, width, depthwise, _ = SIZES[request.param]
    reference = authors.YOLOX(
        authors.YOLOPAFPN(depth, width, depthwise=depthwise), authors.YOLOXHead(NUM_CLASSES, width, depthwise=depthwise)
    )
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):  # as their `Exp.get_model` sets them
            module.eps, module.momentum = 1e-3, 0.03
    reference.head.use_l1 = True
    config = yolox_config(request.param)
    config = config.model_copy(update={"head": config.head.model_copy(update={"l1_after_images": 0})})
    detector = build_yolox(config, Categories.of_names([f"class {i}" for i in range(NUM_CLASSES)]))
    enliven(reference, images_of(detector, make_batch()))
    detector.load_state_dict(convert_keys(reference.state_dict()))
    return request.param, as_run(detector), reference


@torch.no_grad()
def enliven(reference: Any, images: Tensor) -> None:
    """Random numbers that let pictures through all layers, and predictions that differ, of boxes of about 32 px."""
    for name, module in reference.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=(1.5 / module.weight[0].numel()) ** 0.5)
        elif isinstance(module, nn.BatchNorm2d):
            spread = 1e4 if "stem." in name else 1.0  # of pictures from 0 to 255
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5 * spread, 1.5 * spread)
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.normal_(module.bias, std=0.1)
    scale_predictions(reference.eval(), images)


@torch.no_grad()
def scale_predictions(reference: Any, images: Tensor) -> None:
    head, hooks = reference.head, []
    for level, stride in enumerate(head.strides):
        sides = math.log(32 / stride)
        for layer, bias, spread in (
            (head.cls_preds[level], [-1.0] * NUM_CLASSES, 0.7),
            (head.obj_preds[level], [-1.0], 0.7),
            (head.reg_preds[level], [0.5, 0.5, sides, sides], 0.4),
        ):
            layer.bias.zero_()
            hooks.append(layer.register_forward_hook(partial(set_outputs, torch.tensor(bias), spread)))
    reference(images)
    for hook in hooks:
        hook.remove()


def set_outputs(mean: Tensor, spread: float, layer: nn.Module, _: object, outputs: Tensor) -> None:
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    deviation, middle = torch.std_mean(outputs, dim=(0, 2, 3))
    factor = spread / deviation
    layer.weight *= factor[:, None, None, None]
    layer.bias.copy_(mean - middle * factor)


def make_batch() -> Batch:
    return padded_batch(PICTURES, OBJECTS, NUM_CLASSES, corner=70, side=50)


def images_of(detector: YOLOX, batch: Batch) -> Tensor:
    return detector.input(batch.images, batch.sizes())


def labels_of(batch: Batch) -> Tensor:
    """`[B, 12, 5]` class and cx, cy, w, h; rows of zeros are none."""
    labels = torch.zeros(len(batch), max(OBJECTS), 5)
    for row, target in zip(labels, batch.targets or (), strict=True):
        objects = target.objects
        row[: len(objects), 0] = objects.labels
        row[: len(objects), 1:] = xyxy_to_cxcywh(objects.boxes)
    return labels


@torch.no_grad()
def test_outputs(pair: Pair, compare: Ledger) -> None:
    name, detector, reference = pair
    images = images_of(detector, make_batch())
    detector.eval(), reference.eval()
    outputs, expected = detector.network(images, make_batch().sizes()), reference(images)
    scale = max(images.shape[2:])
    enter = partial(compare, name, REFERENCE)
    enter("all boxes (parts of the picture)", [(xyxy_to_cxcywh(outputs.decoded()) / scale, expected[..., :4] / scale)])
    probabilities = torch.cat([outputs.objectness[..., None], outputs.logits], dim=2).sigmoid()
    assert expected[..., 4:].std(dim=1).min() > 0.05, "the numbers hardly differ from cell to cell"
    enter("objectness and classes", [(probabilities, expected[..., 4:])])


def set_norms(network: nn.Module, training: bool) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train(training)


@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_losses_and_gradients(pair: Pair, compare: Ledger, way: str, statistics: str) -> None:
    if statistics == "batch" and way == TOOLS:
        pytest.skip("with the statistics of the batch, rounding in another order is amplified")
    name, detector, reference = pair
    batch = make_batch()
    images = images_of(detector, batch)
    if statistics == "batch":
        set_norms(reference.eval(), True)
        scale_predictions(reference, images)
        detector.load_state_dict(convert_keys(reference.state_dict()))
    detector.train(), reference.train()
    for network in (detector, reference):
        set_norms(network, statistics == "batch")
    assert batch.targets
    losses = detector.criterion(detector.network(images, batch.sizes()), batch.targets)
    expected = reference(images, labels_of(batch))
    assert expected["num_fg"] > 1.3, "most objects have one prediction: no test of the assignment"
    enter = partial(compare, name, f"{REFERENCE}, norms of {statistics} statistics")
    assert losses.keys() == LOSSES.keys()
    for own, public in LOSSES.items():
        size = max(1.0, expected[public].item())
        enter(f"loss {own.removeprefix('yolox_')}", [(losses[own] / size, expected[public] / size)])

    detector.zero_grad(), reference.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    expected["total_loss"].backward()
    expected_grads = convert_keys({key: p.grad for key, p in reference.named_parameters()})
    grads = {key: p.grad for key, p in detector.named_parameters()}
    assert grads.keys() == expected_grads.keys()
    pairs = []
    for key, gradient in grads.items():
        assert gradient is not None
        size = max(1.0, expected_grads[key].abs().max().item())
        pairs.append((gradient / size, expected_grads[key] / size))
    enter("gradients, all parameters", pairs)
