"""Greedy suppression of groups of boxes; see `nms.py`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from detkit.ops.compiled import kernel


def suppress(boxes: Tensor, order: Tensor, starts: Tensor, iou_threshold: float) -> Tensor:
    """Mask `[N]`, bool: which boxes stay, in the order given.

    boxes   `[N, 4]` xyxy, float32 or float64
    order   int64 `[N]`: group by group, the best of each group first
    starts  int64 `[G + 1]`: where each group begins in `order`, and N
    """
    columns = np.ascontiguousarray(boxes.detach().numpy()[order.numpy()].T)
    areas = (columns[2] - columns[0]) * (columns[3] - columns[1])
    # the largest number of the boxes' own precision that is not above the threshold: IoU > it is IoU > threshold
    limit = columns.dtype.type(iou_threshold)
    if limit > iou_threshold:
        limit = np.nextafter(limit, columns.dtype.type(-np.inf))
    stays = np.ones(len(boxes), np.int32 if columns.dtype == np.float32 else np.int64)  # as wide as a coordinate: fast
    _suppress(stays, columns, areas, starts.numpy(), np.array([limit, 0], columns.dtype))
    return torch.from_numpy(stays.astype(np.bool_))


@kernel
def _suppress(
    stays: np.ndarray, columns: np.ndarray, areas: np.ndarray, starts: np.ndarray, constants: np.ndarray
) -> None:
    """columns `[4, N]`; constants: the limit, and zero. The inner loop is written so that it becomes vectors."""
    limit, zero = constants[0], constants[1]
    for group in range(len(starts) - 1):
        end = starts[group + 1]
        for i in range(starts[group], end):
            if not stays[i]:
                continue
            left, top, right, bottom, area = columns[0, i], columns[1, i], columns[2, i], columns[3, i], areas[i]
            rest = slice(i + 1, end)
            x1, y1, x2, y2, others = columns[0, rest], columns[1, rest], columns[2, rest], columns[3, rest], areas[rest]
            left_over = stays[rest]
            for j in range(len(left_over)):
                width = (right if right < x2[j] else x2[j]) - (left if left > x1[j] else x1[j])
                height = (bottom if bottom < y2[j] else y2[j]) - (top if top > y1[j] else y1[j])
                shared = (width if width > zero else zero) * (height if height > zero else zero)
                suppressed = shared / (area + others[j] - shared) > limit
                left_over[j] = 0 if suppressed else left_over[j]
