"""Which prediction of a grid answers for an object: the rules of YOLOv1, and of v2 and v3.

Legend: M objects and N predictions of one image, S cells a side, n predictions of a cell, P positives of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from detkit.nn.assign.assignment import BACKGROUND, Assigner, Assignment, spare_ignored
from detkit.ops.boxes import xyxy_to_cxcywh
from detkit.ops.iou import box_iou
from detkit.structures import Target


class CellAssigner(Assigner):
    """YOLOv1: an object belongs to the cell of its centre. Of several in a cell one is drawn.

    Of the predictions of that cell the one with the highest IoU answers for the object or, where none overlaps it, the
    one whose centre and sides are nearest, in parts of the canvas (darknet's detection layer).
    """

    def __init__(self, side: int, canvas: Tensor, ignored_iof: float | None = None) -> None:
        """canvas `[2]`: width and height in input px, divided into side x side cells."""
        self.side, self.canvas, self.ignored_iof = side, canvas, ignored_iof

    def assign(self, boxes: Tensor, target: Target) -> Assignment:
        """boxes `[S * S * n, 4]`: the predicted boxes, cell by cell, row by row, xyxy in input px."""
        objects = target.not_ignored().boxes
        column, row = cells_of(objects, self.canvas / self.side, self.side).unbind(dim=1)
        cell = row * self.side + column
        shuffled = torch.randperm(len(objects), device=objects.device)
        drawn = shuffled[last_of_each(cell[shuffled], self.side**2)]
        per_cell = len(boxes) // self.side**2
        best = self._best(boxes.view(-1, per_cell, 4)[cell[drawn]], objects[drawn])
        index = drawn.new_full((len(boxes),), BACKGROUND)
        index[cell[drawn] * per_cell + best] = drawn
        return spare_ignored(Assignment(index, boxes.new_ones(len(boxes))), boxes, target, self.ignored_iof)

    def _best(self, boxes: Tensor, objects: Tensor) -> Tensor:
        """int64 `[M]`: the one of the n predictions `[M, n, 4]` of its cell that answers for each object `[M, 4]`."""
        iou = box_iou(boxes, objects[:, None])[..., 0]  # [M, n]
        scale = self.canvas.repeat(2)
        distance = xyxy_to_cxcywh(boxes / scale) - xyxy_to_cxcywh(objects / scale)[:, None]
        nearest = (distance**2).sum(dim=-1).argmin(dim=1)
        return torch.where((iou > 0).any(dim=1), iou.argmax(dim=1), nearest)


@dataclass(frozen=True, eq=False)
class AnchorAssignment(Assignment):
    """
    predictions  int64 `[M]`: the prediction that each object falls on; one on which several fall answers for the last
    """

    predictions: Tensor


class GridAnchorAssigner(Assigner):
    """YOLOv2 and v3: an object falls on the anchor of the most similar shape in the cell of its centre.

    Of several objects on one prediction it answers for the last, as in darknet. Predictions that overlap an object too
    well to be background, but answer for none, take no part.

    cells      int64 `[N, 2]`: column and row
    anchors    `[N, 2]`: width and height in input px
    strides    `[N, 1]`: input px of a cell
    threshold  IoU of the predicted box with an object above which it is not background
    """

    def __init__(
        self, cells: Tensor, anchors: Tensor, strides: Tensor, threshold: float, ignored_iof: float | None = None
    ) -> None:
        self.cells, self.anchors, self.strides = cells, anchors, strides
        self.counts = canvas_of(cells, strides) / strides  # [N, 2]: columns and rows of the level
        self.threshold, self.ignored_iof = threshold, ignored_iof

    def assign(self, boxes: Tensor, target: Target) -> AnchorAssignment:
        """boxes `[N, 4]`: the predicted boxes, xyxy in input px."""
        objects = target.not_ignored().boxes
        predictions = self.predictions_of(objects)
        index = last_at_each(predictions, len(boxes))
        similar = (box_iou(objects, boxes) > self.threshold).any(dim=0) & (index == BACKGROUND)
        weight = boxes.new_ones(len(boxes)).masked_fill(similar, 0.0)
        return spare_ignored(AnchorAssignment(index, weight, predictions), boxes, target, self.ignored_iof)

    def predictions_of(self, objects: Tensor) -> Tensor:
        """int64 `[M]`: the prediction that each object `[M, 4]` falls on; of equally similar anchors the first."""
        in_cell = (cells_of(objects[:, None], self.strides, self.counts) == self.cells).all(dim=-1)  # [M, N]
        return shape_iou(objects, self.anchors).masked_fill(~in_cell, -1.0).argmax(dim=1)


def canvas_of(cells: Tensor, strides: Tensor) -> Tensor:
    """`[2]`: width and height in input px of what cells `[N, 2]` of strides `[N, 1]` cover."""
    return ((cells + 1) * strides).amax(dim=0)


def cells_of(boxes: Tensor, strides: Tensor | float, counts: Tensor | int) -> Tensor:
    """int64 `[..., 2]`: column and row of the cell with the centre of each box; on an edge the right or lower one.

    boxes    `[..., 4]` xyxy in input px
    strides  input px of a cell, or `[..., 2]` for x and y
    counts   cells a side, or `[..., 2]` columns and rows: a centre on the border of the picture stays in the last cell
    """
    center = (boxes[..., :2] + boxes[..., 2:]) / 2
    last = torch.as_tensor(counts, device=boxes.device).long() - 1
    return (center / strides).long().clamp(min=0).minimum(last)


def shape_iou(boxes: Tensor, anchors: Tensor) -> Tensor:
    """IoU `[M, N]` of boxes `[M, 4]` with anchors `[N, 2]`, width and height, if they had the same centre."""
    halves = (boxes[:, 2:] - boxes[:, :2]) / 2, anchors / 2
    return box_iou(*(torch.cat([-half, half], dim=1) for half in halves))


def last_at_each(positions: Tensor, count: int) -> Tensor:
    """int64 `[count]`: the index of the last of the values `[M]`, each in [0, count), that equals 0, 1, ...; or -1."""
    last = torch.full((count,), -1, device=positions.device, dtype=torch.int64)
    return last.scatter_reduce(0, positions, torch.arange(len(positions), device=positions.device), "amax")


def last_of_each(positions: Tensor, count: int) -> Tensor:
    """Indices into `positions` `[M]`: for each value that occurs, in ascending order, its last one."""
    last = last_at_each(positions, count)
    return last[last >= 0]
