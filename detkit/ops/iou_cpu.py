"""The kernel of `box_iou` of all boxes with all, in one pass over the result; see `iou.py`."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from detkit.ops.boxes import box_area
from detkit.ops.compiled import in_threads, kernel


def box_iou(boxes1: Tensor, boxes2: Tensor, inclusive: bool) -> Tensor:
    """`[N, M]` of boxes `[N, 4]` and `[M, 4]`, all float32 or all float64."""
    result = boxes1.new_empty(len(boxes1), len(boxes2))
    tiny = torch.finfo(result.dtype).tiny
    extra = boxes1.new_tensor([1.0 if inclusive else 0.0, tiny]).numpy()
    columns = np.ascontiguousarray(boxes2.detach().numpy().T)
    areas1, areas2 = (box_area(boxes.detach(), inclusive=inclusive).numpy() for boxes in (boxes1, boxes2))
    sets = (np.ascontiguousarray(boxes1.detach().numpy()), areas1, columns, areas2)
    in_threads(partial(_rows, result.numpy(), *sets, extra), len(boxes1), min_part=max(1, 2**16 // max(1, len(boxes2))))
    return result


@kernel
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
