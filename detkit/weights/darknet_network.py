"""The network of a darknet `.cfg`: each section becomes a layer, whose shapes and numbers are checked.

Legend: B images, S cells a side, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from detkit.nn.blocks import Activation, ConvBlock, LocallyConnected, Reorg
from detkit.structures import Size
from detkit.weights.darknet_cfg import Section
from detkit.weights.darknet_layers import (
    IMAGE,
    CellHead,
    Connected,
    GridHead,
    Local,
    MaxPool,
    Network,
    Route,
    Shortcut,
    size_of,
)

# darknet computes gelu by an approximation, and has no prelu
ACTIVATIONS = tuple(name for name in get_args(Activation) if name not in ("gelu", "prelu"))


@torch.no_grad()
def build_network(sections: Sequence[Section]) -> Network:
    """The network of a `.cfg`, without memory for its weights (on "meta"); a pass through it checks the shapes.

    Raises UserError naming the section that is wrong or does not fit.
    """
    net, *rest = sections
    size = (net.integer("height"), net.integer("width"))
    if net.integer("channels", 3) != 3:
        raise net.error(f"expected 3, RGB, found {net.integer('channels')}", "channels")
    layers: list[nn.Module] = []
    inputs: list[tuple[int, ...]] = []
    with torch.device("meta"):
        try:
            outputs = {IMAGE: torch.empty(1, 3, *size)}
        except RuntimeError as error:
            raise net.error(f"expected a smaller picture, found {size[1]} x {size[0]} (w x h)", "width") from error
        for index, section in enumerate(rest):
            sources = _sources(section, rest)
            tensors = [outputs[source] for source in sources]
            try:
                layer = _build_layer(section, tensors[0], size).eval()
                result = layer(*tensors)
            except (RuntimeError, ValueError, TypeError, OverflowError) as error:  # torch says which shape does not fit
                shapes = " and ".join(map(size_of, tensors))
                raise section.error(f"does not fit its input {shapes}: {str(error).splitlines()[0]}") from error
            if isinstance(result, Tensor):
                outputs[index] = result
            layers.append(layer)
            inputs.append(sources)
    network = Network(layers, inputs)
    if not network.heads:
        raise net.error("not a detector: expected a [detection], [region] or [yolo] layer, found none")
    return network


def _sources(section: Section, layers: Sequence[Section]) -> tuple[int, ...]:
    """The layers whose outputs a layer reads. Negative numbers in the file count backwards from this layer."""
    index, key = section.index, {"route": "layers", "shortcut": "from"}.get(section.kind)
    listed = section.integers(key) if key else []
    if key and not listed:
        raise section.error("expected numbers of layers, found none", key)
    sources = [source + index if source < 0 else source for source in listed]
    for number, source in zip(listed, sources, strict=True):
        if not 0 <= source < index:
            raise section.error(
                f"{number} is no layer before this one; expected 0 to {index - 1}, or -1 to -{index}", key
            )
    if section.kind != "route":
        sources = [index - 1, *sources]
    for source in sources:
        if source >= 0 and layers[source].kind in ("detection", "region", "yolo"):
            raise section.error(
                f"reads layer {source}, [{layers[source].kind}], which ends there; begin with a [route]", key
            )
    return tuple(sources)


def _build_layer(section: Section, x: Tensor, size: Size) -> nn.Module:
    """The layer of a section whose (first) input is like `x`, in a network with input of `size` (h, w)."""
    match section.kind:
        case "convolutional":
            return _convolutional(section, x)
        case "local":
            return _local(section, x)
        case "connected":
            outputs, norm = section.integer("output"), section.flag("batch_normalize")
            return Connected(x[0].numel(), outputs, norm=norm, act=_activation(section))
        case "maxpool":
            stride = section.integer("stride", 1)
            kernel_size = section.integer("size", stride)
            return MaxPool(kernel_size, stride, section.integer("padding", kernel_size - 1, least=0))
        case "avgpool":
            return nn.AdaptiveAvgPool2d(1)
        case "upsample":
            return nn.Upsample(scale_factor=section.integer("stride", 2))
        case "reorg":
            return Reorg(section.integer("stride", 1))
        case "route":
            groups, group = section.integer("groups", 1), section.integer("group_id", 0, least=0)
            if group >= groups:
                raise section.error(f"expected 0 to {groups - 1}, found {group}", "group_id")
            return Route(groups, group)
        case "shortcut":
            return Shortcut(_activation(section))
        case "softmax":
            return nn.Softmax(dim=1)
        case "dropout" | "cost":
            return nn.Identity()
        case "detection":
            return _cell_head(section, x, size)
        case _:
            return _grid_head(section, x, size)


def _convolutional(section: Section, x: Tensor) -> ConvBlock:
    kernel_size = section.integer("size")
    return ConvBlock(
        x.shape[1],
        section.integer("filters"),
        kernel_size,
        section.integer("stride", 1),
        padding=kernel_size // 2 if section.flag("pad") else section.integer("padding", 0, least=0),
        groups=section.integer("groups", 1),
        norm=section.flag("batch_normalize"),
        act=_activation(section),
    )


def _local(section: Section, x: Tensor) -> Local:
    channels, height, width = x.shape[1:]
    kernel_size = section.integer("size")
    core = LocallyConnected(
        channels,
        section.integer("filters"),
        kernel_size,
        (height, width),
        section.integer("stride", 1),
        padding=kernel_size // 2 if section.flag("pad") else 0,
    )
    return Local(core, _activation(section))


def _cell_head(section: Section, x: Tensor, size: Size) -> CellHead:
    num_classes, side, boxes = _num_classes(section), section.integer("side"), section.integer("num")
    formula = f"{side}^2 ({num_classes} + 5 x {boxes})"
    _check_inputs(section, formula, side**2 * (num_classes + 5 * boxes), x[0].numel())
    root, softmax = section.flag("sqrt"), section.flag("softmax")
    return CellHead(side, boxes, num_classes, size, root=root, softmax=softmax)


def _grid_head(section: Section, x: Tensor, size: Size) -> GridHead:
    channels, height, width = x.shape[1:]
    num_classes, anchors = _num_classes(section), section.pairs("anchors")
    if len(anchors) != section.integer("num"):
        raise section.error(f"expected num={section.integer('num')} pairs, found {len(anchors)}", "anchors")
    if section.kind == "yolo" and "mask" in section.options:
        mask = section.integers("mask")
        if not mask or not all(0 <= number < len(anchors) for number in mask):
            raise section.error(f"expected numbers of anchors, 0 to {len(anchors) - 1}, found {mask}", "mask")
        anchors = [anchors[number] for number in mask]
    _check_inputs(section, f"{len(anchors)} x (5 + {num_classes})", len(anchors) * (5 + num_classes), channels)
    if section.kind == "region":  # anchors in cells
        anchors = [(w * size[1] / width, h * size[0] / height) for w, h in anchors]
        return GridHead(anchors, num_classes, size, softmax=section.flag("softmax"))
    scale_xy, new_coords = section.number("scale_x_y", 1.0), section.flag("new_coords")
    return GridHead(anchors, num_classes, size, scale_xy=scale_xy, new_coords=new_coords)


def _num_classes(section: Section) -> int:
    num_classes = section.integer("classes")
    if section.integer("coords", 4) != 4:
        raise section.error(f"expected 4, found {section.integer('coords')}", "coords")
    return num_classes


def _check_inputs(section: Section, formula: str, expected: int, actual: int) -> None:
    if expected != actual:
        raise section.error(f"expected {formula} = {expected} outputs of the layer before, found {actual}")


def _activation(section: Section) -> Activation:
    name = section.text("activation")
    if name not in ACTIVATIONS:
        raise section.error(f"{name!r} is not known; known: {', '.join(ACTIVATIONS)}", "activation")
    return name  # type: ignore[return-value]
