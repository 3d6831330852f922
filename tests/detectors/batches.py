"""Detectors of the YAML files, made cheap, and batches for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from detkit.config import load_config, parse_config
from detkit.data.collate import collate
from detkit.data.transforms import resize_sample
from detkit.detectors.detector import Detector
from detkit.engine.settings import RunConfig
from detkit.structures import Batch, MaskCrops, Objects, Sample, Size

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def published_config(path: Path) -> RunConfig:
    """The configuration with random weights."""
    tree = load_config(path, RunConfig).model_dump(mode="json")
    _forget_weights(tree["model"])
    return parse_config(tree, RunConfig)


def cheap_config(path: Path, short_side: int = 64) -> RunConfig:
    """The configuration with random weights, the same levels of a small input, few layers and narrow ones."""
    tree = published_config(path).model_dump(mode="json")
    model = tree["model"]
    _shrink_input(model, short_side)
    match model["name"]:
        case "rcnn":  # every region passes the network
            model["roi"] |= {"crop_size": 32, "context": 2, "batch_size_per_image": 8}
        case "diffusiondet":  # every box is pooled and has its own convolutions in each layer
            model["head"] |= {"num_boxes": 50, "layers": 2}
            model["head"]["layer"] |= {"dynamic_width": 16, "feedforward": 256}
        case "lw_detr":
            _narrow_lw_detr(model)
    if model["name"].endswith("rcnn"):
        _narrow_heads(model)
    elif "transformer" in model.get("head", {}):
        _narrow_transformer(model["head"])
    if model["name"] != "cascade_rcnn":  # whose three random classifiers must agree on something
        _shrink_backbone(model["backbone"])
    return parse_config(tree, RunConfig)


def _shrink_input(model: dict[str, Any], short_side: int) -> None:
    resize = model["input"]["resize"]
    if resize["name"] in ("short_side", "letterbox"):
        resize |= {"size": short_side, "train_sizes": ()}
    if resize["name"] == "short_side":
        resize |= {"max_size": 2 * short_side}
    match model["name"]:
        case "ssd":
            _shrink_ssd(model, 128)
        case "yolov4" if resize["name"] == "stretch":
            resize |= {"size": short_side}
        case "rt_detr" | "d_fine" | "lw_detr":  # 336 cells, some of which become queries
            resize |= {"size": 128, "train_sizes": ()}
        case "yolov1":
            resize |= {"size": 128}
            model["head"] |= {"grid": 128 // model["backbone"]["strides"][0]}


def _shrink_backbone(backbone: dict[str, Any]) -> None:
    """The smallest network of its family; those of LeNet to Inception, VGG and Darknet have one size."""
    match backbone:
        case {"name": "resnet50" | "resnet101", "dilation": False}:  # dilation needs their blocks
            backbone |= {"name": "resnet18"}
        case {"name": "resnet50_vd"}:
            backbone |= {"name": "resnet18_vd"}
        case {"name": "timm", "model": model}:
            backbone |= {"model": model.replace("_b5", "_b0").replace("_b4", "_b0").replace("_b2", "_b0")}


def _narrow_transformer(head: dict[str, Any]) -> None:
    """Two layers in the decoder, because the first and the last one differ from others, and fewer queries."""
    layers = head["transformer"]
    for name, most in (("encoder_layers", 1), ("decoder_layers", 2), ("feedforward", 256)):
        layers |= {name: min(layers[name], most)}
    head |= {"num_queries": min(head["num_queries"], 60)}


def _narrow_heads(model: dict[str, Any]) -> None:
    """Fewer channels in what looks at every region."""
    model["roi"] |= {"hidden": [min(width, 256) for width in model["roi"]["hidden"]]}
    for section, layers in (("roi", "conv_channels"), ("mask", "channels"), ("keypoint", "channels")):
        part = model.get(section) or {}
        if layers in part:
            part |= {layers: [min(width, 32) for width in part[layers]]}


def _narrow_lw_detr(model: dict[str, Any]) -> None:
    """Fewer channels, queries and groups of queries."""
    model["backbone"] |= {"width": 8 * model["backbone"]["heads"]}
    model["neck"] |= {"width": 96}
    model["head"] |= {"groups": 2, "num_queries": 40}
    model["head"]["transformer"] |= {"width": 96, "feedforward": 128}


def _shrink_ssd(model: dict[str, Any], size: int) -> None:
    """An input of `size` px with as many levels: `valid` and `valid4` reduce large maps only, the others halve any."""
    factor = size / model["input"]["resize"]["size"]
    model["input"]["resize"] |= {"size": size}
    model["neck"] |= {"reduce": ["stride"] * len(model["neck"]["reduce"])}
    priors = model["head"]["priors"]
    for name in ("min_sizes", "max_sizes"):
        priors[name] = [side and side * factor for side in priors[name]]
    priors["steps"] = None


def _forget_weights(tree: dict[str, Any]) -> None:
    for key, value in tree.items():
        if isinstance(value, dict):
            _forget_weights(value)
        elif key == "weights":
            tree[key] = None


def make_batch(
    detector: Detector, counts: Sequence[int], sizes: Sequence[Size] | None = None, *, targets: bool = True
) -> Batch:
    """Pictures of coloured rectangles, `counts[i]` objects on the i-th, through the detector's own input spec."""
    items = []
    for index, count in enumerate(counts):
        rng = np.random.default_rng(index)
        height, width = sizes[index] if sizes else (120, 160)
        image = cv2.resize(rng.integers(0, 256, (6, 8, 3)).astype(np.uint8), (width, height))
        corner = rng.uniform(0, 0.6, (count, 2)) * (width, height)
        side = rng.uniform(0.2, 0.4, (count, 2)) * (width, height)
        boxes = np.concatenate([corner, corner + side], axis=1).astype(np.float32)
        for box in boxes.astype(int).tolist():
            image[box[1] : box[3], box[0] : box[2]] = rng.integers(0, 256, 3)
        labels = rng.integers(0, len(detector.categories), count)
        info = detector.input.place(index, (height, width))
        proposals = None
        if detector.proposals is not None:  # some beside each object, and some anywhere
            corner = rng.uniform(0, 0.7, (20, 2)) * (width, height)
            anywhere = np.concatenate([corner, corner + rng.uniform(0.1, 0.3, (20, 2)) * (width, height)], axis=1)
            beside = boxes.repeat(3, axis=0) + rng.normal(0, 3, (3 * count, 4))
            proposals = np.concatenate([beside, anywhere]).clip(0, (width, height) * 2).astype(np.float32)
        objects = _with_columns(Objects(boxes, labels), detector, rng)
        if (clip := detector.input.clip) is not None:  # the picture moves by 2 px a frame
            image = np.stack([np.roll(image, 2 * frame, axis=1) for frame in range(clip.frames)])
            if clip.tubes:
                moves = 2 * np.arange(clip.frames, dtype=np.float32)[None, :, None] * np.array([1, 0, 1, 0], np.float32)
                tubes = (objects.boxes[:, None] + moves).clip(0, np.array([width, height] * 2, np.float32))
                objects = replace(objects, tubes=tubes)
        sample = Sample(image, objects, index, proposals)
        items.append((resize_sample(sample, info.input_size), info))
    return collate(items, detector.input.stride, with_targets=targets)


@torch.no_grad()
def enliven(detector: Detector) -> None:
    """Scales every layer, the first time it runs, so that its outputs have a standard deviation of one (LSUV).

    Fresh heads start near zero, where all scores are the same and nothing is detected; fresh backbones without batch
    statistics fade or explode. Batch norms that start at zero, to begin as a shortcut, would hide what they follow.
    """
    windows = [module for module in detector.modules() if hasattr(module, "relative_position_index")]
    read = {
        layer for module in windows for layer in module.children()
    }  # Swin's: their weights are used, they never run
    groups = getattr(getattr(detector, "head", None), "proposers", [])[1:]  # LW-DETR's, which run in training only
    read |= {layer for group in groups for layer in group.modules()}
    layers = [m for m in detector.modules() if isinstance(m, nn.Conv2d | nn.Conv3d | nn.Linear) and m not in read]
    for layer in layers:
        if layer.bias is not None and layer.bias.requires_grad:
            layer.bias.zero_()  # a prior that is rare, such as YOLOv3's objectness, would stay alone
        if isinstance(layer, nn.Conv2d | nn.Conv3d) and not layer.weight.any():
            nn.init.normal_(layer.weight)  # YOLOv6's last layers
    for parameter in detector.parameters():
        if parameter.requires_grad and parameter.ndim == 1 and not parameter.any():
            parameter.fill_(0.5)

    def scale(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        handles.pop(module).remove()
        assert output.numel() > 1, "a layer that sees nothing, such as no region, would get weights that are nan"
        std = output.std()
        if std == 0:  # DETR's first layer attends to nothing yet
            return output
        for parameter in module.parameters():
            parameter.div_(std)
        return output / std

    handles: dict[nn.Module, Any] = {module: module.register_forward_hook(scale) for module in layers}
    batch = make_batch(detector, [3, 2], targets=False)
    detector.eval().postprocess(detector(batch), batch.infos)
    assert not handles, "every layer should take part in a detection"


def _with_columns(objects: Objects[Any], detector: Detector, rng: np.random.Generator) -> Objects[Any]:
    """With what the detector learns beside boxes: masks that fill the boxes, points that lie in them."""
    columns: dict[str, Any] = {}
    boxes = objects.boxes.astype(np.int64)
    if "masks" in learned_by(detector):
        crops = [np.ones((y2 - y1, x2 - x1), bool) for x1, y1, x2, y2 in boxes.tolist()]
        columns["masks"] = MaskCrops.of(crops, boxes)
    if "keypoints" in learned_by(detector):
        num_points = len(detector.categories.keypoints.names)
        shares = rng.uniform(0, 1, (len(boxes), num_points, 2))
        places = objects.boxes[:, None, :2] + shares * (objects.boxes[:, None, 2:] - objects.boxes[:, None, :2])
        visibility = rng.integers(0, 3, (len(boxes), num_points, 1))
        columns["keypoints"] = np.concatenate([places, visibility], axis=2).astype(np.float32)
    return replace(objects, **columns)


def learned_by(detector: Detector) -> tuple[str, ...]:
    return tuple(f"{name}s" for name in getattr(detector, "branches", {}))


def images_of(batch: Batch, index: int) -> Batch:
    """One image of a batch alone, on the same canvas."""
    one = slice(index, index + 1)
    targets = None if batch.targets is None else batch.targets[one]
    proposals = None if batch.proposals is None else batch.proposals[one]
    return Batch(batch.images[one], batch.infos[one], targets, proposals)


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors in nested dataclasses, sequences and dicts, in order."""
    if isinstance(value, Tensor):
        return [value]
    if is_dataclass(value):
        value = [getattr(value, field.name) for field in fields(value)]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for part in value for tensor in tensors_of(part)] if isinstance(value, list | tuple) else []
