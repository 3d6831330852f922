"""The best IoU on grids that are not laid out equals the best of all boxes of the grids that the heads lay out."""

import numpy as np
import pytest
import torch

from detkit.inspect.doctor.best_anchor import best_iou, grids_of, window_grids
from detkit.nn.anchors import AnchorConfig, AnchorGrid, PriorConfig, PriorGrid
from detkit.nn.proposals.windows import PyramidConfig, pyramid
from detkit.ops.iou import box_iou

CANVAS = (96, 128)


def random_boxes(count: int, size: tuple[int, int]) -> np.ndarray:
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 0.9, (count, 2)) * size[::-1]
    sides = rng.uniform(0.02, 1, (count, 2)) * (np.array(size[::-1]) - corner)
    return np.concatenate([corner, corner + sides], axis=1).astype(np.float32)


@pytest.mark.parametrize("spacing", ["stride", "image"])
@pytest.mark.parametrize("inside", [False, True])
def test_anchors(spacing: str, inside: bool) -> None:
    config = AnchorConfig(sizes=((12, 20), (40, 64)), spacing=spacing, offset=0.3)
    grid, sizes = AnchorGrid(config, (8, 16)), [(12, 16), (6, 8)]
    boxes = random_boxes(300, CANVAS)
    anchors = grid(sizes, CANVAS)
    window = torch.tensor([0, 0, 128, 90])
    if inside:
        anchors = anchors[((anchors[:, :2] >= window[:2]) & (anchors[:, 2:] <= window[2:])).all(dim=1)]
    expected = box_iou(torch.from_numpy(boxes), anchors).amax(dim=1).numpy()
    windows = np.tile(window.numpy(), (len(boxes), 1)) if inside else None
    np.testing.assert_allclose(best_iou(boxes, grids_of(grid, sizes, CANVAS), windows), expected, atol=1e-5)


def test_priors() -> None:
    config = PriorConfig(min_sizes=(20, 60), max_sizes=(60, None), ratios=((2,), (2, 3)), steps=None, clip_sides=True)
    grid, sizes, boxes = PriorGrid(config), [(12, 12), (1, 1)], random_boxes(300, (96, 96))
    expected = box_iou(torch.from_numpy(boxes), grid(sizes, (96, 96))).amax(dim=1).numpy()
    np.testing.assert_allclose(best_iou(boxes, grids_of(grid, sizes, (96, 96))), expected, atol=1e-5)


def test_windows() -> None:
    config, boxes = PyramidConfig(window=32, largest_scale=1.5), random_boxes(300, (75, 110))
    levels = pyramid(torch.zeros(3, 75, 110), config, 4)
    expected = box_iou(torch.from_numpy(boxes), torch.cat([level.boxes() for level in levels])).amax(dim=1).numpy()
    np.testing.assert_allclose(best_iou(boxes, window_grids((75, 110), config, 4)), expected, atol=1e-5)


def test_no_anchor_inside_and_no_box() -> None:
    grid = AnchorGrid(AnchorConfig(sizes=((64,),)), (16,))
    grids = grids_of(grid, [(6, 8)], CANVAS)
    box = np.array([[0, 0, 40, 40]], np.float32)
    assert best_iou(box, grids, np.array([[0, 0, 40, 40]])).tolist() == [0.0]
    assert best_iou(np.zeros((0, 4)), grids).tolist() == []
