"""What the dense detectors on a pyramid share: towers of convolutions, focal loss of all classes, the likeliest pairs.

Legend: B images, L levels, A predictions of an image over all levels, P positives of the batch, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from detkit.config import Config
from detkit.nn.assign.assignment import Assignment
from detkit.nn.assign.positives import Positives
from detkit.nn.losses import FocalLossConfig, sigmoid_focal_loss
from detkit.nn.selection import SelectionConfig

# Of every class before training; else the many background predictions drown the rest (RetinaNet, section 4.1).
FIRST_SCORE = 0.01


class DenseSelectionConfig(SelectionConfig):
    """Defaults: torchvision's RetinaNet."""

    at_test: ClassVar[tuple[str, ...]] = (*SelectionConfig.at_test, "top_k_per_level")

    top_k_per_level: int = Field(1000, ge=1)  # pairs of a prediction and a class that enter the suppression
    max_detections: int = Field(300, ge=1)


class TowerConfig(Config):
    """The convolutions before the predictions. Defaults: RetinaNet, section 4."""

    convs: int = Field(4, ge=0)
    groups: int | None = Field(None, ge=1)  # of the group norm after each convolution; null: no norm
    bias: bool = True  # of the convolutions; a norm makes it superfluous


def build_tower(channels: int, config: TowerConfig) -> nn.Sequential:
    """`[B, channels, H, W]` -> the same shape; one tower serves all levels."""
    blocks = []
    for _ in range(config.convs):
        conv = nn.Conv2d(channels, channels, 3, padding=1, bias=config.bias)
        norm = [] if config.groups is None else [nn.GroupNorm(config.groups, channels)]
        blocks.append(nn.Sequential(conv, *norm, nn.ReLU(inplace=True)))
    tower = nn.Sequential(*blocks)
    init_convs(tower)
    return tower


def init_convs(module: nn.Module) -> None:
    """Small weights and no bias, as RetinaNet (section 4.1) and all after it start."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d):
            nn.init.normal_(conv.weight, std=0.01)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)


def classifier(channels: int, outputs: int) -> nn.Conv2d:
    """The convolution of the class logits, every score of which starts at `FIRST_SCORE`."""
    conv = nn.Conv2d(channels, outputs, 3, padding=1)
    init_convs(conv)
    nn.init.constant_(conv.bias, math.log(FIRST_SCORE / (1 - FIRST_SCORE)))  # type: ignore[arg-type]
    return conv


def focal_class_loss(
    logits: Tensor,
    assignments: Sequence[Assignment],
    positives: Positives,
    config: FocalLossConfig,
    class_weights: Tensor | None,
) -> Tensor:
    """`[B]`: the focal loss of each image, summed over the classes of all predictions that take part.

    logits         `[B, A, K]`
    class_weights  `[K]`: factors on all logits of a positive of that class; None: all are 1
    """
    labels = torch.zeros_like(logits)
    labels[positives.image, positives.prediction, positives.labels] = 1
    weights = torch.stack([assignment.weight for assignment in assignments])
    if class_weights is not None:
        weights[positives.image, positives.prediction] *= class_weights[positives.labels]
    losses: Tensor = sigmoid_focal_loss(logits, labels, config).sum(dim=2)
    return (losses * weights).sum(dim=1)


def sum_of_images(values: Tensor, images: Tensor, num_images: int) -> Tensor:
    """`[B]`: the sum of the values `[P]` of each image; images int64 `[P]`."""
    return values.new_zeros(num_images).index_add(0, images, values)
