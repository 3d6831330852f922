"""The kernel of `box_iou` of all boxes with all, in one pass over the result; see `ops/iou.py`."""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch import Tensor

from detkit.accelerate.compiled import compiled, run, threaded
from detkit.ops.boxes import box_area


def box_iou(boxes1: Tensor, boxes2: Tensor, inclusive: bool) -> Tensor:
    """`[N, M]` of boxes `[N, 4]` and `[M, 4]`, all float32 or all float64, without gradients."""
    boxes1, boxes2 = boxes1.detach(), boxes2.detach()
    result = boxes1.new_empty(len(boxes1), len(boxes2))
    constants = np.array([inclusive, torch.finfo(result.dtype).tiny], result.numpy().dtype)
    columns = np.ascontiguousarray(boxes2.numpy().T)
    areas1, areas2 = (box_area(boxes, inclusive=inclusive).numpy() for boxes in (boxes1, boxes2))
    arguments = (result.numpy(), np.ascontiguousarray(boxes1.numpy()), areas1, columns, areas2, constants)
    run(_rows, _rows_in_parts, arguments, len(boxes1), min_part=max(1, 2**16 // max(1, len(boxes2))))
    return result


@compiled
def _rows(
    result: np.ndarray,
    boxes1: np.ndarray,
    areas1: np.ndarray,
    columns: np.ndarray,
    areas2: np.ndarray,
    constants: np.ndarray,
    start: int,
    end: int,
) -> None:
    """Writes the rows `start` to `end` of `result` `[N, M]`.

    boxes1, areas1   `[N, 4]`, `[N]`
    columns, areas2  the coordinates of the second boxes `[4, M]`, and their areas `[M]`
    constants        of the dtype of the boxes: 1 if corners are inclusive, else 0; the union that counts as zero
    """
    x1, y1, x2, y2 = columns[0], columns[1], columns[2], columns[3]
    extra, tiny = constants[0], constants[1]
    zero, one = extra - extra, tiny / tiny
    for i in range(start, end):
        left, top, right, bottom, area = boxes1[i, 0], boxes1[i, 1], boxes1[i, 2], boxes1[i, 3], areas1[i]
        row = result[i]
        for j in range(len(row)):
            width = (right if right < x2[j] else x2[j]) - (left if left > x1[j] else x1[j]) + extra
            height = (bottom if bottom < y2[j] else y2[j]) - (top if top > y1[j] else y1[j]) + extra
            intersection = (zero if width < zero else width) * (zero if height < zero else height)
            union = area + areas2[j] - intersection
            row[j] = intersection / (one if union <= tiny else union)  # in this form nan stays nan


@threaded
def _rows_in_parts(
    result: np.ndarray,
    boxes1: np.ndarray,
    areas1: np.ndarray,
    columns: np.ndarray,
    areas2: np.ndarray,
    constants: np.ndarray,
    total: int,
    parts: int,
) -> None:
    for part in prange(parts):
        start, end = part * total // parts, (part + 1) * total // parts
        _rows(result, boxes1, areas1, columns, areas2, constants, start, end)
