"""Greedy suppression as one operator whose result has a fixed shape: what an exported program runs.

Legend: G groups, each with boxes of its own (an image, or a class of an image), N boxes of a group, C classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from detkit.ops.nms import class_aware_nms, traceable_nms


@torch.library.custom_op("detkit::suppress", mutates_args=())
def suppress(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Which boxes remain when those of a class suppress one another; see `detkit.ops.nms`.

    boxes   `[G, N, 4]` xyxy
    scores  `[G, C, N]`; -inf: the box is no candidate of that class
    Returns bool `[G, C, N]`.
    """
    return _remaining(boxes, scores, iou_threshold, class_aware_nms)


@suppress.register_fake
def _(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:  # noqa: ARG001
    return torch.empty_like(scores, dtype=torch.bool)


def decomposed_suppress(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """`suppress` in operators of torch and torchvision, for a program that runs without detkit."""
    return _remaining(boxes, scores, iou_threshold, traceable_nms)


def _remaining(
    boxes: Tensor, scores: Tensor, iou_threshold: float, nms: Callable[[Tensor, Tensor, Tensor, float], Tensor]
) -> Tensor:
    group, label, row = torch.nonzero(scores > -torch.inf, as_tuple=True)
    groups = group * scores.shape[1] + label
    rows = nms(boxes[group, row], scores[group, label, row], groups, iou_threshold)
    indices = groups[rows] * scores.shape[2] + row[rows]
    remaining = torch.zeros_like(scores, dtype=torch.bool).flatten()
    return remaining.index_fill(0, indices, True).view_as(scores)
