"""Tubelets, the boxes of one object in each frame of a clip: overlap and suppression.

Legend: N, M tubelets, T frames, `...` any leading dimensions. Tubelets are `[..., N, T, 4]` xyxy.
Source: Kalogeiton et al., arXiv 1705.01861, and its released code.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._higher_order_ops import while_loop

from detkit.ops.iou import box_iou


def tubelet_iou(tubelets1: Tensor, tubelets2: Tensor) -> Tensor:
    """Mean over the frames of the IoU of boxes: `[..., N, T, 4]` and `[..., M, T, 4]` -> `[..., N, M]`, in [0, 1]."""
    num_frames = tubelets1.shape[-2]
    if tubelets2.shape[-2] != num_frames:
        raise ValueError(f"tubelets: expected the same number of frames, got {num_frames} and {tubelets2.shape[-2]}")
    total = box_iou(tubelets1[..., 0, :], tubelets2[..., 0, :])
    for frame in range(1, num_frames):  # one after the other, which takes the memory of one
        total = total + box_iou(tubelets1[..., frame, :], tubelets2[..., frame, :])
    return total / num_frames


def suppress_tubelets(tubelets: Tensor, threshold: float) -> Tensor:
    """Greedy suppression: a tubelet goes if its overlap with a better one that remains is above `threshold`.

    tubelets  `[..., N, T, 4]`, best score first; each row of the leading dimensions is a group of its own
    Returns bool `[..., N]`: which remain. Every shape is fixed, and the loop can be exported.
    """
    suppresses = (tubelet_iou(tubelets, tubelets) > threshold).triu(diagonal=1)

    # A tubelet remains if none suppresses it that remains. After n rounds this is decided for the best n, whatever the
    # start; a round that changes nothing is the last.
    def is_open(remains: Tensor, before: Tensor) -> Tensor:
        return (remains != before).any()

    def decide(remains: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG001
        return ~(suppresses & remains[..., None]).any(dim=-2), remains.clone()

    remains = suppresses.new_ones(tubelets.shape[:-2])
    before = ~remains
    if torch.compiler.is_compiling():
        result: Tensor = while_loop(is_open, decide, (remains, before))[0]  # type: ignore[no-untyped-call]
        return result
    while bool(is_open(remains, before)):
        remains, before = decide(remains, before)
    return remains
