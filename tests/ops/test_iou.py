import math

import pytest
import torch
import torchvision
from torch.testing import assert_close

from detkit.ops import iou as ops
from tests.ops.cases import BOXES, degenerate_boxes, random_boxes
from tests.reference import iou as reference

FAMILY = [
    "box_iou",
    "box_iof",
    "generalized_box_iou",
    "distance_box_iou",
    "complete_box_iou",
    "scylla_box_iou",
]
family = pytest.mark.parametrize("name", FAMILY)


def by_hand(name: str, boxes1: torch.Tensor, boxes2: torch.Tensor, inclusive: bool) -> torch.Tensor:
    function = getattr(reference, name)
    rows = [[function(a, b, inclusive) for b in boxes2.tolist()] for a in boxes1.tolist()]
    return torch.tensor(rows, dtype=torch.float64).view(len(boxes1), len(boxes2))


@family
@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize("first", BOXES)
def test_all_pairs_equal_the_definition(name: str, first: str, inclusive: bool) -> None:
    for boxes2 in BOXES.values():
        actual = getattr(ops, name)(BOXES[first], boxes2, inclusive=inclusive)
        assert_close(actual, by_hand(name, BOXES[first], boxes2, inclusive))


@family
@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize("boxes", BOXES)
def test_paired_is_the_diagonal(name: str, boxes: str, inclusive: bool) -> None:
    boxes1, boxes2 = BOXES[boxes], BOXES[boxes].flip(0)
    function = getattr(ops, name)
    expected = function(boxes1, boxes2, inclusive=inclusive).diagonal()
    assert_close(function(boxes1, boxes2, paired=True, inclusive=inclusive), expected)


@family
def test_leading_dimensions_are_a_batch(name: str) -> None:
    boxes1, boxes2 = random_boxes(6).view(2, 3, 4), random_boxes(8, seed=1).view(2, 4, 4)
    function = getattr(ops, name)
    expected = torch.stack([function(a, b) for a, b in zip(boxes1, boxes2, strict=True)])
    assert_close(function(boxes1, boxes2), expected)


@pytest.mark.parametrize("name", [name for name in FAMILY if name not in ("box_iof", "scylla_box_iou")])
def test_equals_torchvision(name: str) -> None:
    boxes1, boxes2 = random_boxes(40, seed=1).float(), random_boxes(50, seed=2).float()
    expected = getattr(torchvision.ops, name)(boxes1, boxes2)
    assert_close(getattr(ops, name)(boxes1, boxes2), expected, rtol=0, atol=1e-6)


def test_values_by_hand() -> None:
    """Two 2 x 2 boxes that share a quarter: intersection 1, union 7, hull 9, centre distance^2 2, diagonal^2 18.

    Their centres lie on a diagonal, so that SIoU counts (1 / 3)^2 once for each axis; the shape is the same."""
    boxes1, boxes2 = torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 1, 3, 3]])
    expected = {
        "box_iou": 1 / 7,
        "box_iof": 1 / 4,
        "generalized_box_iou": 1 / 7 - 2 / 9,
        "distance_box_iou": 1 / 7 - 2 / 18,
        "complete_box_iou": 1 / 7 - 2 / 18,
        "scylla_box_iou": 1 / 7 - (1 - math.exp(-1 / 9)),
    }
    for name, value in expected.items():
        assert getattr(ops, name)(boxes1, boxes2).item() == pytest.approx(value)


def test_scylla_iou_along_an_axis_and_of_two_shapes() -> None:
    """Beside each other the distance counts twice: half of the hull's side. One in the middle of the other has half of
    its width and the same height."""
    box = torch.tensor([[0.0, 0, 2, 2]])
    beside, narrow = torch.tensor([[2.0, 0, 4, 2]]), torch.tensor([[0.5, 0, 1.5, 2]])
    distance, shape = 1 - math.exp(-2 / 4), (1 - math.exp(-1 / 2)) ** 4
    assert ops.scylla_box_iou(box, beside).item() == pytest.approx(-distance / 2)
    assert ops.scylla_box_iou(box, narrow).item() == pytest.approx(1 / 2 - shape / 2)


def test_inclusive_corners_count_their_last_pixel() -> None:
    pixel, pair = torch.tensor([[3.0, 3, 3, 3]]), torch.tensor([[3.0, 3, 4, 3]])
    assert ops.box_iou(pixel, pixel, inclusive=True).item() == 1
    assert ops.box_iou(pixel, pair, inclusive=True).item() == 0.5
    assert ops.box_iou(pixel, pair).item() == 0


@pytest.mark.parametrize("name", [name for name in FAMILY if name != "complete_box_iou"])
@pytest.mark.parametrize("paired", [False, True])
def test_differentiates(name: str, paired: bool) -> None:
    boxes1 = random_boxes(5, seed=3).requires_grad_()
    boxes2 = random_boxes(5, seed=4).requires_grad_()
    function = getattr(ops, name)
    assert torch.autograd.gradcheck(lambda a, b: function(a, b, paired=paired), (boxes1, boxes2))


def test_alpha_of_complete_iou_is_constant_in_the_gradient() -> None:
    boxes1, boxes2 = random_boxes(6, seed=5).requires_grad_(), random_boxes(6, seed=6)
    (actual,) = torch.autograd.grad(ops.complete_box_iou(boxes1, boxes2, paired=True).sum(), boxes1)
    loss = torchvision.ops.complete_box_iou_loss(boxes1, boxes2, eps=0, reduction="sum")
    (expected,) = torch.autograd.grad(-loss, boxes1)
    assert_close(actual, expected, rtol=1e-5, atol=1e-7)


@family
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_on_degenerate_boxes(name: str, dtype: torch.dtype) -> None:
    inverted = torch.tensor([[9.0, 9, 1, 1], [9, 1, 1, 9], [1e-20, 0, 2e-20, 1e-20]])
    boxes = torch.cat((degenerate_boxes(), inverted)).to(dtype)
    boxes1, boxes2 = boxes.clone().requires_grad_(), boxes.clone().requires_grad_()
    value = getattr(ops, name)(boxes1, boxes2)
    value.sum().backward()
    assert value.isfinite().all()
    assert boxes1.grad.isfinite().all()
    assert boxes2.grad.isfinite().all()


@family
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_half_and_integer_boxes_are_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    boxes = (random_boxes(8) * 20).to(dtype)
    function = getattr(ops, name)
    assert_close(function(boxes, boxes.flip(0)), function(boxes.float(), boxes.flip(0).float()), rtol=0, atol=0)


@family
def test_a_wrong_shape_is_named(name: str) -> None:
    function = getattr(ops, name)
    with pytest.raises(ValueError, match=r"boxes2: expected boxes \[\.\.\., 4\], got \[2, 3\]"):
        function(torch.zeros(2, 4), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"boxes1 \[2, 4\], boxes2 \[3, 4\]"):
        function(torch.zeros(2, 4), torch.zeros(3, 4), paired=True)
