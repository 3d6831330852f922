"""YOLOs of other packages, with random weights, and detkit's with the same ones.

* YOLOX's authors (Apache-2.0): DETKIT_YOLOX=CLONE, of github.com/Megvii-BaseDetection/YOLOX, into which
  `pip install --no-deps --target CLONE loguru psutil` puts what it imports.
* LibreYOLO (MIT): `pip install --no-deps --target FOLDER libreyolo`, and DETKIT_LIBREYOLO=FOLDER.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from detkit.detectors.build import build_detector
from detkit.detectors.detector import Detector
from detkit.detectors.yolov4 import YOLOv4Config
from detkit.detectors.yolov7 import YOLOv7, YOLOv7Config
from detkit.nn.backbones.darknet import conv_blocks
from detkit.weights.class_names import coco_categories
from detkit.weights.darknet import load_official
from detkit.weights.yolox import convert_keys, yolox_config

FOLDERS = {"YOLOX's authors": "DETKIT_YOLOX", "LibreYOLO": "DETKIT_LIBREYOLO"}
SCORE, OVERLAP = 0.01, 0.65  # thresholds of a detection, for all
# a few hundred cells are above the threshold: logits of normal distribution around these
OBJECTNESS, CLASS = -6.0, -2.0


@dataclass(frozen=True)
class Pair:
    """detkit's detector and a peer with the same weights.

    detect  images `[B, 3, S, S]`, normalised -> detections, of the peer
    losses  images and `[B, M, 5]` class, cx, cy, w, h -> the sum of the peer's losses; None: it has none
    """

    detector: Detector[Any]
    peer: Any
    detect: Callable[[Tensor], object]
    losses: Callable[[Tensor, Tensor], Tensor] | None


def is_there(peer: str) -> bool:
    return bool(os.environ.get(FOLDERS[peer]))


def load(peer: str, module: str) -> Any:
    """A module of a peer's package."""
    folder = os.environ[FOLDERS[peer]]
    if folder not in sys.path:
        sys.path.append(folder)  # the last: what detkit has installed itself comes first
    return import_module(module)


def build_pair(peer: str, model: str, size: int, device: torch.device) -> Pair:
    torch.manual_seed(0)
    return BUILDERS[peer, model](size, device)


def authors_yolox(size: int, device: torch.device) -> Pair:
    models, boxes = load("YOLOX's authors", "yolox.models"), load("YOLOX's authors", "yolox.utils.boxes")
    peer = models.YOLOX(models.YOLOPAFPN(1 / 3, 0.5), models.YOLOXHead(80, 0.5)).to(device)
    for module in peer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps, module.momentum = 1e-3, 0.03
    enliven_yolox(peer, size, device)
    return Pair(
        detkits_yolox(peer, device),
        peer,
        lambda images: boxes.postprocess(peer(images), 80, SCORE, OVERLAP),
        lambda images, labels: peer(images, labels)["total_loss"],
    )


def libre_yolox(size: int, device: torch.device) -> Pair:
    peer = load("LibreYOLO", "libreyolo.models.yolox.nn").LibreYOLOXModel("s").to(device)
    postprocess = load("LibreYOLO", "libreyolo.postprocess.yolox").postprocess
    enliven_yolox(peer, size, device)
    return Pair(
        detkits_yolox(peer, device),
        peer,
        lambda images: postprocess(peer(images), SCORE, OVERLAP, size, (size, size)),
        lambda images, labels: peer(images, labels)["total_loss"],
    )


def libre_yolov4(size: int, device: torch.device) -> Pair:
    darknet = load("LibreYOLO", "libreyolo.models.darknet")
    postprocess = load("LibreYOLO", "libreyolo.postprocess.darknet_yolo").postprocess
    peer = darknet.build_darknet("yolov4").to(device)
    last = [peer.layers[spec.layer_index - 1].conv for spec in peer.detections]
    enliven(peer, last, size, device)
    for conv in last:
        set_biases(conv)
    detector = build_detector(YOLOv4Config(), coco_categories()).to(device)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "yolov4.weights"
        path.write_bytes(darknet.save_darknet_weights(peer))
        load_official(detector, path)
    return Pair(
        detector,
        peer,
        lambda images: postprocess(peer(images), peer.detections, SCORE, OVERLAP, size, (size, size)),
        None,
    )


def libre_yolov7(size: int, device: torch.device) -> Pair:
    """Its max pools of 5, 9 and 13 cells come one after the other; those of darknet, and detkit's, are of one map."""
    peer = load("LibreYOLO", "libreyolo.models.yolo7.net").YOLOv7Model(80).to(device)
    postprocess = load("LibreYOLO", "libreyolo.postprocess.yolo7").postprocess
    heads = peer.layers[-1].heads
    enliven(peer, [each.head_conv for each in heads], size, device)
    for each in heads:
        set_biases(each.head_conv)
    detector = build_detector(YOLOv7Config(), coco_categories()).to(device)
    copy_yolov7(peer, detector)
    return Pair(
        detector,
        peer,
        lambda images: postprocess(peer(images), peer.anchors, peer.strides, 80, SCORE, OVERLAP, size, (size, size)),
        lambda images, labels: peer(images, labels)["total_loss"],
    )


BUILDERS: dict[tuple[str, str], Callable[[int, torch.device], Pair]] = {
    ("YOLOX's authors", "YOLOX-s"): authors_yolox,
    ("LibreYOLO", "YOLOX-s"): libre_yolox,
    ("LibreYOLO", "YOLOv4"): libre_yolov4,
    ("LibreYOLO", "YOLOv7"): libre_yolov7,
}


def detkits_yolox(peer: nn.Module, device: torch.device) -> Detector[Any]:
    detector = build_detector(yolox_config("yolox_s"), coco_categories()).to(device)
    detector.load_state_dict(convert_keys(peer.state_dict()))
    return detector


@torch.no_grad()
def copy_yolov7(peer: Any, detector: YOLOv7) -> None:
    """LibreYOLO's weights, whose layers follow one another as darknet's do, but for the last ones and the pools."""
    neck: Any = detector.neck
    head: Any = detector.head
    blocks = [*conv_blocks(detector.backbone), *conv_blocks(neck.pyramid)]
    for reduce, lateral, body in zip(neck.reduce, neck.lateral, neck.top_down, strict=True):
        blocks += [reduce, lateral, *conv_blocks(body)]
    for down, body in zip(neck.down, neck.bottom_up, strict=True):
        blocks += [*conv_blocks(down), *conv_blocks(body)]
    for block in head.convs:
        blocks += [block.large, block.small]
    for own, public in zip(blocks, list(libre_convs(peer.layers)), strict=True):
        own.conv.load_state_dict(public.conv.state_dict())
        own.norm.load_state_dict(public.bn.state_dict())
    for level, public in enumerate(peer.layers[-1].heads):
        head.predict[level].load_state_dict(public.head_conv.state_dict())
        head.added[level].copy_(public.implicit_a.implicit[0])
        head.factors[level].copy_(public.implicit_m.implicit[0])


def libre_convs(layers: Iterable[Any]) -> Iterable[Any]:
    for layer in layers:
        match type(layer).__name__:
            case "Conv":
                yield layer
            case "RepConv":
                yield from (layer.conv1, layer.conv2)
            case "SPPCSPConv":
                yield from (layer.short_conv, *layer.pre_conv, *layer.post_conv, layer.merge_conv)


def enliven_yolox(peer: Any, size: int, device: torch.device) -> None:
    head = peer.head
    enliven(peer, [*head.cls_preds, *head.reg_preds, *head.obj_preds], size, device)
    for conv in head.obj_preds:
        nn.init.constant_(conv.bias, OBJECTNESS)
    for conv in head.cls_preds:
        nn.init.constant_(conv.bias, CLASS)


@torch.no_grad()
def enliven(model: nn.Module, last: Sequence[nn.Conv2d], size: int, device: torch.device) -> None:
    """Statistics of the norms as of a trained network, and predictions that differ from cell to cell."""
    norms = [module for module in model.modules() if hasattr(module, "running_var")]
    hooks = [norm.register_forward_pre_hook(set_statistics) for norm in norms]
    hooks += [conv.register_forward_hook(scale_output) for conv in last]
    model.eval()(torch.rand(1, 3, size, size, device=device))
    for hook in hooks:
        hook.remove()


def set_statistics(norm: Any, inputs: tuple[Tensor, ...]) -> None:
    variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3))
    norm.running_var.copy_(variance)
    norm.running_mean.copy_(mean)


def scale_output(conv: nn.Module, _: object, outputs: Tensor) -> None:
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    conv.weight /= (outputs - conv.bias[:, None, None]).std()
    conv.bias.zero_()


@torch.no_grad()
def set_biases(conv: nn.Conv2d) -> None:
    """Of three anchors with an objectness and 80 classes each."""
    assert conv.bias is not None
    bias = conv.bias.view(3, 85)
    bias[:, 4], bias[:, 5:] = OBJECTNESS, CLASS
