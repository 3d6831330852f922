"""Candidates of one image -> its detections: what every head does last.

Legend: N candidates, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detkit.ops.boxes import clip_boxes, valid_boxes
from detkit.ops.nms import class_aware_merge, class_aware_nms
from detkit.structures import Detections, ImageInfo

MIN_SIZE = 1e-2  # original px; smaller detections are degenerate


def select_detections(
    boxes: Tensor,
    scores: Tensor,
    info: ImageInfo,
    class_names: Sequence[str],
    *,
    score_threshold: float,
    nms_threshold: float | None,
    max_detections: int,
    top_k_per_class: int | None = None,
    merge: bool = False,
) -> Detections:
    """Scores above the threshold, the best of each class, to original pixels, clip, suppress per class, cut.

    boxes            `[N, 4]` or, with a box for each class, `[N, K, 4]`, xyxy in input px
    scores           `[N, K]`: every candidate may be of several classes
    nms_threshold    IoU above which the lower of two of a class is suppressed; None: nothing is
    top_k_per_class  candidates of a class that enter the suppression; None: all
    merge            those above `nms_threshold` are joined instead (OverFeat)
    """
    wanted = scores > score_threshold
    if top_k_per_class is not None and top_k_per_class < len(scores):
        best = scores.topk(top_k_per_class, dim=0).indices
        wanted &= torch.zeros_like(wanted).scatter_(0, best, True)
    candidate, label = torch.nonzero(wanted, as_tuple=True)
    scores = scores[candidate, label]
    boxes = boxes[candidate] if boxes.ndim == 2 else boxes[candidate, label]
    boxes = clip_boxes(to_original(boxes, info), info.orig_size)
    keep = valid_boxes(boxes, MIN_SIZE)
    boxes, scores, label = boxes[keep], scores[keep], label[keep]
    if merge and nms_threshold is not None:
        boxes, scores, label = class_aware_merge(boxes, scores, label, nms_threshold)
        keep = torch.arange(len(boxes), device=boxes.device)[:max_detections]
    elif nms_threshold is None:
        keep = scores.argsort(descending=True, stable=True)[:max_detections]
    else:
        keep = class_aware_nms(boxes, scores, label, nms_threshold)[:max_detections]
    return Detections(boxes[keep].float(), scores[keep].float(), label[keep], tuple(class_names))


def to_original(boxes: Tensor, info: ImageInfo) -> Tensor:
    """Boxes `[..., 4]` xyxy from input pixels to the pixels of the image as it was."""
    return (boxes - boxes.new_tensor(info.offset * 2)) / boxes.new_tensor(info.scale * 2)
