"""YOLOv1's head (Redmon, Divvala, Girshick, Farhadi, arXiv 1506.02640): a grid read off by fully connected layers.

Legend: B images, S cells a side, C = S^2 cells, n boxes of a cell, P positives of the batch, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from detkit.config import Config, UserError
from detkit.nn.anchors import grid_cells
from detkit.nn.assign.grid import CellAssigner
from detkit.nn.assign.positives import positives_of
from detkit.nn.blocks import LocallyConnected
from detkit.nn.heads.class_rows import NO_CLASS, rows
from detkit.nn.heads.head import Head
from detkit.nn.losses import sum_squared_error
from detkit.nn.outputs import register_outputs
from detkit.nn.selection import DetectionRows, SelectionConfig, select_detections
from detkit.ops.boxes import at_least_float32, cxcywh_to_xyxy, xyxy_to_cxcywh
from detkit.ops.iou import box_iou
from detkit.structures import Size, Target


class YOLOv1SelectionConfig(SelectionConfig):
    score_threshold: float = Field(0.001, ge=0, le=1)
    max_detections: int = Field(300, ge=1)


class YOLOv1HeadConfig(Config):
    """Defaults: the paper. yolov1.cfg has `hidden: local` and three boxes a cell, yolov1-tiny.cfg `hidden: none`."""

    grid: int = Field(7, ge=1)  # S, cells a side
    boxes_per_cell: int = Field(2, ge=1)
    hidden: Literal["connected", "local", "none"] = "connected"  # 4096 units; 256 channels of unshared 3x3; nothing
    dropout: float = Field(0.5, ge=0, lt=1)  # after the hidden layer
    output: Literal["connected", "convolution"] = "connected"  # convolution: 1x1, its weights shared by all cells. Not
    # published; it learns from hundreds of images, where a layer of own weights for each cell needs tens of thousands
    box_scale: float = Field(5.0, ge=0)  # lambda_coord, eq. 3
    background_scale: float = Field(0.5, ge=0)  # lambda_noobj
    object_scale: float = Field(1.0, ge=0)
    class_scale: float = Field(1.0, ge=0)
    ignored_iof: float | None = Field(
        None, ge=0, le=1
    )  # part of a predicted box that must lie inside an ignored object
    # (crowd, difficult) for it to be neutral instead of background; null: background, as published
    selection: YOLOv1SelectionConfig = YOLOv1SelectionConfig()


@register_outputs
@dataclass(frozen=True, eq=False)
class YOLOv1Outputs:
    """Linear, neither sigmoid nor softmax.

    classes      `[B, C, K]`
    confidences  `[B, C, n]`
    boxes        `[B, C, n, 4]`: x, y in cells from the cell's corner, roots of width and height in canvas sides
    canvas       `[2]`: width and height in input px
    """

    classes: Tensor
    confidences: Tensor
    boxes: Tensor
    canvas: Tensor


class YOLOv1Head(Head[YOLOv1Outputs]):
    """Reads one level of `in_size` cells. The outputs lie as in darknet: all classes, all confidences, all boxes."""

    def __init__(self, config: YOLOv1HeadConfig, in_channels: int, in_size: Size, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        features = in_channels * in_size[0] * in_size[1]
        self.hidden: nn.Module = nn.Identity()
        if config.hidden == "connected":
            self.hidden = nn.Sequential(
                nn.Flatten(), nn.Linear(features, 4096), nn.LeakyReLU(0.1), nn.Dropout(config.dropout)
            )
            features = 4096
        elif config.hidden == "local":
            local = LocallyConnected(in_channels, 256, 3, in_size)
            self.hidden = nn.Sequential(local, nn.LeakyReLU(0.1), nn.Dropout(config.dropout))
            features = 256 * in_size[0] * in_size[1]
        outputs = num_classes + 5 * config.boxes_per_cell  # of a cell
        if config.output == "connected":
            self.output: nn.Module = nn.Linear(features, config.grid**2 * outputs)
        elif config.hidden == "none" and in_size == (config.grid, config.grid):
            self.output = nn.Conv2d(in_channels, outputs, 1)
        else:
            raise UserError(
                f"model.head.output: the convolution needs hidden: none and a level of grid x grid cells; found "
                f"hidden: {config.hidden}, grid {config.grid}, a level of {in_size[0]} x {in_size[1]}"
            )
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                gain = 0.1 if layer is self.output else 1.4
                nn.init.normal_(layer.weight, std=gain / layer.weight[0].numel() ** 0.5)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    @override
    def forward(self, features: list[Tensor], sizes: Tensor, canvas: Size) -> YOLOv1Outputs:
        cells, count, num_classes = self.config.grid**2, self.config.boxes_per_cell, self.num_classes
        output = self.output(self._hidden(features[-1]))
        if self.config.output == "convolution":  # [B, K + 5 n, S, S], cells last, as the linear layer has them first
            parts = [part.flatten(2).transpose(1, 2) for part in output.split([num_classes, count, 4 * count], dim=1)]
        else:
            parts = list(output.split([cells * num_classes, cells * count, cells * count * 4], dim=1))
        classes, confidences, boxes = parts
        return YOLOv1Outputs(
            classes.reshape(-1, cells, num_classes),
            confidences.reshape(-1, cells, count),
            boxes.reshape(-1, cells, count, 4),
            torch.tensor([canvas[1], canvas[0]], dtype=torch.float32, device=boxes.device),
        )

    def _hidden(self, level: Tensor) -> Tensor:
        hidden: Tensor = self.hidden(level)
        return hidden if self.config.output == "convolution" else hidden.flatten(1)

    def boxes(self, outputs: YOLOv1Outputs) -> Tensor:
        """`[B, C * n, 4]` xyxy in input px."""
        boxes, side = at_least_float32(outputs.boxes), self.config.grid
        corners = grid_cells(side, side, boxes.device)[:, None]
        fractions = torch.cat([(boxes[..., :2] + corners) / side, boxes[..., 2:] ** 2], dim=-1)
        return (cxcywh_to_xyxy(fractions) * outputs.canvas.repeat(2)).flatten(1, 2)

    def criterion(self, outputs: YOLOv1Outputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Eq. 3, summed over an image and averaged over the batch, with the factor 1/2 that darknet's steps
        scale * (target - output) have. The target of a positive's confidence is the IoU of its box (`rescore`)."""
        config = self.config
        classes, confidences, boxes = outputs.classes.float(), outputs.confidences.float(), outputs.boxes.float()
        confidences, boxes = confidences.flatten(1), boxes.flatten(1, 2)  # [B, C * n], [B, C * n, 4]
        predicted = self.boxes(outputs).detach()
        assigner = CellAssigner(config.grid, outputs.canvas, config.ignored_iof)
        assignments = [assigner.assign(*pair) for pair in zip(predicted, targets, strict=True)]
        positives = positives_of(assignments, targets)
        positive = positives.image, positives.prediction
        background = torch.stack([assignment.background for assignment in assignments])

        cell = positives.prediction // config.boxes_per_cell
        overlap = box_iou(predicted[positive], positives.boxes, paired=True)
        one_hot = F.one_hot(positives.labels, self.num_classes).to(classes.dtype)
        weights = None if self.class_weights is None else self.class_weights[positives.labels, None]
        box_targets = self._box_targets(positives.boxes, cell, outputs.canvas)
        losses = {
            "yolo_box": config.box_scale * sum_squared_error(boxes[positive], box_targets),
            "yolo_object": config.object_scale * sum_squared_error(confidences[positive], overlap),
            "yolo_background": config.background_scale * (confidences[background] ** 2).sum(),
            "yolo_class": config.class_scale * sum_squared_error(classes[positives.image, cell], one_hot, weights),
        }
        return {name: loss / 2 / len(classes) for name, loss in losses.items()}

    def _box_targets(self, boxes: Tensor, cell: Tensor, canvas: Tensor) -> Tensor:
        """`[P, 4]`: what the network should predict for boxes `[P, 4]` xyxy in input px of these cells `[P]`."""
        side = self.config.grid
        fractions = xyxy_to_cxcywh(boxes / canvas.repeat(2))
        corners = torch.stack([cell % side, cell // side], dim=1)
        return torch.cat([fractions[:, :2] * side - corners, fractions[:, 2:].sqrt()], dim=1)

    def detect(self, outputs: YOLOv1Outputs, windows: Tensor) -> DetectionRows:
        boxes = self.boxes(outputs)
        confidences, classes = at_least_float32(outputs.confidences), at_least_float32(outputs.classes)
        scores = (confidences[..., None] * classes[:, :, None]).clamp(0, 1).flatten(1, 2)  # [B, C * n, K], eq. 1
        return select_detections(boxes, scores, None, windows, self.config.selection)

    @override
    def class_rows(self, num_classes: int) -> dict[str, Tensor]:
        cells = self.config.grid**2 if self.config.output == "connected" else 1
        boxes = [NO_CLASS] * (5 * self.config.boxes_per_cell * cells)
        return {"output": rows(*[range(num_classes)] * cells, *boxes)}
