"""SSD's head: mining and loss by hand."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.nn.anchors import PriorConfig
from detkit.nn.heads.ssd import SSDHead, SSDHeadConfig, SSDOutputs, SSDSelectionConfig
from detkit.ops.coders import BoxCoder
from detkit.structures import ImageInfo
from tests.nn.heads.support import detect, make_target

# one level of one cell row: priors are squares of 10 px, centred at x = 5, 15, ..., and all at y = 5
PRIORS = PriorConfig(min_sizes=(10,), max_sizes=(None,), ratios=((),), steps=(10,))


def make_head(priors: PriorConfig = PRIORS, **fields: Any) -> SSDHead:
    """For the classes cat and dog."""
    torch.manual_seed(0)
    return SSDHead(SSDHeadConfig(priors=priors, **fields), [3] * len(priors.min_sizes), 2)


def make_outputs(head: SSDHead, count: int, batch: int = 1) -> SSDOutputs:
    torch.manual_seed(1)
    logits = torch.randn(batch, count, 3, requires_grad=True)
    deltas = torch.randn(batch, count, 4, requires_grad=True)
    return SSDOutputs(logits, deltas, head.priors([(1, count)], (10, 10 * count)))


def cross_entropies(outputs: SSDOutputs, image: int, label: int) -> Tensor:
    logits = outputs.logits[image]
    return F.cross_entropy(logits, torch.full((len(logits),), label), reduction="none")


def test_loss_by_hand_with_three_background_priors_a_positive_one() -> None:
    """The object is prior 2 of eight; of the other seven the three with the highest background loss count."""
    head = make_head()
    outputs = make_outputs(head, 8)
    losses = head.criterion(outputs, [make_target([(20, 0, 30, 10)], [1])])
    background = cross_entropies(outputs, 0, 0)
    hardest = background[[0, 1, 3, 4, 5, 6, 7]].sort(descending=True).values[:3]
    torch.testing.assert_close(losses["ssd_class"], cross_entropies(outputs, 0, 2)[2] + hardest.sum())
    expected = F.smooth_l1_loss(outputs.deltas[0, 2], torch.zeros(4), reduction="sum")  # the object is the prior
    torch.testing.assert_close(losses["ssd_box"], expected)


def test_mining_is_by_image_and_the_normaliser_is_the_batchs() -> None:
    """Two positives in one image, none in the other, which therefore adds nothing; both losses are divided by two."""
    head = make_head()
    outputs = make_outputs(head, 10, batch=2)
    losses = head.criterion(outputs, [make_target([(20, 0, 30, 10), (50, 0, 60, 10)], [1, 0]), make_target([])])
    background = cross_entropies(outputs, 0, 0)
    others = background[[0, 1, 3, 4, 6, 7, 8, 9]].sort(descending=True).values[:6]
    positives = cross_entropies(outputs, 0, 2)[2] + cross_entropies(outputs, 0, 1)[5]
    torch.testing.assert_close(losses["ssd_class"], (positives + others.sum()) / 2)
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert outputs.logits.grad is not None
    assert (outputs.logits.grad[1] == 0).all()


def test_box_targets_are_divided_by_the_variances() -> None:
    """Object 12 px wide, 2 px right of the prior's centre: dx = 0.2 / 0.1, dw = log(1.2) / 0.2."""
    head = make_head()
    outputs = make_outputs(head, 4)
    losses = head.criterion(outputs, [make_target([(11, 0, 23, 10)])])
    deltas = torch.tensor([2.0, 0.0, 5 * math.log(1.2), 0.0])
    torch.testing.assert_close(losses["ssd_box"], F.smooth_l1_loss(outputs.deltas[0, 1], deltas, reduction="sum"))
    assert isinstance(head.coder, BoxCoder)


def test_a_batch_without_objects_has_no_loss_but_a_gradient_of_zero() -> None:
    head = make_head()
    features = [torch.randn(2, 3, 1, 6)]
    losses = head.criterion(head(features, torch.tensor([[10, 60]] * 2), (10, 60)), [make_target([])] * 2)
    assert {name: loss.item() for name, loss in losses.items()} == {"ssd_class": 0, "ssd_box": 0}
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in head.parameters())


def test_ignored_objects_are_no_targets() -> None:
    head = make_head()
    outputs = make_outputs(head, 4)
    losses = head.criterion(outputs, [make_target([(10, 0, 20, 10)], ignore=[True])])
    assert losses["ssd_class"] == losses["ssd_box"] == 0


def test_outputs_of_one_cell_lie_together() -> None:
    """Prior a of cell (row, column) reads channels a * width ... of that cell."""
    head = make_head(PriorConfig(min_sizes=(10,), max_sizes=(20,), ratios=((),), steps=(10,)), kernel_size=1)
    level = torch.randn(1, 3, 2, 3)
    outputs = head([level], torch.tensor([[20, 30]]), (20, 30))
    raw = head.classifier[0](level)[0]  # [2 * 3, 2, 3]
    torch.testing.assert_close(outputs.logits[0, (1 * 3 + 2) * 2 + 1], raw[3:, 1, 2])
    assert outputs.priors.shape == (12, 4)


def test_smooth_l1_is_linear_from_beta_on() -> None:
    head = make_head(smooth_l1_beta=0.5)
    outputs = make_outputs(head, 4)
    with torch.no_grad():
        outputs.deltas[0, 1] = torch.tensor([0.2, -0.5, 2.0, 0.0])
    losses = head.criterion(outputs, [make_target([(10, 0, 20, 10)])])
    assert losses["ssd_box"].item() == pytest.approx(0.2**2 / 2 / 0.5 + 0.25 + (2 - 0.25))


@pytest.mark.parametrize(("ignored_iof", "neutral"), [(None, []), (0.6, [4, 5]), (0.5, [4, 5, 6]), (0.4, [4, 5, 6])])
def test_priors_on_an_ignored_object_are_background_unless_configured(
    ignored_iof: float | None, neutral: list[int]
) -> None:
    """The object is prior 2 of eight; 4, 5 and half of 6 are ignored, and would be the hardest background."""
    head = make_head(ignored_iof=ignored_iof, negative_ratio=4)
    outputs = make_outputs(head, 8)
    with torch.no_grad():
        outputs.logits[0, 4:7, 1] = 9.0
    target = make_target([(20, 0, 30, 10), (40, 0, 65, 10)], [1, 0], [False, True])
    losses = head.criterion(outputs, [target])
    background = cross_entropies(outputs, 0, 0)[[n for n in (0, 1, 3, 4, 5, 6, 7) if n not in neutral]]
    expected = cross_entropies(outputs, 0, 2)[2] + background.sort(descending=True).values[:4].sum()
    torch.testing.assert_close(losses["ssd_class"], expected)


def test_mining_takes_no_neutral_prior_where_background_is_short() -> None:
    """All priors but 2 and 7 are ignored: of the 21 that the ratio allows one is left."""
    head = make_head(ignored_iof=1.0, negative_ratio=21)
    outputs = make_outputs(head, 8)
    boxes = [(20.0, 0.0, 30.0, 10.0), (0.0, 0.0, 70.0, 10.0)]
    losses = head.criterion(outputs, [make_target(boxes, [1, 0], [False, True])])
    expected = cross_entropies(outputs, 0, 2)[2] + cross_entropies(outputs, 0, 0)[7]
    torch.testing.assert_close(losses["ssd_class"], expected)


def test_detections_in_original_pixels_with_the_best_of_each_class() -> None:
    head = make_head(selection=SSDSelectionConfig(top_k_per_class=2, score_threshold=0.1))
    logits = torch.full((1, 4, 3), 0.0)
    logits[0, :, 1] = torch.tensor([3.0, 4.0, 5.0, 1.0])  # cat, background 0 and dog 0
    outputs = SSDOutputs(logits, torch.zeros(1, 4, 4), head.priors([(1, 4)], (10, 40)))
    (detections,) = detect(head, outputs, ImageInfo(0, (20, 80), (10, 40), (0.5, 0.5)))
    cats = detections.labels == 0
    assert detections.boxes[cats].tolist() == [[40, 0, 60, 20], [20, 0, 40, 20]]  # the two best, twice as large
    probability = math.exp(5) / (math.exp(5) + 2)
    assert detections.scores[0].item() == pytest.approx(probability)
