"""Non-maximum suppression: greedy, greedy per class, by DIoU, and soft; and merging, which suppresses nothing.

Legend: N boxes in, M boxes kept. Boxes are `[N, 4]` xyxy, labels int64 `[N]`.
Equal scores keep the order in which they came. Zero boxes give zero indices. Nothing here has a gradient.
A box is suppressed if its overlap is above the threshold; one that equals it is kept, on every device, with or without
compiled kernels. Both are compared in the dtype of the boxes, in which 40 / 100 and a threshold of 0.4 are one number.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.ops.dispatch import attempt
from detkit.ops.iou import box_iou, distance_box_iou

AT_ONCE_ON_CUDA = 5_000  # boxes, as torchvision; its kernel compares all N^2 pairs and copies N^2 / 8 bytes to the CPU


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy suppression: a box goes if its IoU with a kept box of higher score is above `iou_threshold`.

    Returns int64 `[M]` indices into `boxes`, best score first.
    """
    _check(boxes, scores)
    dtype = _common_dtype(boxes, scores)
    boxes, scores = boxes.detach().to(dtype), scores.detach().to(dtype)
    order = scores.argsort(descending=True, stable=True)
    stays: Tensor | None = attempt("suppress", boxes, order, None, iou_threshold)
    if stays is not None:
        return order[stays]
    from torchvision.ops import nms as kernel  # seconds to import, so not at the head

    kept: Tensor = kernel(boxes.double() if boxes.is_cuda else boxes, scores, _threshold_for(boxes, iou_threshold))
    return kept


def class_aware_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """`nms` among the boxes of each label alone. Returns int64 `[M]` indices into `boxes`, best score first over all.

    `labels` may be any integer group: a class, a pyramid level, an image. CUDA and exported programs run one kernel,
    with the labels moved apart. The move is in float64, where it costs a pixel coordinate no digit: in float32 class 80
    of a 1333 px image would be rounded to 1/128 px. The CPU, and CUDA for very many boxes, take label after label.
    """
    _check(boxes, scores, labels)
    if torch.compiler.is_compiling():
        return traceable_nms(boxes, scores, labels, iou_threshold)
    if boxes.is_cuda and len(boxes) <= AT_ONCE_ON_CUDA:
        return nms(_moved_apart(boxes, labels), scores, iou_threshold)

    boxes, scores = boxes.detach().to(_common_dtype(boxes, scores)), scores.detach()
    order, ranks, counts = _by_label(scores, labels)
    starts = F.pad(counts.cumsum(0), (1, 0))
    stays: Tensor | None = attempt("suppress", boxes, order[ranks], starts, iou_threshold)
    if stays is not None:
        kept = ranks[stays]
    else:
        boxes, scores, groups = boxes[order], scores[order], torch.split(ranks, counts.tolist())
        kept = torch.cat([ranks[:0], *(group[nms(boxes[group], scores[group], iou_threshold)] for group in groups)])
    return order[kept.sort().values]


def traceable_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """`class_aware_nms` in operators of torch and torchvision alone, none of which asks for a value."""
    from torchvision.ops import nms as kernel  # seconds to import, so not at the head

    # torchvision tells the compiler that at least two boxes are kept; these two always are, as the last
    boxes, scores = F.pad(boxes, (0, 0, 0, 2)), F.pad(scores.double(), (0, 2), value=-torch.inf)
    labels = F.pad(F.pad(labels.long(), (0, 1), value=-1), (0, 1), value=-2)
    kept: Tensor = kernel(_moved_apart(boxes, labels), scores, iou_threshold)
    return kept[:-2]


def diou_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """`class_aware_nms` by DIoU, which spares boxes with other centres; arXiv 1911.08287, section 4.2.

    Returns int64 `[M]` indices into `boxes`, best score first.
    """
    _check(boxes, scores, labels)
    order, ranks, counts = _by_label(scores.detach(), labels)
    boxes = boxes.detach().to(_common_dtype(boxes, scores))[order]
    kept = [ranks[:0]]
    for group in torch.split(ranks, counts.tolist()):
        suppresses = (distance_box_iou(boxes[group], boxes[group]) > iou_threshold).cpu()
        stays = torch.ones(len(group), dtype=torch.bool, device="cpu")
        for row in range(len(group)):
            if stays[row]:
                stays[row + 1 :] &= ~suppresses[row, row + 1 :]
        kept.append(group[stays.to(group.device)])
    return order[torch.cat(kept).sort().values]


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    *,
    method: Literal["linear", "gaussian"],
    iou_threshold: float,
    sigma: float,
    score_threshold: float,
) -> tuple[Tensor, Tensor]:
    """Lowers the scores of overlapping boxes of the same label instead of removing them; arXiv 1704.04503, fig. 2.

    method           linear: s *= 1 - IoU where IoU >= `iou_threshold`, eq. 1; gaussian: s *= exp(-IoU^2 / sigma), eq. 2
    score_threshold  a box is dropped when its score falls below
    Returns int64 `[M]` indices into `boxes` and the lowered scores `[M]`, descending, at least float32.
    """
    _check(boxes, scores, labels)
    if method not in ("linear", "gaussian"):
        raise ValueError(f"method: expected 'linear' or 'gaussian', got {method!r}")
    lowered = scores.detach().to(_common_dtype(boxes, scores), copy=True)
    for members in _members(labels):
        iou = box_iou(boxes[members].detach(), boxes[members].detach())
        decay = torch.where(iou >= iou_threshold, 1 - iou, 1) if method == "linear" else torch.exp(-(iou**2) / sigma)
        lowered[members] = _decayed(lowered[members], decay, score_threshold)
    kept = (lowered >= score_threshold).nonzero().squeeze(1)
    lowered, order = lowered[kept].sort(descending=True, stable=True)
    return kept[order], lowered


def class_aware_merge(
    boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Joins boxes of the same label, the most similar pair first; OverFeat, arXiv 1312.6229, section 4.3.

    A pair is joined while its IoU is above `iou_threshold`. A joined box has the mean coordinates of all boxes in it,
    and the score 1 - product(1 - score): many that agree are surer than one. (The paper's similarity, distances of
    centres plus intersection, has no published scale, and its scores are sums; these stay in [0, 1].)
    Returns boxes `[M, 4]`, scores `[M]`, descending, and labels `[M]`, at least float32.
    """
    _check(boxes, scores, labels)
    dtype = _common_dtype(boxes, scores)
    boxes, doubts = boxes.detach().to(dtype), 1 - scores.detach().to(dtype)
    parts = [(boxes[:0], doubts[:0], labels[:0])]
    for members in _members(labels):
        merged, doubt = _merged(boxes[members], doubts[members], iou_threshold)
        parts.append((merged, doubt, labels[members[: len(merged)]]))
    boxes, doubts, labels = (torch.cat(column) for column in zip(*parts, strict=True))
    scores = 1 - doubts
    order = scores.argsort(descending=True, stable=True)
    return boxes[order], scores[order], labels[order]


def _by_label(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The indices `[N]` of the boxes, best score first; their ranks in that order, label by label, each rising; and how
    many each label has."""
    order = scores.argsort(descending=True, stable=True)
    by_label, ranks = labels[order].sort(stable=True)
    return order, ranks, torch.unique_consecutive(by_label, return_counts=True)[1]


def _threshold_for(boxes: Tensor, iou_threshold: float) -> float:
    """The threshold with which torchvision's kernel keeps a box whose IoU equals `iou_threshold`.

    On the CPU it compares the IoU in the dtype of the boxes with a float64. On CUDA it reads the threshold as float32,
    and if that is rounded down, an IoU in float64 that equals the threshold is above.
    """
    nearest = np.float32(iou_threshold)
    if boxes.is_cuda and float(nearest) < iou_threshold:
        nearest = np.nextafter(nearest, np.float32(np.inf))
    return float(nearest) if boxes.is_cuda or boxes.dtype == torch.float32 else iou_threshold


def _moved_apart(boxes: Tensor, labels: Tensor) -> Tensor:
    """The boxes in float64, each label in a frame of its own, so that boxes of two labels cannot meet."""
    boxes = boxes.double()
    coordinates = F.pad(boxes.flatten(), (0, 1))  # one more, 0, so that there is always one
    spacing = coordinates.max() - coordinates.min() + 1
    return boxes + (labels * spacing)[:, None]


def _decayed(scores: Tensor, decay: Tensor, score_threshold: float) -> Tensor:
    """The score of each box at its turn, best first: then it multiplies what is left by its row of `decay` `[N, N]`."""
    left, decay = scores.cpu(), decay.cpu()  # a chain of N tiny steps, each needing the last
    final = torch.full_like(left, -torch.inf)
    for _ in range(len(left)):
        best = int(left.argmax())
        if left[best] < score_threshold:
            break
        final[best] = left[best]
        left *= decay[best]
        left[best] = -torch.inf
    return final.to(scores.device)


def _merged(boxes: Tensor, doubts: Tensor, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """Boxes of one label, joined, and the product of the doubts in each."""
    device, boxes, doubts = boxes.device, boxes.cpu(), doubts.cpu()  # a chain of tiny steps, each needing the last
    counts, alive = torch.ones_like(doubts), torch.ones_like(doubts, dtype=torch.bool)
    iou = box_iou(boxes, boxes).fill_diagonal_(-1)
    while len(boxes) > 1:
        one, other = divmod(int(iou.argmax()), len(boxes))
        if iou[one, other] <= iou_threshold:
            break
        weights = counts[[one, other]] / counts[[one, other]].sum()
        boxes[one] = weights @ boxes[[one, other]]
        doubts[one] *= doubts[other]
        counts[one] += counts[other]
        alive[other] = False
        iou[other], iou[:, other] = -1, -1
        row = torch.where(alive, box_iou(boxes[one : one + 1], boxes)[0], -1.0)
        row[one] = -1
        iou[one], iou[:, one] = row, row
    return boxes[alive].to(device), doubts[alive].to(device)


def _members(labels: Tensor) -> list[Tensor]:
    """The indices `[n]`, ascending, of the boxes of each label that occurs."""
    order = labels.argsort(stable=True)
    _, counts = torch.unique(labels, return_counts=True)
    return list(torch.split(order, counts.tolist()))


def _common_dtype(boxes: Tensor, scores: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(boxes.dtype, scores.dtype), torch.float32)


def _check(boxes: Tensor, scores: Tensor, labels: Tensor | None = None) -> None:
    count = boxes.shape[:1]
    if boxes.shape != (*count, 4) or scores.shape != count or (labels is not None and labels.shape != count):
        found = f"boxes {list(boxes.shape)}, scores {list(scores.shape)}"
        if labels is not None:
            found += f", labels {list(labels.shape)}"
        raise ValueError(f"expected boxes [N, 4] with scores and labels [N], got {found}")
