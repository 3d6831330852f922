"""YOLOv1's head (Redmon, Divvala, Girshick, Farhadi, arXiv 1506.02640): a grid read off by fully connected layers.

Legend: B images, S cells a side, C = S^2 cells, n boxes of a cell, M objects of the batch, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from detkit.config import Config, UserError
from detkit.nn.assign.grid import BatchObjects, batch_objects, cells_of, last_of_each
from detkit.nn.blocks import LocallyConnected
from detkit.nn.heads.detections import select_detections
from detkit.ops.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from detkit.ops.iou import box_iou
from detkit.structures import Detections, ImageInfo, Size, Target


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
    score_threshold: float = Field(0.001, ge=0, le=1)
    nms_threshold: float = Field(0.5, ge=0, le=1)
    max_detections: int = Field(300, ge=1)


@dataclass(frozen=True, eq=False)
class YOLOv1Outputs:
    """Linear, neither sigmoid nor softmax.

    classes      `[B, C, K]`
    confidences  `[B, C, n]`
    boxes        `[B, C, n, 4]`: x, y in cells from the cell's corner, roots of width and height in canvas sides
    size         (h, w) of the canvas in input px
    """

    classes: Tensor
    confidences: Tensor
    boxes: Tensor
    size: Size


class YOLOv1Head(nn.Module):
    """Reads one level of `in_size` cells. The outputs lie as in darknet: all classes, all confidences, all boxes."""

    def __init__(self, config: YOLOv1HeadConfig, in_channels: int, in_size: Size, class_names: Sequence[str]) -> None:
        super().__init__()
        self.config = config
        self.class_names = tuple(class_names)
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
        outputs = len(class_names) + 5 * config.boxes_per_cell  # of a cell
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

    def forward(self, features: list[Tensor], size: Size) -> YOLOv1Outputs:
        cells, count, num_classes = self.config.grid**2, self.config.boxes_per_cell, len(self.class_names)
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
            size,
        )

    def _hidden(self, level: Tensor) -> Tensor:
        hidden: Tensor = self.hidden(level)
        return hidden if self.config.output == "convolution" else hidden.flatten(1)

    def criterion(self, outputs: YOLOv1Outputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Eq. 3, summed over an image and averaged over the batch, with the factor 1/2 that darknet's steps
        scale * (target - output) have. The confidence of an object is learned to be the IoU of its box (`rescore`)."""
        config = self.config
        classes, confidences, boxes = (part.float() for part in (outputs.classes, outputs.confidences, outputs.boxes))
        batch = len(classes)
        objects, cell = self._one_object_a_cell(outputs, targets)
        wanted = self._as_outputs(objects.boxes, cell, outputs.size)  # [M, 4]
        image = objects.image
        predicted = boxes[image, cell]  # [M, n, 4]
        responsible, overlap = self._responsible(predicted.detach(), wanted)

        one_hot = torch.zeros_like(classes[image, cell])
        one_hot[torch.arange(len(cell), device=cell.device), objects.labels] = 1
        background = torch.ones_like(confidences, dtype=torch.bool)
        background[image, cell, responsible] = False
        rows = torch.arange(len(cell), device=cell.device)
        losses = {
            "yolo_box": config.box_scale * ((predicted[rows, responsible] - wanted) ** 2).sum(),
            "yolo_object": config.object_scale * ((confidences[image, cell, responsible] - overlap) ** 2).sum(),
            "yolo_background": config.background_scale * (confidences[background] ** 2).sum(),
            "yolo_class": config.class_scale * ((classes[image, cell] - one_hot) ** 2).sum(),
        }
        return {name: loss / 2 / batch for name, loss in losses.items()}

    def _one_object_a_cell(self, outputs: YOLOv1Outputs, targets: Sequence[Target]) -> tuple[BatchObjects, Tensor]:
        """The objects that are learned and their cells `[M]`: of several whose centres share a cell, one by chance."""
        side, objects = self.config.grid, batch_objects(targets)
        height, width = outputs.size
        order = torch.randperm(len(objects), device=objects.labels.device)
        image, boxes, labels = objects.image[order], objects.boxes[order], objects.labels[order]
        strides = boxes.new_tensor([width / side, height / side])
        column, row = cells_of(boxes, strides, (side, side)).unbind(dim=1)
        cell = row * side + column
        chosen = last_of_each(image * side**2 + cell, len(targets) * side**2)
        return BatchObjects(image[chosen], boxes[chosen], labels[chosen]), cell[chosen]

    def _as_outputs(self, boxes: Tensor, cell: Tensor, size: Size) -> Tensor:
        """Boxes `[M, 4]` xyxy in input px as the network should put them, from the corner of their cell."""
        side = self.config.grid
        fraction = xyxy_to_cxcywh(boxes / boxes.new_tensor([size[1], size[0]] * 2))
        corner = torch.stack([cell % side, cell // side], dim=1)
        return torch.cat([fraction[:, :2] * side - corner, fraction[:, 2:].sqrt()], dim=1)

    def _responsible(self, predicted: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """The box of the cell with the highest IoU with the object, or, where none overlaps, the one whose x, y, w, h
        are nearest; and that IoU. Predicted `[M, n, 4]`, wanted `[M, 4]` -> `[M]`, `[M]`."""
        predicted, wanted = self._fractions(predicted), self._fractions(wanted)[:, None]
        iou = box_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(wanted))[..., 0]  # [M, n]
        distance = ((predicted - wanted) ** 2).sum(dim=-1)
        responsible = torch.where((iou > 0).any(dim=1), iou.argmax(dim=1), distance.argmin(dim=1))
        return responsible, iou[torch.arange(len(iou), device=iou.device), responsible]

    def _fractions(self, boxes: Tensor) -> Tensor:
        """`[..., 4]` as put out -> cxcywh in canvas sides from the corner of the cell."""
        return torch.cat([boxes[..., :2] / self.config.grid, boxes[..., 2:] ** 2], dim=-1)

    @torch.no_grad()
    def postprocess(self, outputs: YOLOv1Outputs, infos: Sequence[ImageInfo]) -> list[Detections]:
        side, (height, width) = self.config.grid, outputs.size
        cell = torch.arange(side**2, device=outputs.boxes.device)
        corner = torch.stack([cell % side, cell // side], dim=1)[:, None] / side
        boxes = self._fractions(outputs.boxes.float())
        boxes[..., :2] += corner
        boxes = cxcywh_to_xyxy(boxes) * boxes.new_tensor([width, height] * 2)
        scores = outputs.confidences[..., None] * outputs.classes[:, :, None]  # [B, C, n, K], eq. 1
        return [
            select_detections(
                boxes[i].flatten(0, 1),
                scores[i].flatten(0, 1).clamp(0, 1),
                info,
                self.class_names,
                score_threshold=self.config.score_threshold,
                nms_threshold=self.config.nms_threshold,
                max_detections=self.config.max_detections,
            )
            for i, info in enumerate(infos)
        ]
