"""Losses of matched predictions and targets, one value an element or pair; heads sum and normalise them.

Legend: N pairs of a prediction and its target, C logits of a prediction. Boxes are xyxy.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from detkit.config import Config
from detkit.ops.iou import generalized_box_iou, scylla_box_iou


class FocalLossConfig(Config):
    """Focal loss of sigmoid classes (Lin et al., arXiv 1708.02002, equation 5). Defaults: RetinaNet's, section 4.1."""

    alpha: float = Field(0.25, ge=0, le=1)  # weight of positives; negatives weigh 1 - alpha
    gamma: float = Field(2.0, ge=0)  # the larger, the less easy predictions count; 0: weighted cross-entropy


def sigmoid_focal_loss(logits: Tensor, targets: Tensor, config: FocalLossConfig) -> Tensor:
    """Focal loss of each logit, in the shape of `logits`; `targets` are 0 or 1, of the same shape and dtype."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    probability = logits.sigmoid()
    error = probability + targets - 2 * probability * targets  # 1 - the probability of the true answer
    weight = config.alpha * targets + (1 - config.alpha) * (1 - targets)
    return weight * error**config.gamma * cross_entropy


class VarifocalLossConfig(Config):
    """Varifocal loss (Zhang, Wang, Dayoub, Sunderhauf, arXiv 2008.13367, equation 2). Defaults: the paper's."""

    alpha: float = Field(0.75, ge=0)  # weight of background
    gamma: float = Field(2.0, ge=0)  # the larger, the less easy background counts


def varifocal_loss(
    logits: Tensor, targets: Tensor, positive: Tensor, config: VarifocalLossConfig, *, fixed_weights: bool = False
) -> Tensor:
    """Cross-entropy of each logit with a quality, in the shape of `logits`: a positive weighs its quality, background
    its own probability to the power of gamma.

    targets   in [0, 1]: the quality of positives, 0 for background
    positive  1 for positives, else 0; in the shape and dtype of `logits`
    fixed_weights  the weight of background has no gradient (RT-DETR)
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    probability = (logits.detach() if fixed_weights else logits).sigmoid()
    background = config.alpha * (1 - positive) * probability**config.gamma
    return (background + targets * positive) * cross_entropy


class MatchabilityLossConfig(Config):
    """Matchability-aware loss of DEIM (Huang et al., arXiv 2412.04234, section 3.3). Default: the paper's."""

    gamma: float = Field(1.5, ge=0)  # power of the quality of positives and of the probability of background


def matchability_loss(logits: Tensor, targets: Tensor, positive: Tensor, config: MatchabilityLossConfig) -> Tensor:
    """Cross-entropy of each logit with a power of its quality, in the shape of `logits`; background weighs a power of
    its probability, a positive 1. Arguments: see `varifocal_loss`."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets**config.gamma, reduction="none")
    background = (1 - positive) * logits.detach().sigmoid() ** config.gamma
    return (background + positive) * cross_entropy


class IoUAwareLossConfig(Config):
    """IoU-aware binary cross-entropy of LW-DETR (Chen et al., arXiv 2406.03459). Defaults: its code."""

    alpha: float = Field(0.25, ge=0, le=1)  # power of the probability in a positive's target; 1 - alpha: of its IoU
    gamma: float = Field(2.0, ge=0)  # the larger, the less easy background counts
    least: float = Field(0.01, ge=0, le=1)  # target of a positive


def iou_aware_loss(logits: Tensor, targets: Tensor, positive: Tensor, config: IoUAwareLossConfig) -> Tensor:
    """Cross-entropy of each logit, in the shape of `logits`, with a target between its probability and its IoU, without
    gradient; background weighs its own probability to the power of gamma, with gradient.

    targets   in [0, 1]: the IoU of positives
    positive  1 for positives, else 0; in the shape and dtype of `logits`
    """
    probability = logits.sigmoid()
    mixed = probability.detach() ** config.alpha * targets ** (1 - config.alpha)
    quality = positive * mixed.clamp(min=config.least)
    background = torch.where(positive > 0, 1 - quality, probability**config.gamma)
    return -quality * F.logsigmoid(logits) - background * F.logsigmoid(-logits)


def distribution_focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """`[...]`: cross-entropy of a distribution over 0, 1, ..., R with the two whole numbers around its target, each of
    which weighs as much as the target is near it (Li et al., arXiv 2006.04388, equation 6).

    logits   `[..., R + 1]`
    targets  `[...]` in [0, R)
    """
    below = targets.long()
    nearness = targets - below  # of the number above
    chosen = torch.stack([below, below + 1], dim=-1)
    low, high = logits.log_softmax(dim=-1).gather(-1, chosen).unbind(dim=-1)
    return -((1 - nearness) * low + nearness * high)


def smooth_l1_loss(predictions: Tensor, targets: Tensor, beta: float) -> Tensor:
    """0.5 d^2 / beta where the distance d is below `beta`, else d - 0.5 beta, in the shape of `predictions`.

    beta  1: Fast R-CNN, arXiv 1504.08083, equation 3; 0: the absolute difference
    """
    return F.smooth_l1_loss(predictions, targets, beta=beta, reduction="none")


def giou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """1 - GIoU `[..., N]`, in [0, 2], of boxes `[..., N, 4]` and as many targets (arXiv 1902.09630, algorithm 2)."""
    return 1 - generalized_box_iou(boxes, targets, paired=True)


def siou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """1 - SIoU `[..., N]`, in [0, 2), of boxes `[..., N, 4]` and as many targets (arXiv 2205.12740)."""
    return 1 - scylla_box_iou(boxes, targets, paired=True)


def darknet_ciou_step(boxes: Tensor, targets: Tensor) -> Tensor:
    """`[P, 4]`: the step of x, y, w, h that darknet takes for CIoU; in parts of the picture, as `boxes` and `targets`.

    boxes, targets  `[P, 4]` cxcywh

    It is not the derivative of CIoU: sides count whole where a corner moves by half of them, the term of the enclosing
    box has the opposite sign for x and y, the derivative of the aspect lacks a factor, and where boxes do not overlap
    only their distance and aspect count.
    Source: `dx_box_iou` of darknet's box.c (AlexeyAB), with CIOU.
    """
    middle, sides = boxes[:, :2], boxes[:, 2:]
    goal, goal_sides = targets[:, :2], targets[:, 2:]
    low, high, goal_low, goal_high = (
        middle - sides / 2,
        middle + sides / 2,
        goal - goal_sides / 2,
        goal + goal_sides / 2,
    )
    shared = torch.minimum(high, goal_high) - torch.maximum(low, goal_low)  # [P, 2]; less than 0 where boxes are apart
    across = shared.flip(1)
    intersection = shared.prod(dim=1, keepdim=True)
    union = sides.prod(dim=1, keepdim=True) + goal_sides.prod(dim=1, keepdim=True) - intersection
    slopes = []  # of the IoU, where the lower and where the upper sides move
    for inner, grows in ((-across * (low > goal_low), -sides.flip(1)), (across * (high < goal_high), sides.flip(1))):
        slope = (union * inner - intersection * (grows - inner)) / union**2
        slopes.append(torch.where(union > 0, slope, 0.0))
    at_low, at_high = slopes
    overlapping = (shared > 0).all(dim=1, keepdim=True)
    beyond_low, beyond_high = (low < goal_low).to(boxes.dtype), (high > goal_high).to(boxes.dtype)
    enclosing = torch.maximum(high, goal_high) - torch.minimum(low, goal_low)
    diagonal = (enclosing**2).sum(dim=1, keepdim=True)
    distance = ((middle - goal) ** 2).sum(dim=1, keepdim=True)
    move = (2 * (goal - middle) * diagonal - 2 * enclosing * (beyond_high - beyond_low) * distance) / diagonal**2
    grow = enclosing * (beyond_high + beyond_low) * distance / diagonal**2
    angle = torch.atan(goal_sides[:, :1] / goal_sides[:, 1:]) - torch.atan(sides[:, :1] / sides[:, 1:])
    aspect = 4 / math.pi**2 * angle**2
    alpha = aspect / (1 - intersection / union + aspect + 1e-6)
    turn = 8 / math.pi**2 * angle * sides.flip(1) * boxes.new_tensor([1.0, -1.0])
    position = torch.where(overlapping, at_low + at_high, 0.0) + move
    shape = torch.where(overlapping, at_high - at_low, 0.0) + grow + alpha * turn
    return torch.cat([position, shape], dim=1)


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Softmax cross-entropy `[N]` of logits `[N, C]` and labels `[N]`, each times the weight of its label, `[C]`."""
    return F.cross_entropy(logits, labels, weights, reduction="none")


def sum_squared_error(predictions: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """The sum of the squared differences. darknet reports this sum, but its gradient is that of half of it.

    weights  factors on the squares, in a shape that broadcasts to them
    """
    squares = (predictions - targets) ** 2
    return torch.sum(squares if weights is None else weights * squares)


def background_first(class_weights: Tensor | None) -> Tensor | None:
    """`[K]` -> `[K + 1]`: a weight of 1 for background, which is label 0 of a softmax; None stays None."""
    return None if class_weights is None else F.pad(class_weights, (1, 0), value=1.0)
