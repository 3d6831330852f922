"""Outlines of masks: by hand, and drawn again by pycocotools."""

import cv2
import numpy as np
import pytest

from detkit.structures import EncodedMasks, MaskCrops
from detkit.structures.mask_outlines import join_polygons, mask_outline, outlines


def test_one_pixel_and_a_ring_by_hand() -> None:
    pixel = np.zeros((4, 5), np.bool_)
    pixel[1, 2] = True
    (polygon,), has_hole = outlines(pixel)
    assert sorted(map(tuple, polygon)) == [(2, 1), (2, 2), (3, 1), (3, 2)]
    assert not has_hole
    ring = np.ones((3, 3), np.bool_)
    ring[1, 1] = False
    polygons, has_hole = outlines(ring)
    assert has_hole
    corners = [(polygon.min(axis=0).tolist(), polygon.max(axis=0).tolist()) for polygon in polygons]
    assert sorted(corners) == [([0, 0], [3, 3]), ([1, 1], [2, 2])]


@pytest.mark.parametrize("kind", ["noise", "blobs"])
def test_drawn_again_they_are_the_same_pixels(kind: str) -> None:
    """With holes, parts that touch at a corner, and parts at the border of the picture."""
    rng = np.random.default_rng(0)
    with_hole = 0
    for _ in range(150):
        height, width = rng.integers(1, 40, 2).tolist()
        values = rng.random((height, width))
        mask = values < rng.uniform(0.1, 0.9) if kind == "noise" else cv2.GaussianBlur(values, (0, 0), 3) > 0.5
        polygons, has_hole = outlines(mask)
        with_hole += has_hole
        assert bool(polygons) == mask.any()
        if polygons:
            joined = EncodedMasks.of([[join_polygons(polygons)]], [(height, width)])
            np.testing.assert_array_equal(joined.bitmap(0), mask)
            if not has_hole:
                parts = EncodedMasks.of([polygons], [(height, width)])
                np.testing.assert_array_equal(parts.bitmap(0), mask)
    assert with_hole > 5


def encoded(mask: np.ndarray) -> EncodedMasks:
    height, width = mask.shape
    return MaskCrops.of([mask], [(0, 0, width, height)]).encode(mask.shape)


def rasterised(outline: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return EncodedMasks.of([[outline]], [size]).bitmap(0)


def outline_of(mask: np.ndarray, max_error: float = 0.8) -> np.ndarray:
    outline = mask_outline(encoded(mask), 0, max_error)
    assert outline is not None
    return outline


@pytest.mark.parametrize("box", [(3, 4, 4, 5), (3, 4, 23, 5), (0, 0, 30, 20), (2, 3, 11, 17)])
def test_the_outline_of_pixels_runs_along_their_borders(box: tuple[int, int, int, int]) -> None:
    x1, y1, x2, y2 = box
    mask = np.zeros((20, 30), np.bool_)
    mask[y1:y2, x1:x2] = True
    corners = {(x1, y1), (x2, y1), (x2, y2), (x1, y2)}
    assert set(map(tuple, outline_of(mask).tolist())) == corners
    assert np.array_equal(rasterised(outline_of(mask), (20, 30)), mask)


def test_an_outline_is_near_a_round_mask_and_short() -> None:
    y, x = np.mgrid[:200, :300] + 0.5
    mask = ((x - 130) / 100) ** 2 + ((y - 90) / 60) ** 2 < 1
    outline = outline_of(mask)
    other = rasterised(outline, mask.shape)
    assert (mask & other).sum() / (mask | other).sum() > 0.99
    assert len(outline) < 511 / 4, "the length of the ellipse is 511 px"


@pytest.mark.parametrize("max_error", [0.0, 0.8])
def test_parts_and_holes_are_joined(max_error: float) -> None:
    """Three parts, the smallest of which has a hole; a line has no width, so no pixel between them is drawn."""
    mask = np.zeros((40, 60), np.bool_)
    for x1, y1, x2, y2 in ((2, 2, 22, 22), (30, 5, 45, 20), (10, 28, 20, 38)):
        mask[y1:y2, x1:x2] = True
    mask[31:34, 13:16] = False
    assert np.array_equal(rasterised(outline_of(mask, max_error), (40, 60)), mask)


def test_polygons_that_overlap_become_the_outline_of_their_pixels() -> None:
    """Joined as they are, their common part would be outside."""
    squares = [np.array([[x, x], [x + 8, x], [x + 8, x + 8], [x, x + 8.0]]) for x in (2, 6)]
    masks = EncodedMasks.of([squares], [(20, 20)])
    outline = mask_outline(masks, 0)
    assert outline is not None
    assert np.array_equal(rasterised(outline, (20, 20)), masks.bitmap(0))
    assert masks.bitmap(0).sum() == 64 + 64 - 16


def test_a_line_of_pixels_remains_a_polygon() -> None:
    """Of any slope, within the error of which it could be a line."""
    for rows, columns in ((1, 30), (3, 40), (17, 40), (40, 40)):
        mask = np.zeros((rows, columns), np.bool_)
        mask[np.arange(columns) * rows // columns, np.arange(columns)] = True
        assert len(outline_of(mask)) >= 3


def test_nothing_has_no_outline() -> None:
    assert mask_outline(encoded(np.zeros((5, 6), np.bool_)), 0, 0.8) is None
    assert mask_outline(EncodedMasks.of([None, []], [(5, 6)] * 2), 0) is None
    assert mask_outline(EncodedMasks.of([None, []], [(5, 6)] * 2), 1) is None
