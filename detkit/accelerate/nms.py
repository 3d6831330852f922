"""The kernel of greedy suppression within groups of boxes; see `ops/nms.py`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from detkit.accelerate.compiled import compiled


def suppress(boxes: Tensor, order: Tensor, starts: Tensor | None, iou_threshold: float) -> Tensor:
    """Mask, bool `[N]`, of the boxes that are kept, in the order of `order`.

    boxes   `[N, 4]` xyxy, float32 or float64
    order   int64 `[N]`: indices of the boxes, group by group, the best of each group first
    starts  int64 `[G + 1]`: the position in `order` at which each group begins, and N; None: one group
    """
    columns = np.ascontiguousarray(boxes.detach().numpy()[order.numpy()].T)
    areas = (columns[2] - columns[0]) * (columns[3] - columns[1])
    flag = np.int32 if columns.dtype == np.float32 else np.int64  # as wide as a coordinate, which is fast
    keep = np.ones(len(boxes), flag)
    bounds = np.array([0, len(keep)]) if starts is None else starts.numpy()
    _suppress(keep, columns, areas, bounds, np.array([iou_threshold, 0], columns.dtype))
    return torch.from_numpy(keep.astype(np.bool_))


@compiled
def _suppress(
    keep: np.ndarray, columns: np.ndarray, areas: np.ndarray, starts: np.ndarray, constants: np.ndarray
) -> None:
    """Sets entries of `keep` `[N]` to 0. The inner loop is written so that the compiler makes vectors of it.

    columns    `[4, N]`: the coordinates of the boxes in their order, and their `areas` `[N]`
    constants  of the dtype of the boxes: the IoU above which a box is suppressed, and zero
    """
    limit, zero = constants[0], constants[1]
    for group in range(len(starts) - 1):
        end = starts[group + 1]
        for i in range(starts[group], end):
            if not keep[i]:
                continue
            left, top, right, bottom, area = columns[0, i], columns[1, i], columns[2, i], columns[3, i], areas[i]
            rest = slice(i + 1, end)
            x1, y1, x2, y2 = columns[0, rest], columns[1, rest], columns[2, rest], columns[3, rest]
            areas_rest, keep_rest = areas[rest], keep[rest]
            for j in range(len(keep_rest)):
                width = (right if right < x2[j] else x2[j]) - (left if left > x1[j] else x1[j])
                height = (bottom if bottom < y2[j] else y2[j]) - (top if top > y1[j] else y1[j])
                intersection = (width if width > zero else zero) * (height if height > zero else zero)
                suppressed = intersection / (area + areas_rest[j] - intersection) > limit
                keep_rest[j] = 0 if suppressed else keep_rest[j]
