"""Which cell, and which anchor of it, answers for an object: the rules of YOLOv1, v2 and v3.

Legend: B images, M objects of the batch together, N predictions of one image, A anchors of all levels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detkit.ops.iou import box_iou
from detkit.structures import Target


@dataclass(frozen=True, eq=False)
class BatchObjects:
    """The training objects of a batch in one row.

    image   int64 `[M]`
    boxes   float32 `[M, 4]` xyxy in input px
    labels  int64 `[M]`
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def batch_objects(targets: Sequence[Target]) -> BatchObjects:
    objects = [target.objects() for target in targets]
    counts = torch.tensor([len(labels) for _, labels in objects], device=objects[0][1].device)
    image = torch.repeat_interleave(torch.arange(len(objects), device=counts.device), counts)
    return BatchObjects(image, torch.cat([boxes for boxes, _ in objects]), torch.cat([labels for _, labels in objects]))


def cells_of(boxes: Tensor, strides: Tensor | float, size: tuple[int, int] | Tensor) -> Tensor:
    """The cell `[M, 2]` (column, row) that holds the centre of each box; on an edge, the cell right of or below it.

    size  columns and rows, `(W, H)` or `[M, 2]`: a centre on the border of the picture stays in the last cell
    """
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    limit = torch.as_tensor(size, device=boxes.device)
    return (center / strides).long().clamp(min=0).minimum(limit - 1)


def best_anchors(boxes: Tensor, anchors: Tensor) -> Tensor:
    """int64 `[M]`: for each box the anchor of the most similar shape, by IoU with both centred on one point.

    boxes `[M, 4]`, anchors `[A, 2]` width and height, both in input px; of equal anchors the first.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    centred = [torch.cat([-half, half], dim=1) for half in (sides / 2, anchors / 2)]
    return box_iou(centred[0], centred[1]).argmax(dim=1)


def last_of_each(slots: Tensor, count: int) -> Tensor:
    """Indices into `slots` `[M]`, values in [0, count): of objects that fall on one slot the last, as in darknet."""
    last = torch.full((count,), -1, device=slots.device, dtype=torch.int64)
    last.scatter_reduce_(0, slots, torch.arange(len(slots), device=slots.device), "amax")
    return last[last >= 0]
