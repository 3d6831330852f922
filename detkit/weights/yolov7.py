"""YOLOv7's checkpoints (Wang, Bochkovskiy, Liao): tiny, base and X, as tensors under public names -> detkit's YOLOv7.

A published layer is a convolution, in the order of darknet's yolov7.cfg; the names are those of state dicts. No code of
that package was read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from detkit.config import UserError
from detkit.detectors.yolov7 import YOLOv7, YOLOv7Config, build_yolov7
from detkit.nn.backbones.darknet import conv_blocks
from detkit.nn.backbones.elan import ELANConfig
from detkit.nn.blocks import ConvBlock
from detkit.nn.heads.yolo_v7 import YOLOv7Head, YOLOv7HeadConfig
from detkit.nn.necks.elan_pan import ELANPAN, ELANPANConfig
from detkit.nn.reparam import RepConv
from detkit.structures import Categories
from detkit.weights.class_names import categories_of_count
from detkit.weights.files import Change, load_into, read_state, unchanged
from detkit.weights.numbered_layers import anchors_of, by_layer, num_classes_of, required_file


class Size(NamedTuple):
    """
    suffix  of the names of backbone and neck
    block   of the head
    convs   convolutions with a batch norm
    """

    suffix: str
    block: str
    convs: int


SIZES = {
    "yolov7-tiny": Size("_tiny", "leaky", 55),
    "yolov7": Size("", "rep", 92),
    "yolov7x": Size("_x", "conv", 105),
}
# The layer or the part of a layer that a convolution is, whether it is the convolution or its norm, and which tensor.
CONV = re.compile(r"(?:(cv\d|rbr_dense|rbr_1x1)\.)?(conv|bn|0|1)\.(\w+)")
LAST = {r"m\.(\d)\.(\w+)": r"predict.\1.\2", r"ia\.(\d)\.implicit": r"added.\1", r"im\.(\d)\.implicit": r"factors.\1"}


def yolov7_config(name: str, **head: Any) -> YOLOv7Config:
    """The configuration of a published size; `head` has further settings of its head."""
    size = SIZES[name]
    return YOLOv7Config(
        backbone=ELANConfig.model_validate({"name": f"elan{size.suffix}"}),
        neck=ELANPANConfig.model_validate({"name": f"elan_pan{size.suffix}"}),
        head=YOLOv7HeadConfig(block=size.block, **head),
    )


def convert_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of YOLOv7's authors with detkit's keys; anchors are left out.

    Raises UserError for one that is of another network, or whose batch norms are folded into the convolutions.
    """
    return _convert(state)[1]


def _convert(state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """The size that has as many convolutions, and what `convert_keys` returns."""
    layers = by_layer(state, "YOLOv7")
    last = layers.pop(max(layers))
    convs: dict[tuple[int, str], dict[str, Tensor]] = {}
    for number, tensors in layers.items():
        for key, tensor in tensors.items():
            match = CONV.fullmatch(key)
            if match is None:
                raise UserError(f"not the keys of a YOLOv7: expected model.{number}.conv.weight, found {key} there")
            part = "conv" if match[2] in ("conv", "0") else "norm"
            convs.setdefault((number, match[1] or ""), {})[f"{part}.{match[3]}"] = tensor
    name = next((name for name, size in SIZES.items() if size.convs == len(convs)), None)
    if name is None or "m.0.weight" not in last:
        known = ", ".join(f"{name} {size.convs}" for name, size in SIZES.items())
        raise UserError(f"not a known YOLOv7: expected as many convolutions as {known}, found {len(convs)}")
    converted = {f"head.{key}": tensor for key, tensor in _last_layer(last)}
    for (_, own), block in zip(sorted(convs.items()), _blocks_in_order(name), strict=True):
        converted |= {f"{block}.{key}": tensor for key, tensor in own.items()}
    if name == "yolov7-tiny":
        _reverse_joined(converted)
    return name, converted


def _last_layer(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for key, tensor in tensors.items():
        for pattern, name in LAST.items():
            if re.fullmatch(pattern, key):
                yield re.sub(pattern, name, key), tensor[0] if tensor.ndim == 4 and "implicit" in key else tensor


def _blocks_in_order(name: str) -> list[str]:
    """The names of detkit's convolutions in the order of the published layers and of their parts' names."""
    with torch.device("meta"):
        detector = build_yolov7(yolov7_config(name), Categories.of_names(["object"]))
    neck = detector.neck
    assert isinstance(neck, ELANPAN)
    pyramid = neck.pyramid
    before: list[nn.Module] = [*pyramid.before]
    parts = [pyramid.side, *before] if pyramid.tiny else [before[0], pyramid.side, *before[1:]]  # cv2 is the side
    order: list[nn.Module] = [detector.backbone, *parts, pyramid.after, pyramid.merge]
    for layers in zip(neck.reduce, neck.lateral, neck.top_down, strict=True):
        order += layers
    for pair in zip(neck.down, neck.bottom_up, strict=True):
        order += pair
    blocks: list[ConvBlock] = [block for part in order for block in conv_blocks(part)]
    head = detector.head
    assert isinstance(head, YOLOv7Head)
    for last in head.convs:
        assert isinstance(last, RepConv | ConvBlock)
        blocks += [last.small, last.large] if isinstance(last, RepConv) else [last]  # rbr_1x1, rbr_dense
    names = {module: name for name, module in detector.named_modules()}
    return [names[block] for block in blocks]


def _reverse_joined(state: dict[str, Tensor]) -> None:
    """yolov7-tiny joins maps last first, where darknet's yolov7-tiny.cfg, and so detkit, joins them first first."""
    for key, weight in state.items():
        if key.endswith("merge.conv.weight"):
            parts = 2 if "pyramid" in key else 4
            state[key] = torch.cat(weight.chunk(parts, dim=1)[::-1], dim=1)


def load_yolov7(name: str, file: Path | None = None, change: Change = unchanged) -> YOLOv7:
    """yolov7-tiny, yolov7 or yolov7x from its tensors in `file`, in evaluation mode.

    Anchors are those of the file, and so are the number of classes, 80 of which are COCO's and others called "class 0"
    and so on, as it has no names, and whether there is implicit knowledge or it is folded. Raises UserError if the file
    is another one, or a pickled class.
    """
    if name not in SIZES:
        raise UserError(f"yolov7:{name}: not known; known: {', '.join(SIZES)}")
    file = required_file(file, f"yolov7:{name}")
    state = read_state(file, "YOLOv7")
    try:
        (size, converted), anchors = _convert(state), anchors_of(state)
        count = num_classes_of(converted["head.predict.0.weight"], anchors)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    if size != name:
        raise UserError(f"{file}: expected the layers of {name}, found those of {size}; name it yolov7:{size}:{file}")
    config = yolov7_config(name, anchors=anchors, implicit="head.added.0" in converted)
    detector = build_yolov7(change(config), categories_of_count(count))
    load_into(detector, converted, file, name)
    return detector.eval()
