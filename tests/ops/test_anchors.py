import math

import pytest
import torch
from torch.testing import assert_close
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList

from detkit.ops.anchors import cell_anchors, grid_anchors, prior_anchors
from tests.reference import anchors as reference

RATIOS = (0.5, 1.0, 2.0)

# The listing in matlab's and py-faster-rcnn's generate_anchors, which counts pixels from 1.
FASTER_RCNN = [
    [-83, -39, 100, 56],
    [-175, -87, 192, 104],
    [-359, -183, 376, 200],
    [-55, -55, 72, 72],
    [-119, -119, 136, 136],
    [-247, -247, 264, 264],
    [-35, -79, 52, 96],
    [-79, -167, 96, 184],
    [-167, -343, 184, 360],
]


def test_the_nine_anchors_of_faster_rcnn() -> None:
    sizes = (128, 256, 512)
    cell = cell_anchors(sizes, RATIOS, rounding="sides", inclusive=True)
    from_zero = grid_anchors(cell, (1, 1), 16, offset=7.5 / 16)
    assert (from_zero + 1).tolist() == FASTER_RCNN
    assert_close(from_zero, torch.tensor(reference.py_faster_rcnn([8, 16, 32], list(RATIOS))))

    continuous = grid_anchors(cell_anchors(sizes, RATIOS, rounding="sides"), (1, 1), 16, offset=0.5)
    assert continuous.equal(from_zero + torch.tensor([0, 0, 1, 1])), "the same pixels, x2 and y2 one past the last"


def test_the_twelve_anchors_of_faster_rcnn_on_coco() -> None:
    cell = cell_anchors((64, 128, 256, 512), RATIOS, rounding="sides", inclusive=True)
    expected = reference.py_faster_rcnn([4, 8, 16, 32], list(RATIOS))
    assert_close(grid_anchors(cell, (1, 1), 16, offset=7.5 / 16), torch.tensor(expected))


def test_the_rounded_anchors_of_torchvision() -> None:
    expected = [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]]
    assert cell_anchors((32,), RATIOS, rounding="corners").tolist() == expected


@pytest.mark.parametrize("sizes", [(32,), (512,), (32, 40, 50), (128, 256, 512)])
@pytest.mark.parametrize("ratios", [(1.0,), RATIOS, (0.333, 3.0)])
def test_cells_equal_the_published_programs(sizes: tuple[int, ...], ratios: tuple[float, ...]) -> None:
    rounded = AnchorGenerator((sizes,), (ratios,)).cell_anchors[0]
    assert cell_anchors(sizes, ratios, rounding="corners").equal(rounded)
    assert_close(cell_anchors(sizes, ratios), torch.tensor(reference.detectron2_cell(list(sizes), list(ratios))))


def test_area_and_ratio_are_those_asked_for() -> None:
    sides = cell_anchors((10, 30), (0.5, 3.0))[:, 2:] * 2
    assert_close(sides.prod(1), torch.tensor([100.0, 900, 100, 900]))
    assert_close(sides[:, 1] / sides[:, 0], torch.tensor([0.5, 0.5, 3, 3]))


def test_a_ratio_may_be_width_to_height() -> None:
    assert_close(cell_anchors((10, 30), (0.5, 3.0), ratio="w/h"), cell_anchors((10, 30), (2.0, 1 / 3)))


def test_inclusive_corners_are_half_a_pixel_inside() -> None:
    assert cell_anchors((16,), (1.0,), inclusive=True).tolist() == [[-7.5, -7.5, 7.5, 7.5]]


def sides(priors: torch.Tensor) -> torch.Tensor:
    assert_close(priors[:, :2], -priors[:, 2:])
    return priors[:, 2:] * 2


def test_the_priors_of_ssd_in_the_order_of_caffes_layer() -> None:
    """SSD300's second level on VOC: the small square, the larger one, then ratios 2, 1/2, 3, 1/3 of the small area."""
    between, two, three = math.sqrt(60 * 111), math.sqrt(2), math.sqrt(3)
    expected = [
        [60, 60],
        [between, between],
        [60 * two, 60 / two],
        [60 / two, 60 * two],
        [60 * three, 60 / three],
        [60 / three, 60 * three],
    ]
    assert_close(sides(prior_anchors(60, 111, (2, 3))), torch.tensor(expected))


def test_mobilenet_ssds_first_level_has_no_second_square() -> None:
    expected = [[60, 60], [60 * math.sqrt(2), 60 / math.sqrt(2)], [60 / math.sqrt(2), 60 * math.sqrt(2)]]
    assert_close(sides(prior_anchors(60, None, (2,))), torch.tensor(expected))


def test_priors_equal_torchvision_with_and_without_its_clip() -> None:
    for clip, largest in ((False, None), (True, 320.0)):
        expected = DefaultBoxGenerator([[2, 3]], scales=[0.95, 1.0], clip=clip)._wh_pairs[0]
        expected = expected.clamp(0, 1) if clip else expected
        assert_close(sides(prior_anchors(0.95 * 320, 320, (2, 3), largest=largest)), expected * 320)
    assert sides(prior_anchors(304, 320, (2, 3), largest=320)).max() == 320
    assert sides(prior_anchors(304, 320, (2, 3))).max() > 500


def test_priors_are_centred_half_a_step_into_the_cell() -> None:
    priors = grid_anchors(prior_anchors(30, 60, (2,)), (38, 38), 8, offset=0.5)
    assert_close(priors[0], torch.tensor([-11.0, -11, 19, 19]))  # (4, 4) less and plus 15: not clipped
    assert_close(priors[-4], torch.tensor([285.0, 285, 315, 315]))  # (37.5 * 8 = 300) less and plus 15


@pytest.mark.parametrize("offset", [0.0, 0.5, 7.5 / 16])
@pytest.mark.parametrize("stride", [8, (4, 16)])
@pytest.mark.parametrize("feature_size", [(1, 1), (2, 3), (0, 3)])
def test_grid_walks_rows_then_columns_then_anchors(feature_size, stride, offset: float) -> None:
    cell = cell_anchors((32, 64), RATIOS).double()
    both = stride if isinstance(stride, tuple) else (stride, stride)
    expected = torch.tensor(reference.grid(cell.tolist(), feature_size, both, offset), dtype=torch.float64)
    assert_close(grid_anchors(cell, feature_size, stride, offset=offset), expected.view(-1, 4))


def test_grid_equals_torchvision() -> None:
    generator = AnchorGenerator(((32,),), (RATIOS,))
    (expected,) = generator(ImageList(torch.zeros(1, 3, 40, 64), [(40, 64)]), [torch.zeros(1, 1, 5, 8)])
    assert grid_anchors(cell_anchors((32,), RATIOS, rounding="corners"), (5, 8), 8).equal(expected)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.float16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_grid_is_at_least_float32(dtype: torch.dtype, expected: torch.dtype) -> None:
    """Half precision has no odd coordinates above 2048."""
    grid = grid_anchors(cell_anchors((32,), (1.0,)).to(dtype), (1, 2), 2049)
    assert grid.dtype == expected
    assert grid[1].tolist() == [2033, -16, 2065, 16]


def test_no_sizes_give_no_anchors() -> None:
    assert grid_anchors(cell_anchors((), RATIOS), (2, 2), 8).shape == (0, 4)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="expected 'h/w' or 'w/h', got 'h:w'"):
        cell_anchors((32,), RATIOS, ratio="h:w")
    with pytest.raises(ValueError, match="expected 'none', 'corners' or 'sides', got 'up'"):
        cell_anchors((32,), RATIOS, rounding="up")
    with pytest.raises(ValueError, match=r"expected \[A, 4\], got \[4\]"):
        grid_anchors(torch.zeros(4), (1, 1), 8)
