"""The detectors that torchvision has beside its own: the same weights, the same input, in turn.

python benchmarks/torchvision_detectors.py [--repeats N] [--models NAME ...] [--objects N] [--amp bf16]

Both train with the same frozen or learned batch norms, and all weights. Each runs in a process of its own, detkit as
its tools run it, on CUDA if there is one. Objects of Mask R-CNN have masks. The last table is what the peak of a
process's memory grows by (on CUDA: of what is allocated there).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torchvision
from batches import random_batch
from timing import Remote, head, row
from torch import Tensor, nn
from torchvision.models import detection

from detkit.accelerate import accelerate
from detkit.detectors.build import build_detector
from detkit.detectors.detector import Detector
from detkit.engine.amp import AMP, autocast
from detkit.structures import Batch, Categories, MaskCrops
from detkit.weights.torchvision import CONFIGS, convert_keys, without_first_class

CLASSES = 90  # as torchvision counts them: 91 with the background


@dataclass(frozen=True)
class Case:
    size: tuple[int, int]  # h, w of its images
    batch: int  # images of a training step


CASES = {
    "fasterrcnn_resnet50_fpn": Case((800, 1066), 2),
    "fasterrcnn_mobilenet_v3_large_320_fpn": Case((320, 426), 4),
    "maskrcnn_resnet50_fpn": Case((800, 1066), 2),
    "retinanet_resnet50_fpn": Case((800, 1066), 2),
    "fcos_resnet50_fpn": Case((800, 1066), 2),
    "ssd300_vgg16": Case((300, 300), 4),
    "ssdlite320_mobilenet_v3_large": Case((320, 320), 4),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each, after one that is not counted")
    parser.add_argument("--models", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--objects", type=int, default=8, help="of each image")
    parser.add_argument("--amp", choices=["off", "bf16"], default="off", help="of detkit's side")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    memory = []
    head(["detkit", "torchvision", "torchvision / detkit"], ["torchvision"], device, args.repeats)
    for model in args.models:
        for training in (False, True):
            ways = {
                "detkit": Remote(detkit_work, model, training, args.objects, args.amp, device, as_tools=True),
                "torchvision": Remote(torchvision_work, model, training, args.objects, device),
            }
            case = CASES[model]
            work = f"training step, {case.batch}" if training else "inference, 1"
            row(f"{model}, {work} x {case.size[0]} x {case.size[1]}", ways, args.repeats, device)
            peaks = [str(way.end()) for way in ways.values()]
            if training:
                memory.append(f"| {model} | {' | '.join(peaks)} |")
    print("\n| peak memory of a training step, MiB | detkit | torchvision |\n|---|---|---|")
    print("\n".join(memory))


def detkit_work(model: str, training: bool, objects: int, amp: AMP, device: torch.device) -> Callable[[], None]:
    detector = accelerate(build_pair(model, device)[0], constant=not training)
    return partial(train if training else infer, detector, make_batch(model, detector, training, objects, device), amp)


def torchvision_work(model: str, training: bool, objects: int, device: torch.device) -> Callable[[], None]:
    detector, theirs = build_pair(model, device)
    batch = make_batch(model, detector, training, objects, device)
    if training:
        return partial(train_theirs, theirs, pictures(batch), targets_of(batch))
    return partial(infer_theirs, theirs, pictures(batch))


def build_pair(model: str, device: torch.device) -> tuple[Detector, nn.Module]:
    """detkit's and torchvision's with the same random weights, all of them trained."""
    torch.manual_seed(0)
    config = CONFIGS[model]
    frozen = "resnet" in model
    options = {"norm_layer": torchvision.ops.FrozenBatchNorm2d} if frozen else {}
    theirs: nn.Module = getattr(detection, model)(weights=None, weights_backbone=None, **options).to(device)
    if model.startswith("ssd"):
        enliven(theirs, CASES[model].size, device)
    elif model.startswith("maskrcnn"):
        nn.init.constant_(theirs.roi_heads.box_predictor.cls_score.bias[1:2], 9.0)  # type: ignore[union-attr,arg-type]
    elif not model.startswith("fasterrcnn"):
        enliven_dense(theirs, CASES[model].size, device)
    change: dict[str, object] = {"frozen_stages": 0}
    if not model.startswith("ssd"):
        change |= {"norm": "frozen_bn" if frozen else "bn", "norm_eps": 1e-5}
    backbone = config.backbone.model_copy(update=change)
    ours = build_detector(
        config.model_copy(update={"backbone": backbone}), Categories.of_names([str(i) for i in range(CLASSES)])
    )
    ours.load_state_dict(without_first_class(convert_keys(theirs.state_dict()), CLASSES + 1))
    return ours.to(device), theirs


@torch.no_grad()
def enliven(model: Any, size: tuple[int, int], device: torch.device) -> None:
    """Statistics of batch norms and scores as of a trained SSD: few candidates above the threshold, no two tied."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train().backbone(torch.randn(8, 3, *size, device=device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for level in model.head.classification_head.module_list:
        conv = [module for module in level.modules() if isinstance(module, nn.Conv2d)][-1]
        nn.init.normal_(conv.weight, std=2 / (conv.in_channels * conv.kernel_size[0] ** 2) ** 0.5)
        conv.bias.view(-1, CLASSES + 1)[:, 0] = 9.0


@torch.no_grad()
def enliven_dense(model: Any, size: tuple[int, int], device: torch.device) -> None:
    """Logits as of a trained detector: few above the threshold, whatever the random weights before them give."""
    last = model.head.classification_head.cls_logits
    logits: list[Tensor] = []
    hook = last.register_forward_hook(lambda _, __, outputs: logits.append(outputs - last.bias[:, None, None]))
    model.eval()([torch.rand(3, *size, device=device)])
    hook.remove()
    last.weight /= torch.cat([level.flatten() for level in logits]).std()
    last.bias.fill_(-6.5)


def make_batch(model: str, ours: Detector[Any], training: bool, objects: int, device: torch.device) -> Batch:
    case = CASES[model]
    count, masks = case.batch if training else 1, model.startswith("maskrcnn")
    return random_batch([case.size] * count, objects, CLASSES, stride=ours.input.stride, masks=masks).to(device)


@torch.inference_mode()
def infer(detector: Detector, batch: Batch, amp: AMP) -> None:
    detector.eval()
    with autocast(batch.images.device, amp):
        outputs = detector(batch)
    detector.postprocess(outputs, batch.infos)


@torch.inference_mode()
def infer_theirs(model: nn.Module, images: list[Tensor]) -> None:
    model.eval()(images)


def train(detector: Detector, batch: Batch, amp: AMP) -> None:
    assert batch.targets
    detector.train()
    with autocast(batch.images.device, amp):
        outputs = detector(batch)
    backward(detector, detector.criterion(outputs, batch.targets))


def targets_of(batch: Batch) -> list[dict[str, Tensor]]:
    """In torchvision's form, with masks uint8 `[N, H, W]` where there are masks."""
    targets = []
    for target, info in zip(batch.targets or (), batch.infos, strict=True):
        objects = target.objects
        targets.append({"boxes": objects.boxes, "labels": objects.labels + 1})
        if isinstance(objects.masks, MaskCrops):
            targets[-1]["masks"] = objects.masks.dense(info.input_size).byte()
    return targets


def train_theirs(model: nn.Module, images: list[Tensor], targets: list[dict[str, Tensor]]) -> None:
    backward(model, model.train()(images, targets))


def pictures(batch: Batch) -> list[Tensor]:
    return [image[:, :h, :w] / 255 for image, (h, w) in zip(batch.images, batch.sizes().tolist(), strict=True)]


def backward(model: nn.Module, losses: dict[str, Tensor]) -> None:
    torch.stack(list(losses.values())).sum().backward()
    model.zero_grad(set_to_none=True)


if __name__ == "__main__":
    main()
