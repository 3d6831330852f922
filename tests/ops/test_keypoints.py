"""Cells of keypoints and keypoints of cells: by the definition, against torchvision, and by hand."""

import pytest
import torch
from torch.testing import assert_close
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints, keypoints_to_heatmap

from detkit.ops.keypoints import heatmap_targets, keypoints_of_heatmaps
from tests.reference.keypoints import heatmap_cell


def random_boxes(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * 50
    return torch.cat([corners, corners + torch.rand(count, 2, generator=generator) * 40 + 0.2], dim=1)


@pytest.mark.parametrize("size", [1, 7, 56])
def test_cells_are_those_of_the_definition_and_torchvisions(size: int) -> None:
    boxes, generator = random_boxes(20), torch.Generator().manual_seed(1)
    shares = torch.rand(20, 6, 2, generator=generator) * 1.4 - 0.2  # a part of them outside
    points = boxes[:, None, :2] + shares * (boxes[:, None, 2:] - boxes[:, None, :2])
    points[:, 0], points[:, 1] = boxes[:, :2], boxes[:, 2:]  # on two corners
    keypoints = torch.cat([points, torch.randint(0, 3, (20, 6, 1), generator=generator)], dim=2)
    cells, inside = heatmap_targets(keypoints, boxes, size)
    expected = [
        [heatmap_cell(tuple(point), box, size) for point in part]
        for part, box in zip(keypoints.tolist(), boxes.tolist(), strict=True)
    ]
    assert inside.tolist() == [[cell is not None for cell in part] for part in expected]
    assert 20 < int(inside.sum()) < 100
    assert cells.tolist() == [[cell or 0 for cell in part] for part in expected]
    public_cells, public_inside = keypoints_to_heatmap(keypoints, boxes, size)
    assert torch.equal(cells, public_cells)
    assert torch.equal(inside, public_inside.bool())


def test_cells_by_hand() -> None:
    """A box of 8 x 4 px in 4 x 4 cells of 2 x 1 px; points in the third column and second row, on the last corner,
    to the right of the box, and one that is not labelled."""
    keypoints = torch.tensor([[[15.0, 21.5, 2], [18, 24, 1], [18.1, 22, 2], [15, 21.5, 0]]])
    cells, inside = heatmap_targets(keypoints, torch.tensor([[10.0, 20, 18, 24]]), 4)
    assert cells.tolist() == [[6, 15, 0, 0]]
    assert inside.tolist() == [[True, True, False, False]]


def test_places_equal_torchvisions() -> None:
    generator = torch.Generator().manual_seed(2)
    boxes, heatmaps = random_boxes(12, seed=3), torch.randn(12, 5, 14, 14, generator=generator)
    boxes[0, 2:] = boxes[0, :2] + 0.3  # smaller than a pixel
    places, scores = keypoints_of_heatmaps(heatmaps, boxes)
    expected, expected_scores = heatmaps_to_keypoints(heatmaps, boxes)
    assert_close(places, expected[..., :2], rtol=0, atol=1e-5)
    assert_close(scores, expected_scores)


def test_a_place_by_hand() -> None:
    """A box of as many pixels as cells needs no resize: the peak of the third column and second row is at its middle,
    2.5 and 1.5 px from the corner. In 3.5 px, which are 4 whole ones, a pixel is 3.5 / 4 px wide."""
    heatmap = torch.zeros(1, 1, 4, 4)
    heatmap[0, 0, 1, 2] = 5
    places, scores = keypoints_of_heatmaps(heatmap, torch.tensor([[10.0, 20, 14, 24]]))
    assert places.tolist() == [[[12.5, 21.5]]]
    assert scores.tolist() == [[5.0]]
    places, _ = keypoints_of_heatmaps(heatmap, torch.tensor([[10.0, 20, 13.5, 24]]))
    assert places.tolist() == [[[10 + 2.5 * 3.5 / 4, 21.5]]]


def test_a_target_comes_back_within_a_cell() -> None:
    boxes = random_boxes(10, seed=4)
    points = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2 + 0.11
    cells, inside = heatmap_targets(torch.cat([points, torch.ones(10, 1, 1)], dim=2), boxes, 28)
    rows = inside.flatten()
    heatmaps = torch.nn.functional.one_hot(cells, 28 * 28).view(10, 1, 28, 28).float()
    places, _ = keypoints_of_heatmaps(heatmaps, boxes)
    cell = (boxes[:, 2:] - boxes[:, :2]) / 28
    assert ((places[:, 0] - points[:, 0]).abs() <= cell.clamp(min=1))[rows].all()


def test_no_region() -> None:
    cells, inside = heatmap_targets(torch.zeros(0, 3, 3), torch.zeros(0, 4), 56)
    assert cells.shape == inside.shape == (0, 3)
    places, scores = keypoints_of_heatmaps(torch.zeros(0, 3, 8, 8), torch.zeros(0, 4))
    assert places.shape == (0, 3, 2)
    assert scores.shape == (0, 3)
