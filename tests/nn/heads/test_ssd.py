"""SSD's head: priors, mining and loss by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from detkit.config import UserError
from detkit.nn.heads.ssd import SSDHead, SSDHeadConfig, SSDOutputs
from detkit.ops.coders import BoxCoder
from detkit.structures import ImageInfo, Target

# one level of one cell row: priors are squares of 10 px, centred at x = 5, 15, ..., and all at y = 5
ONE_LEVEL = SSDHeadConfig(min_sizes=(10,), max_sizes=(None,), ratios=((),), steps=(10,))


def make_head(config: SSDHeadConfig = ONE_LEVEL, channels: int = 3) -> SSDHead:
    torch.manual_seed(0)
    return SSDHead(config, [channels] * len(config.min_sizes), ["cat", "dog"])


def make_outputs(head: SSDHead, count: int, batch: int = 1) -> SSDOutputs:
    torch.manual_seed(1)
    logits = torch.randn(batch, count, 3, requires_grad=True)
    deltas = torch.randn(batch, count, 4, requires_grad=True)
    return SSDOutputs(logits, deltas, head.priors([(1, count)], (10, 10 * count)))


def target(*boxes: tuple[float, ...], labels: list[int] | None = None, ignore: list[bool] | None = None) -> Target:
    count = len(boxes)
    return Target(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels or [0] * count, dtype=torch.int64),
        torch.tensor(ignore or [False] * count, dtype=torch.bool),
    )


def cross_entropies(outputs: SSDOutputs, image: int, label: int) -> Tensor:
    logits = outputs.logits[image]
    return F.cross_entropy(logits, torch.full((len(logits),), label), reduction="none")


def test_published_numbers_of_priors() -> None:
    """8,732 of SSD300 (section 2.1), by the maps of the paper: 4 * (38^2 + 3^2 + 1) + 6 * (19^2 + 10^2 + 5^2)."""
    head = SSDHead(SSDHeadConfig(), [1] * 6, ["thing"])
    maps = [(side, side) for side in (38, 19, 10, 5, 3, 1)]
    priors = head.priors(maps, (300, 300))
    assert len(priors) == 8732
    # the first cell of the first level: 30; sqrt(30 * 60); 30 * sqrt(2) by 30 / sqrt(2) and its inverse; around (4, 4)
    sides = priors[:4, 2:] - priors[:4, :2]
    mean, long, short = math.sqrt(1800), 30 * math.sqrt(2), 30 / math.sqrt(2)
    expected = torch.tensor([(30, 30), (mean, mean), (long, short), (short, long)])
    torch.testing.assert_close(sides, expected)
    torch.testing.assert_close((priors[:4, :2] + priors[:4, 2:]) / 2, torch.full((4, 2), 4.0))
    # the only cell of the last level is centred at 150 and its first prior is 264 wide
    torch.testing.assert_close(priors[-4], torch.tensor([150 - 132.0, 18, 282, 282]))


def test_priors_without_steps_divide_the_input_and_sides_may_be_clipped() -> None:
    config = SSDHeadConfig(min_sizes=(280,), max_sizes=(None,), ratios=((4,),), steps=None, clip_sides=True)
    priors = make_head(config).priors([(3, 3)], (320, 320))
    torch.testing.assert_close(priors[0, :2] + 140, torch.full((2,), 320 / 6))
    assert (priors[1, 2:] - priors[1, :2]).tolist() == [320, 140]  # 560 x 140


@pytest.mark.parametrize("side", [37, 38])  # 300 / 8 = 37.5, rounded either way
def test_steps_fit_maps_rounded_either_way(side: int) -> None:
    head = make_head(ONE_LEVEL.model_copy(update={"steps": (8,)}))
    assert len(head.priors([(side, side)], (300, 300))) == side**2


@pytest.mark.parametrize("feature_size", [(4, 1), (1, 4)])
def test_steps_of_another_input_size_are_refused(feature_size: tuple[int, int]) -> None:
    """SSD300's last level on 512 px: a step of 300 would lay centres at 450, 750 and 1050."""
    head = make_head(ONE_LEVEL.model_copy(update={"steps": (300,)}))
    height, width = feature_size
    message = f"head.steps: 300 px do not fit level 0, of {height} x {width} cells, and an input of 512 x 512 px"
    with pytest.raises(UserError, match=message):
        head.priors([feature_size], (512, 512))


def test_loss_by_hand_with_three_background_priors_a_positive_one() -> None:
    """The object is prior 2 of eight; of the other seven the three with the highest background loss count."""
    head = make_head()
    outputs = make_outputs(head, 8)
    losses = head.criterion(outputs, [target((20, 0, 30, 10), labels=[1])])
    background = cross_entropies(outputs, 0, 0)
    hardest = background[[0, 1, 3, 4, 5, 6, 7]].sort(descending=True).values[:3]
    torch.testing.assert_close(losses["ssd_class"], cross_entropies(outputs, 0, 2)[2] + hardest.sum())
    wanted = torch.zeros(4)  # the object is the prior
    torch.testing.assert_close(losses["ssd_box"], F.smooth_l1_loss(outputs.deltas[0, 2], wanted, reduction="sum"))


def test_mining_is_by_image_and_the_normaliser_is_the_batchs() -> None:
    """Two positives in one image, none in the other, which therefore adds nothing; both losses are divided by two."""
    head = make_head()
    outputs = make_outputs(head, 10, batch=2)
    losses = head.criterion(outputs, [target((20, 0, 30, 10), (50, 0, 60, 10), labels=[1, 0]), target()])
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
    losses = head.criterion(outputs, [target((11, 0, 23, 10))])
    wanted = torch.tensor([2.0, 0.0, 5 * math.log(1.2), 0.0])
    torch.testing.assert_close(losses["ssd_box"], F.smooth_l1_loss(outputs.deltas[0, 1], wanted, reduction="sum"))
    assert isinstance(head.coder, BoxCoder)


def test_a_batch_without_objects_has_no_loss_but_a_gradient_of_zero() -> None:
    head = make_head()
    features = [torch.randn(2, 3, 1, 6)]
    losses = head.criterion(head(features, (10, 60)), [target(), target()])
    assert {name: loss.item() for name, loss in losses.items()} == {"ssd_class": 0, "ssd_box": 0}
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in head.parameters())


def test_ignored_objects_are_no_targets() -> None:
    head = make_head()
    outputs = make_outputs(head, 4)
    losses = head.criterion(outputs, [target((10, 0, 20, 10), ignore=[True])])
    assert losses["ssd_class"] == losses["ssd_box"] == 0


def test_outputs_of_one_cell_lie_together() -> None:
    """Prior a of cell (row, column) reads channels a * width ... of that cell."""
    config = SSDHeadConfig(min_sizes=(10,), max_sizes=(20,), ratios=((),), steps=(10,), kernel_size=1)
    head = make_head(config)
    level = torch.randn(1, 3, 2, 3)
    outputs = head([level], (20, 30))
    raw = head.classifier[0](level)[0]  # [2 * 3, 2, 3]
    torch.testing.assert_close(outputs.logits[0, (1 * 3 + 2) * 2 + 1], raw[3:, 1, 2])
    assert outputs.priors.shape == (12, 4)


def test_detections_in_original_pixels_with_the_best_of_each_class() -> None:
    head = make_head(ONE_LEVEL.model_copy(update={"top_k_per_class": 2, "score_threshold": 0.1}))
    logits = torch.full((1, 4, 3), 0.0)
    logits[0, :, 1] = torch.tensor([3.0, 4.0, 5.0, 1.0])  # cat, background 0 and dog 0
    outputs = SSDOutputs(logits, torch.zeros(1, 4, 4), head.priors([(1, 4)], (10, 40)))
    (found,) = head.postprocess(outputs, [ImageInfo(0, (20, 80), (10, 40), (0.5, 0.5))])
    cats = found.labels == 0
    assert found.boxes[cats].tolist() == [[40, 0, 60, 20], [20, 0, 40, 20]]  # the two best, twice as large
    probability = math.exp(5) / (math.exp(5) + 2)
    assert found.scores[0].item() == pytest.approx(probability)


@pytest.mark.parametrize("name", ["max_sizes", "ratios", "steps"])
def test_lists_have_one_entry_a_level(name: str) -> None:
    with pytest.raises(ValidationError, match=f"{name}: expected 6 entries, as min_sizes has, found 1"):
        SSDHeadConfig(**{name: ((2,),) if name == "ratios" else (1,)})  # type: ignore[arg-type]
