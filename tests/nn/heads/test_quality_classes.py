"""Classes that say how well the box fits, by hand."""

import math

import pytest
import torch

from detkit.nn.heads.quality_classes import QualityClasses
from detkit.nn.heads.set_head import ClassTargets
from detkit.nn.losses import FocalLossConfig, IoUAwareLossConfig, MatchabilityLossConfig, VarifocalLossConfig

HALF = math.log(2)  # the cross-entropy of probability 1/2 with any target


@pytest.mark.parametrize(
    ("config", "positive", "background"),
    [
        (VarifocalLossConfig(), 0.6, 0.75 * 0.25),
        (MatchabilityLossConfig(), 1.0, 0.5**1.5),
        (IoUAwareLossConfig(), 1.0, 0.25),
    ],
    ids=["varifocal", "matchability", "IoU-aware"],
)
def test_loss_of_a_layer(
    config: VarifocalLossConfig | MatchabilityLossConfig | IoUAwareLossConfig, positive: float, background: float
) -> None:
    """Two predictions, the second without an object, and two classes of probability 1/2; IoU .6, two objects.

    The prediction with an object weighs three times as much, in both of its classes.
    """
    classes = QualityClasses(2, FocalLossConfig(), config)
    targets = ClassTargets(
        torch.tensor([[[1, 2]]]),
        torch.tensor([[[0.6, 0.0]]]),
        torch.tensor([[[3.0, 1.0]]]),
        torch.ones(1, 1, 2),
        torch.tensor(2.0),
    )
    loss = classes.loss(torch.zeros(1, 1, 2, 2), targets)
    expected = HALF * (3 * (positive + background) + 2 * background) / 2
    assert loss.tolist() == pytest.approx([expected])
