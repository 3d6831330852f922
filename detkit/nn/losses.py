"""Losses of matched predictions and targets, one value an element or pair; heads sum and normalise them.

Legend: N pairs of a prediction and its target, C logits of a prediction. Boxes are xyxy.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from detkit.config import Config
from detkit.ops.iou import generalized_box_iou


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


def smooth_l1_loss(predictions: Tensor, targets: Tensor, beta: float) -> Tensor:
    """0.5 d^2 / beta where the distance d is below `beta`, else d - 0.5 beta, in the shape of `predictions`.

    beta  1: Fast R-CNN, arXiv 1504.08083, equation 3; 0: the absolute difference
    """
    return F.smooth_l1_loss(predictions, targets, beta=beta, reduction="none")


def giou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """1 - GIoU `[..., N]`, in [0, 2], of boxes `[..., N, 4]` and as many targets (arXiv 1902.09630, algorithm 2)."""
    return 1 - generalized_box_iou(boxes, targets, paired=True)


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
