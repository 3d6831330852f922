"""Matching by overlap, and the sampling of the matches that enter a loss.

Legend: N anchors or proposals, M objects of one image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from detkit.ops.iou import box_iou

BACKGROUND = -1
BETWEEN = -2  # neither object nor background: takes no part in the loss


def match_by_iou(
    boxes: Tensor,
    objects: Tensor,
    *,
    fg_threshold: float,
    bg_threshold: tuple[float, float],
    best_for_each_object: bool,
) -> Tensor:
    """The object that each box answers for.

    boxes `[N, 4]`, objects `[M, 4]` -> int64 `[N]`: index of the object with the highest IoU if that is at least
    `fg_threshold`, BACKGROUND if it lies in `[low, high)` of `bg_threshold`, else BETWEEN. With `best_for_each_object`
    (the RPN, Faster R-CNN section 3.1.2) every box that ties for the best IoU of an object is positive too and keeps
    its own best object; an object that overlaps no box makes none positive. Without objects everything is BACKGROUND
    if 0 is in its range.
    """
    low, high = bg_threshold
    if len(objects) == 0 or len(boxes) == 0:
        return boxes.new_full((len(boxes),), BACKGROUND if low <= 0 < high else BETWEEN, dtype=torch.int64)
    iou = box_iou(objects, boxes)
    best, match = iou.max(dim=0)
    result = torch.full_like(match, BETWEEN)
    result[(best >= low) & (best < high)] = BACKGROUND
    positive = best >= fg_threshold
    if best_for_each_object:
        best_of_object = iou.max(dim=1, keepdim=True).values
        positive |= ((iou == best_of_object) & (best_of_object > 0)).any(dim=0)
    return torch.where(positive, match, result)


def match_bipartite(boxes: Tensor, objects: Tensor, fg_threshold: float) -> Tensor:
    """SSD's matching (arXiv 1512.02325, section 2.2), as Caffe does it.

    boxes `[N, 4]`, objects `[M, 4]` -> int64 `[N]`: index of an object or BACKGROUND. First, pair after pair, highest
    IoU first, each object gets one box that no other has; an object that overlaps no free box gets none. Then every box
    left whose best IoU is at least `fg_threshold` answers for that object.
    """
    if len(objects) == 0 or len(boxes) == 0:
        return boxes.new_full((len(boxes),), BACKGROUND, dtype=torch.int64)
    iou = box_iou(objects, boxes)
    best, match = iou.max(dim=0)
    matches = torch.where(best >= fg_threshold, match, BACKGROUND)
    free = iou.clone()
    overlap, box = free.max(dim=1)
    for _ in range(len(objects)):
        winner = int(overlap.argmax())
        if overlap[winner] <= 0:
            break
        taken = box[winner].clone()
        matches[taken] = winner
        free[:, taken] = 0
        free[winner] = 0
        again = (box == taken) | (overlap <= 0)
        again[winner] = True
        overlap[again], box[again] = free[again].max(dim=1)
    return matches


def sample_matches(matches: Tensor, count: int, positive_fraction: float) -> tuple[Tensor, Tensor]:
    """Draws at most `count` matches, at most `positive_fraction` of them positive; background fills the rest.

    matches int64 `[N]` -> indices of positives `[P]` and of background `[Q]`, each drawn uniformly without replacement
    from torch's global generator.
    """
    positive = torch.nonzero(matches >= 0).squeeze(1)
    background = torch.nonzero(matches == BACKGROUND).squeeze(1)
    num_positive = min(len(positive), int(count * positive_fraction))
    num_background = min(len(background), count - num_positive)
    return _draw(positive, num_positive), _draw(background, num_background)


def _draw(indices: Tensor, count: int) -> Tensor:
    return indices[torch.randperm(len(indices), device=indices.device)[:count]]
