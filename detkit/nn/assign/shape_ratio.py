"""Which predictions may answer for an object in YOLOv5 and YOLOv7: anchors of a similar shape, in the cell of its
centre and in the nearest neighbours.

Legend: N predictions and M objects of one image, A anchors of a cell, P pairs of a prediction and an object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_RATIO = 4.0  # of the sides of an object and an anchor, the longer by the shorter
REACH = 0.5  # cells: a neighbour is one whose border is nearer than this to the centre of the object


@dataclass(frozen=True, eq=False)
class Level:
    """The predictions of one level: `rows` x `columns` cells with A anchors each, from number `start` on.

    anchors  `[A, 2]`: width and height in input px
    """

    stride: float
    columns: int
    rows: int
    anchors: Tensor
    start: int

    @property
    def end(self) -> int:
        return self.start + self.rows * self.columns * len(self.anchors)


def similar_anchors(boxes: Tensor, levels: Sequence[Level], max_ratio: float = MAX_RATIO) -> tuple[Tensor, Tensor]:
    """The predictions and the objects of the pairs, int64 `[P]` each: level by level, object by object.

    boxes  `[M, 4]`: the objects, xyxy in input px
    An anchor fits an object if neither side is `max_ratio` times as long as the other's. On its level the cell of the
    centre answers, and up to two neighbours: the nearer one in its row and the nearer one in its column, where the
    picture has them.
    """
    predictions, objects = [], []
    sides = boxes[:, 2:] - boxes[:, :2]
    for level in levels:
        ratio = sides[:, None] / level.anchors  # [M, A, 2]
        fits = torch.maximum(ratio, 1 / ratio).amax(dim=2) < max_ratio
        cells, near = _cells_around((boxes[:, :2] + boxes[:, 2:]) / 2 / level.stride, level)  # [M, 5, 2], [M, 5]
        place, cell, anchor = torch.nonzero(near[:, :, None] & fits[:, None], as_tuple=True)
        column, row = cells[place, cell].unbind(dim=1)
        predictions.append(level.start + (row * level.columns + column) * len(level.anchors) + anchor)
        objects.append(place)
    return torch.cat(predictions), torch.cat(objects)


def _cells_around(center: Tensor, level: Level) -> tuple[Tensor, Tensor]:
    """int64 `[M, 5, 2]`: column and row of the cell of each centre `[M, 2]` and of those left, above, right and below;
    bool `[M, 5]`: whether each answers."""
    size = center.new_tensor([level.columns, level.rows])
    offset, beyond = center % 1, (size - center) % 1  # from the left and upper border of the cell, and from the others
    before = (offset < REACH) & (center > 1)
    after = (beyond < REACH) & (size - center > 1)
    near = torch.cat([torch.ones_like(before[:, :1]), before, after], dim=1)
    step = center.new_tensor([[0, 0], [REACH, 0], [0, REACH], [-REACH, 0], [0, -REACH]])
    cells = (center[:, None] - step).long()
    return cells.clamp(min=0).minimum(size.long() - 1), near
