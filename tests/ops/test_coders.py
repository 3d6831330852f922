import math

import pytest
import torch
from torch.testing import assert_close
from torchvision.models.detection._utils import BoxCoder as TorchvisionCoder
from torchvision.models.detection._utils import BoxLinearCoder as TorchvisionSideCoder

from detkit.ops.coders import BoxCoder, GridCoder, SideCoder
from tests.ops.cases import grid_boxes, random_boxes
from tests.reference import coders as reference

CODERS = [
    BoxCoder(),
    BoxCoder(weights=(10, 10, 5, 5)),
    BoxCoder(weights=(1, 2, 3, 4), clamp=None),
    BoxCoder(inclusive=True, clamp=None),
]
coders = pytest.mark.parametrize("coder", CODERS, ids=str)
PAIRS = {
    "random": (random_boxes(20), random_boxes(20, seed=1)),
    "grid": (grid_boxes(20), grid_boxes(20, seed=1)),
    "empty": (torch.zeros(0, 4, dtype=torch.float64), torch.zeros(0, 4, dtype=torch.float64)),
}
pairs = pytest.mark.parametrize("pair", PAIRS)


@coders
@pairs
def test_encode_equals_the_definition(coder: BoxCoder, pair: str) -> None:
    boxes, anchors = PAIRS[pair]
    rows = zip(boxes.tolist(), anchors.tolist(), strict=True)
    expected = [reference.encode(box, anchor, coder.weights, coder.inclusive) for box, anchor in rows]
    assert_close(coder.encode(boxes, anchors), torch.tensor(expected, dtype=torch.float64).view(-1, 4))


@coders
@pairs
def test_decode_equals_the_definition(coder: BoxCoder, pair: str) -> None:
    anchors = PAIRS[pair][1]
    deltas = torch.randn(anchors.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    clamp = math.inf if coder.clamp is None else coder.clamp
    rows = zip(deltas.tolist(), anchors.tolist(), strict=True)
    expected = [reference.decode(delta, anchor, coder.weights, clamp, coder.inclusive) for delta, anchor in rows]
    assert_close(coder.decode(deltas, anchors), torch.tensor(expected, dtype=torch.float64).view(-1, 4))


@coders
@pairs
def test_decode_undoes_encode(coder: BoxCoder, pair: str) -> None:
    boxes, anchors = PAIRS[pair]
    assert_close(coder.decode(coder.encode(boxes, anchors), anchors), boxes)


@coders
@pairs
def test_zero_deltas_are_the_anchor(coder: BoxCoder, pair: str) -> None:
    anchors = PAIRS[pair][1]
    assert_close(coder.decode(torch.zeros_like(anchors), anchors), anchors)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_equals_torchvision(weights: tuple[float, float, float, float]) -> None:
    boxes, anchors = (random_boxes(50, seed=seed).float() for seed in (2, 3))
    coder, torchvision_coder = BoxCoder(weights), TorchvisionCoder(weights)
    assert coder.encode(boxes, anchors).equal(torchvision_coder.encode_single(boxes, anchors))
    deltas = torch.randn(50, 3 * 4, generator=torch.Generator().manual_seed(0)) * 10
    assert coder.decode(deltas.view(50, 3, 4), anchors).equal(torchvision_coder.decode(deltas, [anchors]))


def test_several_boxes_for_each_anchor() -> None:
    anchors = random_boxes(5)
    deltas = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.stack([BoxCoder().decode(deltas[:, k], anchors) for k in range(3)], dim=1)
    assert BoxCoder().decode(deltas, anchors).equal(expected)
    assert BoxCoder().decode(deltas[:0], anchors[:0]).shape == (0, 3, 4)


def test_the_clamp_bounds_the_growth() -> None:
    anchors, deltas = torch.tensor([[0.0, 0, 16, 16]]), torch.tensor([[0.0, 0, 100, 100]])
    x1, y1, x2, y2 = BoxCoder().decode(deltas, anchors)[0].tolist()
    assert (x2 - x1, y2 - y1) == pytest.approx((1000, 1000))
    assert BoxCoder(clamp=None).decode(deltas, anchors).isinf().any()


def test_a_one_pixel_box_in_inclusive_corners() -> None:
    """Fast R-CNN's +1: a box of one pixel has width 1 and can be learned; without it its width is 0."""
    pixel, anchor = torch.tensor([[4.0, 4, 4, 4]]), torch.tensor([[0.0, 0, 15, 15]])
    deltas = BoxCoder(inclusive=True).encode(pixel, anchor)
    assert_close(deltas, torch.tensor([[-3.5 / 16, -3.5 / 16, -math.log(16), -math.log(16)]]))
    assert_close(BoxCoder(inclusive=True).decode(deltas, anchor), pixel)


def test_ssd_variances_are_reciprocal_weights() -> None:
    box, prior = torch.tensor([[10.0, 10, 30, 50]]), torch.tensor([[0.0, 0, 20, 20]])
    cx, cy, w, h = (20 - 10) / 20 / 0.1, (30 - 10) / 20 / 0.1, math.log(20 / 20) / 0.2, math.log(40 / 20) / 0.2
    assert_close(BoxCoder((10, 10, 5, 5)).encode(box, prior), torch.tensor([[cx, cy, w, h]]))


@coders
def test_differentiates(coder: BoxCoder) -> None:
    boxes, anchors = random_boxes(4).requires_grad_(), random_boxes(4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(coder.encode, (boxes, anchors))
    deltas = coder.encode(boxes, anchors).detach().requires_grad_()
    assert torch.autograd.gradcheck(coder.decode, (deltas, anchors))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_deltas_are_decoded_in_float32(dtype: torch.dtype) -> None:
    anchors = random_boxes(10, size=1000).float()
    deltas = torch.randn(10, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert BoxCoder().decode(deltas, anchors).equal(BoxCoder().decode(deltas.float(), anchors))


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"expected the shape of boxes \[3, 4\], got \[2, 4\]"):
        BoxCoder().encode(torch.zeros(3, 4), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"for anchors \[2, 4\], got \[3, 4\]"):
        BoxCoder().decode(torch.zeros(3, 4), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"expected boxes \[\.\.\., 4\], got \[3, 8\]"):
        BoxCoder().decode(torch.zeros(3, 8), torch.zeros(3, 4))


def test_grid_boxes_by_hand() -> None:
    log3 = math.log(3)  # sigmoid 3/4 and, negative, 1/4
    raw = torch.tensor([[0.0, 0, 0, 0], [log3, -log3, math.log(2), math.log(0.5)]], dtype=torch.float64)
    cells, anchors = torch.tensor([[0, 0], [3, 1]]), torch.tensor([[10.0, 20], [32, 64]])
    # centres (4, 4) and (3.75 * 8, 1.25 * 8), sides 10 x 20 and 64 x 32
    expected = torch.tensor([[-1.0, -6, 9, 14], [-2, -6, 62, 26]], dtype=torch.float64)
    assert_close(GridCoder().decode(raw, cells, anchors, 8), expected)
    # Each has a stride of its own; the second centre is at (3.75 * 16, 1.25 * 16)
    expected[1] += torch.tensor([30.0, 10, 30, 10])
    assert_close(GridCoder().decode(raw, cells, anchors, torch.tensor([[8], [16]])), expected)


def test_grid_sensitivity_of_yolov4() -> None:
    raw = torch.tensor([[0.0, 0, 0, 0], [math.log(3), -math.log(3), 0, 0], [40, -40, 0, 0]], dtype=torch.float64)
    boxes = GridCoder(scale_xy=1.2).decode(raw, torch.tensor([2, 5]), torch.tensor([2.0, 4]), 10)
    # 1.2 * 3/4 - 0.1 = 0.8, 1.2 / 4 - 0.1 = 0.2; at the ends 1.1 and -0.1: beyond the cell
    centres = torch.tensor([[25.0, 55], [28, 52], [31, 49]], dtype=torch.float64)
    assert_close((boxes[:, :2] + boxes[:, 2:]) / 2, centres)
    assert_close(boxes[:, 2:] - boxes[:, :2], torch.tensor([[2.0, 4]], dtype=torch.float64).expand(3, 2))


@pytest.mark.parametrize("scale_xy", [1.0, 1.2])
def test_grid_decoding_differentiates(scale_xy: float) -> None:
    raw = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    cells, anchors = torch.arange(10).view(5, 2), torch.arange(1.0, 11.0).view(5, 2)
    assert torch.autograd.gradcheck(lambda raw: GridCoder(scale_xy).decode(raw, cells, anchors, 8), raw)


def test_grid_decoding_of_batches_and_without_boxes() -> None:
    raw = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    cells, anchors = torch.arange(10).view(5, 2), torch.arange(1.0, 11.0).view(5, 2)
    boxes = GridCoder().decode(raw, cells, anchors, 8)
    assert all(boxes[i].equal(GridCoder().decode(raw[i], cells, anchors, 8)) for i in range(3))
    assert GridCoder().decode(raw[:, :0], cells[:0], anchors[:0], 8).shape == (3, 0, 4)
    assert (
        GridCoder()
        .decode(raw.half(), cells, anchors, 8)
        .equal(GridCoder().decode(raw.half().float(), cells, anchors, 8))
    )
    with pytest.raises(ValueError, match=r"raw: expected boxes \[\.\.\., 4\], got \[5, 85\]"):
        GridCoder().decode(torch.zeros(5, 85), cells, anchors, 8)


def test_sides_by_hand_and_as_torchvisions() -> None:
    """From the centre (4, 4) of a square of 8 px: 2 and 3 of its sides to the left and up, 1 and 0.5 to the others."""
    square = torch.tensor([[0.0, 0.0, 8.0, 8.0]])
    box, distances = torch.tensor([[-12.0, -20.0, 12.0, 8.0]]), torch.tensor([[2.0, 3.0, 1.0, 0.5]])
    assert_close(SideCoder().encode(box, square), distances)
    assert_close(SideCoder().decode(distances, square), box)
    boxes, squares = random_boxes(20), random_boxes(20, seed=1)
    squares[:, 2:] = squares[:, :2] + 16
    theirs = TorchvisionSideCoder(normalize_by_size=True)
    assert_close(SideCoder().encode(boxes, squares), theirs.encode(squares, boxes))
    assert_close(SideCoder().decode(boxes, squares), theirs.decode(boxes, squares))


def test_sides_round_trip_differentiate_and_are_refused_in_other_shapes() -> None:
    coder, boxes, squares = SideCoder(), random_boxes(5), random_boxes(5, seed=1)
    assert_close(coder.decode(coder.encode(boxes, squares), squares), boxes)
    assert coder.encode(boxes.half(), squares.half()).dtype == torch.float32
    assert coder.decode(boxes.view(5, 1, 4), squares.view(5, 1, 4)).shape == (5, 1, 4)
    assert torch.autograd.gradcheck(lambda x: coder.decode(x, squares), boxes.clone().requires_grad_())
    with pytest.raises(ValueError, match=r"anchors: expected the shape \[5, 4\], got \[4, 4\]"):
        coder.decode(boxes, squares[:4])
