"""What YOLOv2 and YOLOv3 share: a 1x1 convolution for each level that predicts, for every cell and anchor, a box, an
objectness and class scores; and the decoding and selection of detections.

Legend: B images, L levels, A_l anchors of a cell of level l, N predictions of one image over all levels, ordered by
level (finest first), row, column and anchor; P positives of the batch, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from detkit.config import Config
from detkit.nn.anchors import grid_cells
from detkit.nn.assign.grid import AnchorAssignment, GridAnchorAssigner, canvas_of
from detkit.nn.assign.positives import Positives
from detkit.nn.heads.class_rows import NO_CLASS, rows
from detkit.nn.heads.head import Head
from detkit.nn.outputs import register_outputs
from detkit.nn.selection import DetectionRows, SelectionConfig, select_detections
from detkit.ops.boxes import at_least_float32
from detkit.ops.coders import GridCoder
from detkit.structures import Size, Target


class YOLOSelectionConfig(SelectionConfig):
    """Defaults: darknet's `detector valid` and its suppression."""

    score_threshold: float = Field(0.005, ge=0, le=1)
    nms_threshold: float | None = Field(0.45, ge=0, le=1)
    max_detections: int = Field(300, ge=1)


class YOLOHeadConfig(Config):
    init_std: float = Field(0.01, gt=0)  # of a fresh head's weights
    ignored_iof: float | None = Field(
        None, ge=0, le=1
    )  # part of a predicted box that must lie inside an ignored object
    # (crowd, difficult) for it to be neutral instead of background; null: background, as published
    selection: YOLOSelectionConfig = YOLOSelectionConfig()


@register_outputs
@dataclass(frozen=True, eq=False)
class YOLOOutputs:
    """
    raw      `[B, N, 5 + K]`: tx, ty, tw, th, objectness logit, class logits
    cells    int64 `[N, 2]`: column and row
    anchors  `[N, 2]`: width and height in input px
    strides  `[N, 1]`: input px of a cell
    """

    raw: Tensor
    cells: Tensor
    anchors: Tensor
    strides: Tensor


class YOLOHead(Head[YOLOOutputs]):
    """The network and the decoding. The versions differ in class scores, assignment and loss."""

    def __init__(
        self,
        config: YOLOHeadConfig,
        anchors: Sequence[Sequence[tuple[float, float]]],
        in_channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
    ) -> None:
        """anchors: width and height in input px, a list for each level."""
        super().__init__()
        self.selection, self.ignored_iof = config.selection, config.ignored_iof
        self.strides = tuple(strides)
        self.num_classes = num_classes
        self.coder = GridCoder()
        for number, sides in enumerate(anchors):
            self.register_buffer(f"anchors{number}", torch.tensor(sides, dtype=torch.float32), persistent=False)
        self.predict = nn.ModuleList(
            nn.Conv2d(channels, len(sides) * (5 + num_classes), 1)
            for channels, sides in zip(in_channels, anchors, strict=True)
        )
        for parameter in self.predict.parameters():
            nn.init.normal_(parameter, std=config.init_std) if parameter.ndim > 1 else nn.init.zeros_(parameter)

    @override
    def forward(self, features: list[Tensor], sizes: Tensor, canvas: Size) -> YOLOOutputs:
        raw, cells, anchors, strides = [], [], [], []
        for number, (level, stride) in enumerate(zip(features, self.strides, strict=True)):
            sides, (height, width) = self.get_buffer(f"anchors{number}"), level.shape[-2:]
            predicted = torch.unflatten(self.predict_level(number, level), 1, (len(sides), -1))  # [B, A, 5 + K, H, W]
            raw.append(predicted.permute(0, 3, 4, 1, 2).flatten(1, 3))
            cells.append(grid_cells(height, width, level.device).repeat_interleave(len(sides), dim=0))
            anchors.append(sides.repeat(height * width, 1))
            strides.append(sides.new_full((len(sides) * height * width, 1), stride))
        return YOLOOutputs(torch.cat(raw, dim=1), torch.cat(cells), torch.cat(anchors), torch.cat(strides))

    def predict_level(self, number: int, level: Tensor) -> Tensor:
        """`[B, A (5 + K), H, W]` of the features of one level."""
        predicted: Tensor = self.predict[number](level)
        return predicted

    def boxes(self, outputs: YOLOOutputs) -> Tensor:
        """`[B, N, 4]` xyxy in input px."""
        return self.decode(outputs, outputs.raw[..., :4])

    def decode(self, outputs: YOLOOutputs, raw: Tensor, rows: Tensor | None = None) -> Tensor:
        """Boxes `[..., 4]` xyxy in input px of `raw` `[..., 4]`, those of the predictions `rows`; None: of all."""
        chosen = slice(None) if rows is None else rows
        return self.coder.decode(raw, outputs.cells[chosen], outputs.anchors[chosen], outputs.strides[chosen])

    def class_scores(self, logits: Tensor) -> Tensor:
        """`[..., K]` class logits as probabilities."""
        raise NotImplementedError

    @torch.no_grad()
    def assign(self, outputs: YOLOOutputs, targets: Sequence[Target], threshold: float) -> list[AnchorAssignment]:
        """threshold: IoU of a predicted box with an object above which it is not background."""
        assigner = GridAnchorAssigner(outputs.cells, outputs.anchors, outputs.strides, threshold, self.ignored_iof)
        return [
            assigner.assign(boxes, target) for boxes, target in zip(self.boxes(outputs).float(), targets, strict=True)
        ]

    def box_targets(self, outputs: YOLOOutputs, positives: Positives) -> tuple[Tensor, Tensor, Tensor]:
        """What the network should predict for the boxes of `positives`.

        Returns `[P, 2]` the centre from the corner of its cell, in cells; `[P, 2]` tw and th; and `[P, 1]` the weight
        of each box, 2 - its part of the canvas: small boxes weigh more.
        """
        rows, boxes = positives.prediction, positives.boxes
        sides = boxes[:, 2:] - boxes[:, :2]
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2 / outputs.strides[rows] - outputs.cells[rows]
        weights = 2 - sides.prod(dim=1, keepdim=True) / canvas_of(outputs.cells, outputs.strides).prod()
        return centers, torch.log(sides / outputs.anchors[rows]), weights

    def detect(self, outputs: YOLOOutputs, windows: Tensor) -> DetectionRows:
        raw = at_least_float32(outputs.raw)
        objectness = raw[..., 4].sigmoid()
        if torch.compiler.is_compiling():  # an exported program has candidates of a fixed number
            scores = objectness[..., None] * self.class_scores(raw[..., 5:])
            return select_detections(self.boxes(outputs), scores, None, windows, self.selection)
        # no class score is above 1, so the others cannot reach the threshold
        image, row = torch.nonzero(objectness > self.selection.score_threshold, as_tuple=True)
        raw, objectness = raw[image, row], objectness[image, row]
        boxes = self.decode(outputs, raw[:, :4], row)
        scores = objectness[:, None] * self.class_scores(raw[:, 5:])
        return select_detections(boxes, scores, image, windows, self.selection)

    @override
    def class_rows(self, num_classes: int) -> dict[str, Tensor]:
        return {
            f"predict.{level}": rows(
                *[NO_CLASS] * 5, range(num_classes), repeat=len(self.get_buffer(f"anchors{level}"))
            )
            for level in range(len(self.predict))
        }
