"""Losses against torchvision, slow formulas, values by hand and differences."""

import math

import pytest
import torch
from torch.testing import assert_close
from torchvision.ops import sigmoid_focal_loss as torchvision_focal_loss

from detkit.nn.losses import (
    FocalLossConfig,
    IoUAwareLossConfig,
    MatchabilityLossConfig,
    VarifocalLossConfig,
    distribution_focal_loss,
    giou_loss,
    iou_aware_loss,
    matchability_loss,
    sigmoid_focal_loss,
    siou_loss,
    smooth_l1_loss,
    sum_squared_error,
    varifocal_loss,
    weighted_cross_entropy,
)

FOCAL = [FocalLossConfig(), FocalLossConfig(alpha=0.5, gamma=0.0), FocalLossConfig(alpha=0.9, gamma=3.5)]


def focal_cases(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits from certain to undecided, and targets."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64) * 4
    return logits, torch.randint(0, 2, shape, generator=generator).double()


def slow_focal_loss(logit: float, target: float, config: FocalLossConfig) -> float:
    """Equation 5 of arXiv 1708.02002."""
    probability = 1 / (1 + math.exp(-logit))
    p_t, alpha_t = (probability, config.alpha) if target == 1 else (1 - probability, 1 - config.alpha)
    return -alpha_t * (1 - p_t) ** config.gamma * math.log(p_t)


@pytest.mark.parametrize("config", FOCAL, ids=str)
def test_focal_loss_equals_its_formula_and_torchvisions(config: FocalLossConfig) -> None:
    logits, targets = focal_cases(3, 40)
    loss = sigmoid_focal_loss(logits, targets, config)
    expected = [
        slow_focal_loss(logit, target, config)
        for logit, target in zip(logits.flatten().tolist(), targets.flatten().tolist(), strict=True)
    ]
    assert_close(loss, torch.tensor(expected, dtype=torch.float64).view(3, 40))
    assert_close(loss, torchvision_focal_loss(logits, targets, config.alpha, config.gamma))


@pytest.mark.parametrize("config", FOCAL, ids=str)
def test_focal_loss_differentiates(config: FocalLossConfig) -> None:
    logits, targets = focal_cases(12)
    assert torch.autograd.gradcheck(lambda x: sigmoid_focal_loss(x, targets, config), logits.requires_grad_())


def test_focal_loss_of_certain_predictions_is_finite() -> None:
    """Certain and right: nothing. Certain and wrong: the weight times the logit."""
    logits = torch.tensor([1000.0, -1000.0, 1000.0, -1000.0], requires_grad=True)
    loss = sigmoid_focal_loss(logits, torch.tensor([1.0, 0.0, 0.0, 1.0]), FocalLossConfig())
    assert loss.tolist() == [0, 0, 750, 250]
    loss.sum().backward()
    assert_close(logits.grad, torch.tensor([0, 0, 0.75, -0.25]))


def test_smooth_l1_by_hand() -> None:
    """With a corner at 0.5: half the square over 0.5 before it, the distance less 0.25 beyond."""
    targets = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0])
    predictions = targets + torch.tensor([0.0, 0.1, -0.5, 0.5, -2.0])
    assert_close(smooth_l1_loss(predictions, targets, 0.5), torch.tensor([0.0, 0.01, 0.25, 0.25, 1.75]))


def test_smooth_l1_has_no_jump_and_no_kink_at_its_corner() -> None:
    beta, step = 1 / 9, 1e-6
    distances = torch.tensor([beta - step, beta, beta + step], dtype=torch.float64, requires_grad=True)
    loss = smooth_l1_loss(distances, torch.zeros_like(distances), beta)
    assert_close(loss.detach().diff(), torch.full((2,), step, dtype=torch.float64), rtol=1e-4, atol=0)
    loss.sum().backward()
    assert_close(distances.grad, torch.ones(3, dtype=torch.float64), rtol=1e-4, atol=0)


def test_smooth_l1_without_a_corner_is_the_distance() -> None:
    assert smooth_l1_loss(torch.tensor([0.0, 3.0]), torch.tensor([0.5, 1.0]), 0.0).tolist() == [0.5, 2.0]


@pytest.mark.parametrize("beta", [1 / 9, 1.0])
def test_smooth_l1_differentiates(beta: float) -> None:
    predictions = torch.tensor([-3.0, -0.5, 0.05, 0.3, 2.0], dtype=torch.float64, requires_grad=True)
    targets = torch.zeros(5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: smooth_l1_loss(x, targets, beta), predictions)


def test_giou_loss_by_hand() -> None:
    """Equal, a quarter shared, side by side with a gap, and a box without area inside."""
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 1, 1], [1, 1, 1, 1]])
    targets = torch.tensor([[0.0, 0, 2, 2], [1, 1, 3, 3], [3, 0, 4, 1], [0, 0, 2, 2]])
    expected = [0, 1 - (1 / 7 - 2 / 9), 1 - (0 - 2 / 4), 1]
    assert_close(giou_loss(boxes, targets), torch.tensor(expected))
    assert giou_loss(boxes[:0], targets[:0]).shape == (0,)
    assert giou_loss(boxes.view(2, 2, 4), targets.view(2, 2, 4)).shape == (2, 2)


def test_giou_loss_differentiates() -> None:
    boxes = torch.tensor([[0.1, 0.2, 2.3, 2.1], [0.3, 0.1, 1.2, 1.4]], dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[1.0, 1, 3, 3.2], [3, 0, 4, 1]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: giou_loss(x, targets), boxes)


def test_weighted_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]).log()
    loss = weighted_cross_entropy(logits, torch.tensor([1, 2]), torch.tensor([1.0, 1.0, 0.1]))
    assert loss.tolist() == pytest.approx([-math.log(0.2), -0.1 * math.log(0.8)], rel=1e-5)


def test_sum_squared_error_by_hand() -> None:
    assert sum_squared_error(torch.tensor([[1.0, 2.0], [0.0, 5.0]]), torch.tensor([[1.0, 4.0], [3.0, 4.0]])) == 14


def test_siou_loss_is_one_less_siou() -> None:
    """Beside each other: no overlap, half of the hull's side twice. SIoU itself is tested with the other IoUs."""
    boxes, targets = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2]]), torch.tensor([[0.0, 0, 2, 2], [2, 0, 4, 2]])
    assert_close(siou_loss(boxes, targets), torch.tensor([0, 1 + (1 - math.exp(-2 / 4)) / 2]))


VARIFOCAL = [VarifocalLossConfig(), VarifocalLossConfig(alpha=0.5, gamma=0.0), VarifocalLossConfig(alpha=1, gamma=3.5)]


def slow_varifocal_loss(logit: float, quality: float, positive: bool, config: VarifocalLossConfig) -> float:
    """Equation 2 of arXiv 2008.13367."""
    p = 1 / (1 + math.exp(-logit))
    if positive:
        return -quality * (quality * math.log(p) + (1 - quality) * math.log(1 - p))
    return -config.alpha * p**config.gamma * math.log(1 - p)


@pytest.mark.parametrize("config", VARIFOCAL, ids=str)
def test_varifocal_loss_equals_its_formula(config: VarifocalLossConfig) -> None:
    logits, positive = focal_cases(3, 40)
    quality = torch.rand(3, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * positive
    quality[0, :10] = 0  # a positive of quality 0 learns nothing
    cases = zip(*(t.flatten().tolist() for t in (logits, quality, positive)), strict=True)
    expected = [slow_varifocal_loss(logit, q, bool(is_positive), config) for logit, q, is_positive in cases]
    loss = varifocal_loss(logits, quality, positive, config)
    assert_close(loss, torch.tensor(expected, dtype=torch.float64).view(3, 40))


def test_varifocal_loss_differentiates() -> None:
    """The weight of background is part of the loss, not a constant."""
    logits, positive = focal_cases(12)
    config, quality = VarifocalLossConfig(), positive * 0.3
    assert torch.autograd.gradcheck(lambda x: varifocal_loss(x, quality, positive, config), logits.requires_grad_())


def slow_iou_aware_loss(logit: float, iou: float, positive: bool, config: IoUAwareLossConfig) -> float:
    """LW-DETR's, from the words of its docstring."""
    p = 1 / (1 + math.exp(-logit))
    if positive:
        target = max(p**config.alpha * iou ** (1 - config.alpha), config.least)
        return -target * math.log(p) - (1 - target) * math.log(1 - p)
    return -(p**config.gamma) * math.log(1 - p)


@pytest.mark.parametrize("config", [IoUAwareLossConfig(), IoUAwareLossConfig(alpha=0.5, gamma=1.0, least=0.1)], ids=str)
def test_iou_aware_loss_equals_its_formula(config: IoUAwareLossConfig) -> None:
    logits, positive = focal_cases(3, 40)
    iou = torch.rand(3, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * positive
    iou[0, :10] = 0  # a positive without overlap has the least target
    cases = zip(*(t.flatten().tolist() for t in (logits, iou, positive)), strict=True)
    expected = [slow_iou_aware_loss(logit, q, bool(is_positive), config) for logit, q, is_positive in cases]
    assert_close(iou_aware_loss(logits, iou, positive, config), torch.tensor(expected, dtype=torch.float64).view(3, 40))


def test_the_target_of_a_positive_is_a_constant_and_the_weight_of_background_is_not() -> None:
    """At a logit of 0: p - target, and p^2 p - 2 p p (1 - p) log(1 - p)."""
    logits = torch.zeros(2, requires_grad=True)
    iou_aware_loss(logits, torch.tensor([0.6, 0.0]), torch.tensor([1.0, 0.0]), IoUAwareLossConfig()).sum().backward()
    assert_close(logits.grad, torch.tensor([0.5 - 0.5**0.25 * 0.6**0.75, 0.125 + 0.25 * math.log(2)]))


def test_varifocal_loss_by_hand() -> None:
    """At a logit of 0 every cross-entropy is log 2: times the quality, or a quarter of three quarters."""
    loss = varifocal_loss(torch.zeros(2), torch.tensor([0.6, 0.0]), torch.tensor([1.0, 0.0]), VarifocalLossConfig())
    assert_close(loss, torch.tensor([0.6, 0.75 / 4]) * math.log(2))


def test_distribution_focal_loss_by_hand() -> None:
    """Of probabilities 1/8, 1/2, 1/4, 1/8: at 1 that of bin 1; at 1.25 three quarters of it and one of bin 2."""
    logits = torch.tensor([1 / 8, 1 / 2, 1 / 4, 1 / 8]).log().expand(3, 4)
    loss = distribution_focal_loss(logits, torch.tensor([1.0, 1.25, 0.5]))
    assert_close(loss, torch.tensor([1, 0.75 * 1 + 0.25 * 2, 0.5 * 3 + 0.5 * 1]) * math.log(2))
    assert distribution_focal_loss(logits[:0], torch.zeros(0)).shape == (0,)


def test_distribution_focal_loss_is_least_for_the_two_bins_around_its_target() -> None:
    """Its least value is their entropy, and its gradient the softmax less what each should be."""
    logits = torch.tensor([[-1.0, 0.3, 2.0, 0.1]], dtype=torch.float64, requires_grad=True)
    distribution_focal_loss(logits, torch.tensor([2.3], dtype=torch.float64)).sum().backward()
    expected = logits.detach().softmax(dim=1) - torch.tensor([[0, 0, 0.7, 0.3]], dtype=torch.float64)
    assert_close(logits.grad, expected)


def test_varifocal_weights_without_gradient() -> None:
    """Then the slope at a background logit of probability 1/2 is alpha (1/2)^2 times that of the cross-entropy, 1/2."""
    logit = torch.zeros(1, requires_grad=True)
    zero = torch.zeros(1)
    varifocal_loss(logit, zero, zero, VarifocalLossConfig(), fixed_weights=True).sum().backward()
    assert logit.grad is not None
    assert logit.grad.item() == pytest.approx(0.75 * 0.25 * 0.5)


def test_matchability_loss_by_hand() -> None:
    """Probability .8: a positive of IoU .25, whose target is .25^1.5 = .125, and background, which weighs .8^1.5."""
    logits = torch.full((2,), 0.8).logit()
    loss = matchability_loss(logits, torch.tensor([0.25, 0]), torch.tensor([1.0, 0]), MatchabilityLossConfig())
    positive = -(0.125 * math.log(0.8) + 0.875 * math.log(0.2))
    assert loss.tolist() == pytest.approx([positive, -(0.8**1.5) * math.log(0.2)], rel=1e-5)
