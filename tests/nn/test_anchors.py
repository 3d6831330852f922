"""Anchors and priors on the grids of feature levels, against published tables and counts by hand."""

import math

import pytest
import torch
from pydantic import ValidationError

from detkit.config import UserError
from detkit.nn.anchors import AnchorConfig, AnchorGrid, PriorConfig, PriorGrid, grid_cells


def test_anchors_follow_level_row_column_and_shape() -> None:
    grid = AnchorGrid(AnchorConfig(sizes=((16,), (32,)), ratios=(1.0,)), (16, 32))
    boxes = grid([(4, 6), (2, 3)], (64, 96))
    assert boxes.shape == (24 + 6, 4)
    assert boxes[1].tolist() == [16 - 8, -8, 16 + 8, 8]  # the second column of the first row
    assert boxes[6].tolist() == [-8, 16 - 8, 8, 16 + 8]  # the first column of the second row
    assert boxes[29].tolist() == [64 - 16, 32 - 16, 64 + 16, 32 + 16]  # the last cell of the coarser level


def test_spacing_follows_the_image_or_the_stride() -> None:
    for spacing, expected in (("image", 45), ("stride", 48)):  # 60 px have 4 cells at stride 16: 15 px each
        config = AnchorConfig(sizes=((16,),), ratios=(1.0,), spacing=spacing)
        last = AnchorGrid(config, (16,))([(4, 4)], (60, 60))[-1]
        assert last.tolist() == [expected - 8, expected - 8, expected + 8, expected + 8]


def test_anchors_of_vgg16_are_the_published_table() -> None:
    """shaoqingren/faster_rcnn lists them from 1 and with inclusive corners; here they are continuous."""
    published = [
        (-83, -39, 100, 56), (-175, -87, 192, 104), (-359, -183, 376, 200),
        (-55, -55, 72, 72), (-119, -119, 136, 136), (-247, -247, 264, 264),
        (-35, -79, 52, 96), (-79, -167, 96, 184), (-167, -343, 184, 360),
    ]  # fmt: skip
    config = AnchorConfig(sizes=((128, 256, 512),), rounding="sides", spacing="stride", offset=0.5)
    grid = AnchorGrid(config, (16,))
    assert grid.per_cell == 9
    anchors = grid([(2, 2)], (32, 32))
    first = torch.tensor(published) + torch.tensor([-1, -1, 0, 0])
    assert torch.equal(anchors[:9], first.float())
    assert torch.equal(anchors[9:18], first.float() + torch.tensor([16, 0, 16, 0]))
    assert torch.equal(anchors[18:27], first.float() + torch.tensor([0, 16, 0, 16]))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (((16,), (32,)), "anchors.sizes: expected 1 lists, one a level, got 2"),
        ((), "anchors.sizes: expected 1 lists, one a level, got 0"),
    ],
)
def test_one_list_of_sizes_for_each_level(sizes: tuple[tuple[float, ...], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnchorGrid(AnchorConfig(sizes=sizes), (16,))


def test_as_many_sizes_on_every_level() -> None:
    with pytest.raises(ValueError, match=r"expected as many sizes on every level, got \[1, 2\]"):
        AnchorGrid(AnchorConfig(sizes=((16,), (16, 32))), (16, 32))


def test_octaves_multiply_the_sizes_and_are_whole_px_where_corners_are() -> None:
    """RetinaNet's three sizes an octave (section 4); torchvision cuts 32 * 2^(1/3) = 40.3 and 50.8 to 40 and 50."""
    octaves = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
    config = AnchorConfig(sizes=((32,), (512,)), octave_scales=octaves)
    assert config.all_sizes(0) == (32, 40, 50)
    assert config.all_sizes(1) == (512, 645, 812)
    grid = AnchorGrid(config, (8, 128))
    assert grid.per_cell == 9
    plain = AnchorGrid(AnchorConfig(sizes=((32, 40, 50),)), (8,))
    assert torch.equal(grid([(2, 3), (1, 1)], (16, 24))[:54], plain([(2, 3)], (16, 24)))
    exact = AnchorConfig(sizes=((32,),), octave_scales=octaves, rounding="none").all_sizes(0)
    assert exact == pytest.approx((32, 40.3175, 50.7968), rel=1e-5)
    assert AnchorConfig(sizes=((12.5,),)).all_sizes(0) == (12.5,), "without octaves a size stays what was written"


def test_anchors_are_part_of_no_checkpoint_and_laid_out_once_a_size() -> None:
    grid = AnchorGrid(AnchorConfig(sizes=((16,),)), (16,))
    assert not grid.state_dict()
    with torch.inference_mode():
        first = grid([(2, 3)], (32, 48))
    assert not first.is_inference(), "training may need them afterwards"
    assert grid([(2, 3)], (32, 48)) is first
    assert grid([(3, 2)], (48, 32)) is not first


def test_published_numbers_of_priors() -> None:
    """8,732 of SSD300 (section 2.1), by the maps of the paper: 4 * (38^2 + 3^2 + 1) + 6 * (19^2 + 10^2 + 5^2)."""
    grid = PriorGrid(PriorConfig())
    assert grid.per_cell == [4, 6, 6, 6, 4, 4]
    priors = grid([(side, side) for side in (38, 19, 10, 5, 3, 1)], (300, 300))
    assert len(priors) == 8732
    # the first cell of the first level: 30; sqrt(30 * 60); 30 * sqrt(2) by 30 / sqrt(2) and its inverse; around (4, 4)
    sides = priors[:4, 2:] - priors[:4, :2]
    mean, long, short = math.sqrt(1800), 30 * math.sqrt(2), 30 / math.sqrt(2)
    expected = torch.tensor([(30, 30), (mean, mean), (long, short), (short, long)])
    torch.testing.assert_close(sides, expected)
    torch.testing.assert_close((priors[:4, :2] + priors[:4, 2:]) / 2, torch.full((4, 2), 4.0))
    # the only cell of the last level is centred at 150 and its first prior is 264 wide
    torch.testing.assert_close(priors[-4], torch.tensor([150 - 132.0, 18, 282, 282]))


def one_level(**fields: object) -> PriorGrid:
    """Squares of 10 px, 10 px apart, unless said otherwise."""
    return PriorGrid(
        PriorConfig(**({"min_sizes": (10,), "max_sizes": (None,), "ratios": ((),), "steps": (10,)} | fields))
    )


def test_priors_follow_row_and_column() -> None:
    assert one_level()([(2, 3)], (20, 30))[4].tolist() == [10, 10, 20, 20]


def test_priors_without_steps_divide_the_input_and_sides_may_be_clipped() -> None:
    priors = one_level(min_sizes=(280,), ratios=((4,),), steps=None, clip_sides=True)([(3, 3)], (320, 320))
    torch.testing.assert_close(priors[0, :2] + 140, torch.full((2,), 320 / 6))
    assert (priors[1, 2:] - priors[1, :2]).tolist() == [320, 140]  # 560 x 140


@pytest.mark.parametrize("side", [37, 38])  # 300 / 8 = 37.5, rounded either way
def test_steps_fit_maps_rounded_either_way(side: int) -> None:
    assert len(one_level(steps=(8,))([(side, side)], (300, 300))) == side**2


@pytest.mark.parametrize("feature_size", [(4, 1), (1, 4)])
def test_steps_of_another_input_size_are_refused(feature_size: tuple[int, int]) -> None:
    """SSD300's last level on 512 px: a step of 300 would lay centres at 450, 750 and 1050."""
    height, width = feature_size
    message = f"head.priors.steps: 300 px do not fit level 0, of {height} x {width} cells, and an input of 512 x 512 px"
    with pytest.raises(UserError, match=message):
        one_level(steps=(300,))([feature_size], (512, 512))


@pytest.mark.parametrize("name", ["max_sizes", "ratios", "steps"])
def test_lists_of_priors_have_one_entry_a_level(name: str) -> None:
    with pytest.raises(ValidationError, match=f"{name}: expected 6 entries, as min_sizes has, found 1"):
        PriorConfig(**{name: ((2,),) if name == "ratios" else (1,)})  # type: ignore[arg-type]


def test_priors_are_part_of_no_checkpoint() -> None:
    assert not PriorGrid(PriorConfig()).state_dict()


def test_cells_are_column_and_row() -> None:
    assert grid_cells(2, 3, torch.device("cpu")).tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1]]
