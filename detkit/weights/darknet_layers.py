"""The layers of darknet, and the network that runs them in the order of their `.cfg`.

Legend: B images, N boxes of one image, A anchors of a cell, n boxes of a cell, S cells a side, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.nn.blocks import Activation, ConvBlock, LocallyConnected, activation
from detkit.ops.boxes import cxcywh_to_xyxy
from detkit.ops.coders import GridCoder
from detkit.structures import Size

IMAGE = -1  # number of the input of the first layer


class Network(nn.Module):
    """Layers in the order of the file, each of which reads outputs of earlier ones; heads give boxes and scores.

    inputs  for each layer the numbers of those that it reads, -1 for the image
    """

    def __init__(self, layers: Sequence[nn.Module], inputs: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.inputs = tuple(inputs)
        last = {index: index for index in range(len(inputs))}
        last |= {source: index for index, sources in enumerate(inputs) for source in sources}
        # the outputs that no layer after this one reads
        self.unused_after = [[source for source in last if last[source] == index] for index in range(len(inputs))]

    @property
    def heads(self) -> list[GridHead | CellHead]:
        return [layer for layer in self.layers if isinstance(layer, GridHead | CellHead)]

    def weighted_layers(self) -> list[nn.Module]:
        """The layers with parameters, in the order of a weights file."""
        return [
            layer if isinstance(layer, ConvBlock) else layer.core
            for layer in self.layers
            if isinstance(layer, ConvBlock | Connected | Local)
        ]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, 3, H, W]` -> boxes `[B, N, 4]` xyxy in input px and scores `[B, N, K]` of all heads."""
        outputs, predictions = {IMAGE: images}, []
        for index, layer in enumerate(self.layers):
            result = layer(*(outputs[source] for source in self.inputs[index]))
            if isinstance(layer, GridHead | CellHead):
                predictions.append(result)
            else:
                outputs[index] = result
            for source in self.unused_after[index]:
                outputs.pop(source, None)  # its memory is free for what follows
        boxes, scores = zip(*predictions, strict=True)
        return torch.cat(boxes, dim=1), torch.cat(scores, dim=1)


class Connected(nn.Module):
    """`connected`: fully connected, `[B, C, H, W]` -> `[B, C', 1, 1]`."""

    def __init__(self, inputs: int, outputs: int, *, norm: bool, act: Activation) -> None:
        super().__init__()
        linear = nn.Linear(inputs, outputs, bias=not norm)
        self.core = nn.Sequential(linear, nn.BatchNorm1d(outputs)) if norm else linear
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.core(x.flatten(1)))
        return y[:, :, None, None]


class Local(nn.Module):
    """`local`: a convolution whose weights differ from position to position."""

    def __init__(self, core: LocallyConnected, act: Activation) -> None:
        super().__init__()
        self.core = core
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.core(x))
        return y


class MaxPool(nn.Module):
    """`maxpool`: out = (in + padding - size) / stride + 1; half of the padding, rounded down, is left and above."""

    def __init__(self, size: int, stride: int, padding: int) -> None:
        super().__init__()
        self.size, self.stride, self.padding = size, stride, padding

    def forward(self, x: Tensor) -> Tensor:
        if self.padding % 2 == 0:
            return F.max_pool2d(x, self.size, self.stride, self.padding // 2)
        before = self.padding // 2
        below, right = (self._after(side) for side in x.shape[-2:])
        if before or below or right:
            x = F.pad(x, (before, right, before, below), value=-torch.inf)
        return F.max_pool2d(x, self.size, self.stride)

    def _after(self, side: int) -> int:
        """Pixels to add after the last so that the last window ends there; negative: pixels that no window covers."""
        windows = (side + self.padding - self.size) // self.stride + 1
        return (windows - 1) * self.stride + self.size - side - self.padding // 2


class Shortcut(nn.Module):
    """`shortcut`: adds other outputs to the one before, over the channels that both have."""

    def __init__(self, act: Activation) -> None:
        super().__init__()
        self.act = activation(act)

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        for other in others:
            if other.shape[-2:] != x.shape[-2:]:
                raise ValueError(f"adds {size_of(other)} to {size_of(x)}: expected one height and width")
            common = min(x.shape[1], other.shape[1])
            if common == x.shape[1]:
                x = x + other[:, :common]
            else:
                x = torch.cat((x[:, :common] + other, x[:, common:]), dim=1)
        y: Tensor = self.act(x)
        return y


class Route(nn.Module):
    """`route`: joins the channels of earlier outputs, of each only the part `group` of `groups`."""

    def __init__(self, groups: int, group: int) -> None:
        super().__init__()
        self.groups, self.group = groups, group

    def forward(self, *inputs: Tensor) -> Tensor:
        parts = [torch.unflatten(x, 1, (self.groups, -1))[:, self.group] for x in inputs]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class GridHead(nn.Module):
    """`region` (version 2) and `yolo` (3, 4): a box for each anchor of a cell.

    anchors     A pairs of width and height in input px
    size        (h, w) of the network's input in px
    scale_xy    `scale_x_y`, version 4's grid sensitivity
    softmax     over the classes; otherwise each class is logistic
    new_coords  Scaled-YOLOv4: the convolution before is logistic already, and sides are (2 t)^2 anchors
    """

    def __init__(
        self,
        anchors: Sequence[tuple[float, float]],
        num_classes: int,
        size: Size,
        *,
        scale_xy: float = 1.0,
        softmax: bool = False,
        new_coords: bool = False,
    ) -> None:
        super().__init__()
        self.anchors, self.num_classes, self.size = tuple(anchors), num_classes, size
        self.coder = GridCoder(scale_xy)
        self.softmax, self.new_coords = softmax, new_coords

    def forward(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, A (5 + K), H, W]` of tx, ty, tw, th, objectness, classes -> `[B, H W A, 4]`, `[B, H W A, K]`."""
        height, width = raw.shape[-2:]
        raw = torch.unflatten(raw.float(), 1, (len(self.anchors), -1)).permute(0, 3, 4, 1, 2)  # [B, H, W, A, 5 + K]
        rows, columns = (torch.arange(side, device=raw.device) for side in (height, width))
        cells = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)[:, :, None]  # [H, W, 1, 2]
        stride = raw.new_tensor((self.size[1] / width, self.size[0] / height))
        boxes = self._boxes(raw[..., :4], cells, raw.new_tensor(self.anchors), stride)
        objectness, classes = raw[..., 4:5], raw[..., 5:]
        if not self.new_coords:
            objectness = objectness.sigmoid()
            classes = classes.softmax(dim=-1) if self.softmax else classes.sigmoid()
        return boxes.flatten(1, 3), (objectness * classes).flatten(1, 3)

    def _boxes(self, raw: Tensor, cells: Tensor, anchors: Tensor, stride: Tensor) -> Tensor:
        if not self.new_coords:
            return self.coder.decode(raw, cells, anchors, stride)
        scale = self.coder.scale_xy
        center = (raw[..., :2] * scale - (scale - 1) / 2 + cells) * stride
        return cxcywh_to_xyxy(torch.cat((center, (2 * raw[..., 2:]) ** 2 * anchors), dim=-1))


class CellHead(nn.Module):
    """`detection` (version 1): all class probabilities, then all confidences, then all boxes, linear.

    root  boxes hold the roots of width and height (`sqrt`)
    """

    def __init__(self, side: int, boxes: int, num_classes: int, size: Size, *, root: bool, softmax: bool) -> None:
        super().__init__()
        self.side, self.boxes, self.num_classes, self.size = side, boxes, num_classes, size
        self.root, self.softmax = root, softmax

    def forward(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """S^2 (K + 5 n) outputs -> `[B, S^2 n, 4]`, `[B, S^2 n, K]`."""
        cells, (height, width) = self.side**2, self.size
        counts = [cells * self.num_classes, cells * self.boxes, cells * self.boxes * 4]
        classes, confidences, boxes = torch.split(raw.float().flatten(1), counts, dim=1)
        classes = classes.reshape(-1, cells, 1, self.num_classes)
        classes = classes.softmax(dim=-1) if self.softmax else classes
        scores = confidences.reshape(-1, cells, self.boxes, 1) * classes  # [B, S^2, n, K]
        boxes = boxes.reshape(-1, cells, self.boxes, 4)
        cell = torch.arange(cells, device=raw.device)
        corner = torch.stack((cell % self.side, cell // self.side), dim=1)[:, None]
        sides = boxes[..., 2:] ** 2 if self.root else boxes[..., 2:]
        fractions = torch.cat(((boxes[..., :2] + corner) / self.side, sides), dim=-1)
        boxes = cxcywh_to_xyxy(fractions * boxes.new_tensor((width, height) * 2))
        return boxes.flatten(1, 2), scores.flatten(1, 2).clamp(0, 1)


def size_of(x: Tensor) -> str:
    """The shape of one image's features, for messages."""
    return str(list(x.shape[1:]))
