"""Outlines of masks: by hand, and drawn again by pycocotools."""

import cv2
import numpy as np
import pytest

from detkit.data.mask_outlines import join_polygons, outlines
from detkit.structures import EncodedMasks


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
