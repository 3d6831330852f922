"""Every object of a large picture once, however the tiles cut it."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch

from detkit.engine.prediction.tiles import is_cut, tile_windows, tiled, without_parts
from detkit.structures import Detections
from tests.engine.prediction.drawn import COLOURS, Box, detections_of, find_all, find_rectangles, picture


@pytest.mark.parametrize(("height", "width"), [(100, 100), (101, 130), (250, 1000), (64, 640)])
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5, 0.9])
def test_tiles_cover_the_picture_and_overlap(height: int, width: int, overlap: float) -> None:
    covered = np.zeros((height, width), np.int64)
    windows = tile_windows((height, width), 100, overlap)
    for x1, y1, x2, y2 in windows:
        assert (x2 - x1, y2 - y1) == (min(100, width), min(100, height))
        covered[y1:y2, x1:x2] += 1
    assert covered.min() == 1
    for axis in (0, 1):
        starts = sorted({window[axis] for window in windows})
        assert all(later - one <= 100 * (1 - overlap) + 0.5 for one, later in pairwise(starts))
    assert max(window[2] for window in windows) == width
    assert max(window[3] for window in windows) == height


def drawn_objects(rng: np.random.Generator, height: int, width: int, count: int) -> tuple[list[Box], list[int]]:
    """Rectangles of 6 to 30 px that do not touch, and one as large as several tiles."""
    boxes: list[Box] = [(20, 20, width - 150, 120)]
    taken = np.zeros((height, width), bool)
    taken[:125, : width - 140] = True
    while len(boxes) < count:
        w, h = rng.integers(6, 31, 2).tolist()
        x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
        if not taken[max(0, y - 2) : y + h + 2, max(0, x - 2) : x + w + 2].any():
            taken[y : y + h, x : x + w] = True
            boxes.append((x, y, x + w, y + h))
    return boxes, rng.integers(0, 2, count).tolist()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tile", [100, 160])
def test_each_object_once(seed: int, tile: int) -> None:
    """Objects of up to 30 px are whole in a tile that overlaps by at least as much; the large one in the whole picture
    only, where the small ones are not seen. Parts have higher scores than wholes."""
    height, width = 400, 611
    boxes, labels = drawn_objects(np.random.default_rng(seed), height, width, 60)
    calls: list[int] = []

    def predict(images: Sequence[np.ndarray]) -> list[Detections]:
        calls.append(len(images))
        return [
            find_rectangles(image, smallest=min(image.shape[:2]) // 5 if len(image) > tile else 1) for image in images
        ]

    detections = tiled(predict, tile, 0.35)([picture(height, width, boxes, labels)])[0]
    rows = sorted(zip(detections.boxes.tolist(), detections.labels.tolist(), strict=True))
    assert rows == sorted((list(map(float, box)), label) for box, label in zip(boxes, labels, strict=True))
    assert calls == [1, len(tile_windows((height, width), tile, 0.35))]


def test_masks_and_keypoints_are_those_of_the_picture() -> None:
    """Three objects that only tiles show; each mask has the pixels of its object."""
    image = picture(120, 300, [(5, 7, 40, 30), (130, 50, 160, 90), (250, 80, 296, 118)], [0, 1, 0])

    def predict(images: Sequence[np.ndarray]) -> list[Detections]:
        return [find_all(each if len(each) <= 100 else np.zeros_like(each)) for each in images]

    found = tiled(predict, 100, 0.5)([image])[0]
    assert len(found) == 3
    assert found.masks is not None
    assert found.masks.sizes.tolist() == [[120, 300]] * 3
    for mask, (x1, y1, x2, y2), label in zip(found.masks.dense(), found.boxes.tolist(), found.labels, strict=True):
        shown = np.zeros((120, 300), np.bool_)
        shown[int(y1) : int(y2), int(x1) : int(x2)] = True
        assert np.array_equal(mask, shown & (image == COLOURS[label]).all(axis=2))
    assert found.keypoints is not None
    assert torch.equal(found.keypoints[:, 0, 0], found.boxes[:, 0])
    assert torch.equal(found.keypoints[:, 2, 1], found.boxes[:, 1])
    assert (found.keypoints[..., 2] == 2).all()


def test_pictures_that_fit_into_a_tile_are_seen_once() -> None:
    images = [picture(90, 100, [(3, 4, 40, 50)], [1]), picture(100, 60, [], [])]
    calls: list[list[tuple[int, ...]]] = []

    def predict(images: Sequence[np.ndarray]) -> list[Detections]:
        calls.append([image.shape for image in images])
        return [find_rectangles(image) for image in images]

    first, second = tiled(predict, 100, 0.2)(images)
    assert calls == [[(90, 100, 3), (100, 60, 3)]]
    assert first.boxes.tolist() == [[3, 4, 40, 50]]
    assert len(second) == 0


def test_a_box_is_cut_at_a_border_of_its_tile_that_is_none_of_the_picture() -> None:
    """A tile of 100 px on the left border of a picture of 100 x 300: 2 % of it are 2 px."""
    boxes = torch.tensor([[0.0, 0, 50, 100], [20, 10, 99, 40], [20, 10, 97, 40], [150, 0, 200, 100]])
    assert is_cut(boxes, (0, 0, 100, 100), (100, 300)).tolist() == [False, True, False, False]
    assert is_cut(boxes, (100, 0, 200, 100), (100, 300))[3]


def test_parts_go_and_neighbours_stay() -> None:
    """By hand, boxes of the form (0, 0, width, 10). The whole of 40; a part of 15, all within it; a part of another
    class; one that is not cut, of 15, is an object before the other; a cut one of which 10 of 30 lie in the whole."""
    boxes = [(0, 0, 40, 10), (0, 0, 15, 10), (0, 0, 15, 10), (5, 0, 20, 10), (30, 0, 60, 10)]
    detections = detections_of(boxes, [0, 0, 1, 0, 0], [0.5, 0.9, 0.8, 0.7, 0.6])
    cut = {0.5: False, 0.9: True, 0.8: True, 0.7: False, 0.6: True}
    rows = torch.tensor([cut[round(score, 1)] for score in detections.scores.tolist()])
    remaining = without_parts(detections, rows)
    assert [round(score, 1) for score in remaining.scores.tolist()] == [0.8, 0.7, 0.6, 0.5]


def test_whole_boxes_are_suppressed_by_overlap() -> None:
    """IoU 90 / 110 above 0.5, and 10 / 30, below."""
    boxes = [(0, 0, 10, 10), (0, 1, 10, 11), (0, 5, 10, 15)]
    remaining = without_parts(detections_of(boxes, [0, 0, 0], [0.7, 0.8, 0.6]), torch.zeros(3, dtype=torch.bool))
    assert remaining.boxes.tolist() == [[0, 1, 10, 11], [0, 5, 10, 15]]


def test_nothing_is_found() -> None:
    empty = tiled(lambda images: [find_rectangles(image) for image in images], 50, 0.2)([picture(120, 130, [], [])])[0]
    assert empty.boxes.shape == (0, 4)
