"""Targets and pictures of masks, against loops over samples and pixels, against torchvision, and by hand."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torchvision.models.detection.roi_heads import paste_masks_in_image, project_masks_on_boxes

from detkit.ops.masks import mask_targets, paste_masks
from detkit.structures import MaskCrops, Size
from tests.reference import masks as reference
from tests.reference.roi import roi_align

SIZE = (20, 26)
WINDOW = torch.tensor([0.0, 0.0, 26.0, 20.0])
SURE = 1e-4  # a probability nearer than this to one half may become a pixel or not
# inside, a part of a pixel, beyond every border, over the whole picture, far outside, at the last pixels
BOXES = torch.tensor(
    [
        *([3.2, 4.1, 15.7, 13.3], [7.31, 5.22, 7.62, 5.43], [-5.57, -4.23, 6.11, 9.94], [20.4, 12.3, 31.0, 27.7]),
        *([0, 0, 26, 20], [-8, -8, 40, 30], [60, 50, 70, 66], [24.0, 18.0, 26.0, 20.0]),
    ]
)
NO_SIZE = torch.tensor([[5.0, 6.0, 5.0, 6.0], [4.0, 4.0, 4.0, 9.0], [3.0, 7.0, 12.0, 7.0]])


def random_crops(count: int, size: Size = SIZE, seed: int = 0) -> MaskCrops[Tensor]:
    """Blobs in windows of all places and sizes; the last has no pixel."""
    rng = np.random.default_rng(seed)
    crops, windows = [], []
    for number in range(count):
        x1, y1 = rng.integers(0, size[1] - 3), rng.integers(0, size[0] - 3)
        x2, y2 = rng.integers(x1 + 1, size[1] + 1), rng.integers(y1 + 1, size[0] + 1)
        if number == count - 1:
            x2, y2 = x1, y1
        windows.append((x1, y1, x2, y2))
        crops.append(rng.random((y2 - y1, x2 - x1)) > 0.3)
    return MaskCrops.of(crops, windows).map(torch.from_numpy)


def slow_targets(masks: MaskCrops[Tensor], objects: Tensor, boxes: Tensor, size: int, aligned: bool) -> Tensor:
    dense = masks.dense(SIZE).float()
    return torch.tensor(
        [
            roi_align(dense[index].tolist(), box, (size, size), 1.0, 0, aligned)
            for index, box in zip(objects.tolist(), boxes.tolist(), strict=True)
        ]
    )


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("size", [1, 4, 7])
def test_targets_are_the_mean_of_samples_in_each_cell(aligned: bool, size: int) -> None:
    masks = random_crops(5)
    boxes = torch.cat([BOXES, NO_SIZE]).repeat(2, 1)
    objects = torch.randint(0, 5, (len(boxes),), generator=torch.Generator().manual_seed(0))
    expected = slow_targets(masks, objects, boxes, size, aligned)
    assert_close(mask_targets(masks, objects, boxes, WINDOW, size, aligned=aligned), expected, rtol=0, atol=1e-5)


def test_targets_equal_torchvisions() -> None:
    masks, generator = random_crops(6, seed=1), torch.Generator().manual_seed(1)
    corners = torch.rand(30, 2, generator=generator) * 20 - 4
    boxes = torch.cat([corners, corners + torch.rand(30, 2, generator=generator) * 20 + 0.1], dim=1)
    objects = torch.randint(0, 6, (30,), generator=generator)
    expected = project_masks_on_boxes(masks.dense(SIZE), boxes, objects, 28)
    assert_close(mask_targets(masks, objects, boxes, WINDOW, 28), expected, rtol=0, atol=2e-6)


def test_targets_by_hand() -> None:
    """The left half of a region of 8 px in 4 cells of 2 px: samples lie at 0.5 and 1.5 px of each cell. Aligned, these
    are the middles of pixels; otherwise they lie between two, the second of which may be of the other half."""
    masks = MaskCrops.of([np.ones((8, 4), bool)], [(2, 2, 6, 10)]).map(torch.from_numpy)
    box, first = torch.tensor([[2.0, 2.0, 10.0, 10.0]]), torch.tensor([0])
    aligned = mask_targets(masks, first, box, WINDOW, 4, aligned=True)
    assert aligned[0].tolist() == [[1, 1, 0, 0]] * 4
    shifted = mask_targets(masks, first, box, WINDOW, 4)
    assert shifted[0, 0].tolist() == [1, 0.75, 0, 0]
    assert shifted[0, 3].tolist() == [0.75, 0.5625, 0, 0]


def test_a_mask_at_the_border_goes_on_half_a_pixel_beyond_it() -> None:
    """The last pixel's middle is half a pixel from the border; up to one pixel beyond, samples are that pixel's."""
    masks = MaskCrops.of([np.ones(SIZE, bool)], [(0, 0, 26, 20)]).map(torch.from_numpy)
    boxes = torch.tensor([[24.0, 18.0, 28.0, 22.0]])
    assert mask_targets(masks, torch.tensor([0]), boxes, WINDOW, 4, aligned=True)[0, 0].tolist() == [1, 1, 1, 0]


def test_no_region_and_a_mask_without_pixels() -> None:
    masks = random_crops(2)
    none = mask_targets(masks, torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), WINDOW, 5)
    assert none.shape == (0, 5, 5)
    assert mask_targets(masks, torch.tensor([1]), BOXES[:1], WINDOW, 5).tolist() == [[[0.0] * 5] * 5]


def random_masks(count: int, cells: int, seed: int = 0) -> Tensor:
    """Smooth, so that their borders lie between cells."""
    coarse = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (cells, cells), mode="bilinear")[:, 0]


@pytest.mark.parametrize("rounded", [True, False])
@pytest.mark.parametrize("cells", [1, 4, 14])
def test_pasted_masks_equal_the_slow_ones(rounded: bool, cells: int) -> None:
    masks = random_masks(len(BOXES), cells)
    pasted = torch.from_numpy(paste_masks(masks, BOXES, SIZE, rounded=rounded).dense(SIZE))
    paste = reference.paste_rounded if rounded else reference.paste_exactly
    soft = torch.tensor([paste(mask, box, SIZE) for mask, box in zip(masks.tolist(), BOXES.tolist(), strict=True)])
    sure = (soft - 0.5).abs() > SURE
    assert sure.float().mean() > 0.99
    assert torch.equal(pasted[sure], soft[sure] >= 0.5)
    assert pasted[6].sum() == 0, "a box outside of the picture"
    assert pasted[:6].flatten(1).any(dim=1).sum() >= 3


def test_pasted_masks_equal_torchvisions() -> None:
    generator, size = torch.Generator().manual_seed(0), (60, 80)
    corners = torch.rand(40, 2, generator=generator) * 50 - 10  # torchvision takes no box beside the picture
    boxes = torch.cat([corners, corners + torch.rand(40, 2, generator=generator) * 60 + 12], dim=1)
    masks = random_masks(40, 28)
    soft = paste_masks_in_image(masks[:, None], boxes, size)[:, 0]
    sure = (soft - 0.5).abs() > SURE
    pasted = torch.from_numpy(paste_masks(masks, boxes, size).dense(size))
    assert torch.equal(pasted[sure], soft[sure] >= 0.5)


def test_a_pasted_mask_by_hand() -> None:
    """A box of 8 px, its mask certain in the left of two columns of cells. Half way between the middles of the columns,
    at 6 px, the probability is one half; half a cell beyond the middles of the left column too, at the box's border."""
    mask, box = torch.tensor([[[1.0, 0.0]] * 2]), torch.tensor([[2.0, 2.0, 10.0, 10.0]])
    exact = paste_masks(mask, box, (12, 14), rounded=False).dense((12, 14))[0]
    assert np.flatnonzero(exact[5]).tolist() == [2, 3, 4, 5]
    assert np.flatnonzero(exact[:, 3]).tolist() == [2, 3, 4, 5, 6, 7, 8, 9]
    assert not exact[2, 2], "at a corner the two halves meet: about a quarter"
    # With its ring of zeros the mask has 4 cells on 17 whole px, from -2 to 14 (box 4 +- 8 + 2): the middle of the
    # certain column is at 17 / 4 * 1.5 - 2 = 4.4 px, and that of the next 4.25 px further.
    rounded = paste_masks(mask, box, (12, 14)).dense((12, 14))[0]
    assert np.flatnonzero(rounded[5]).tolist() == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("rounded", [True, False])
def test_boxes_of_no_size_and_none_at_all(rounded: bool) -> None:
    pasted = paste_masks(torch.ones(3, 4, 4), NO_SIZE, SIZE, rounded=rounded)
    assert len(pasted) == 3
    assert pasted.dense(SIZE).sum(axis=(1, 2)).max() <= 12  # at most the pixels of a line
    none = paste_masks(torch.zeros(0, 4, 4), torch.zeros(0, 4), SIZE, rounded=rounded)
    assert none.dense(SIZE).shape == (0, *SIZE)
