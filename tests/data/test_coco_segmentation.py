"""The box around a segmentation: by hand, and beside pycocotools."""

from typing import Any

import numpy as np
import pytest

from detkit.data.coco_segmentation import segmentation_box


@pytest.mark.parametrize(
    "polygons",
    [
        [[1, 2, 5, 2, 5, 8], [3, 1, 9, 1, 9, 4, 3, 4]],  # COCO's: several parts of one object
        [1, 2, 5, 8, 9, 1],
        [[1, 2], [5, 8], [9, 1]],
        [[[1, 2], [5, 8]], [[9, 1], [4, 4]]],
    ],
)
def test_box_around_all_polygons(polygons: Any) -> None:
    assert segmentation_box(polygons) == (1, 1, 9, 8)


def test_runs_by_hand() -> None:
    """Of a mask 3 high and 4 wide, column after column: 4 pixels of background, 2 of the object, 6 of background."""
    assert segmentation_box({"size": [3, 4], "counts": [4, 2, 6]}) == (1, 1, 2, 3)
    assert segmentation_box({"size": [3, 4], "counts": [5, 2, 5]}) == (1, 0, 3, 3)  # it goes on in the next column


@pytest.mark.parametrize("fill", [0.02, 0.3, 0.97, "rectangle"])
def test_masks_as_pycocotools_sees_them(fill: Any) -> None:
    from pycocotools import mask as peer

    rng = np.random.default_rng(0)
    for _ in range(60):
        height, width = rng.integers(1, 40, 2).tolist()
        if fill == "rectangle":
            mask = np.zeros((height, width), np.uint8)
            mask[height // 3 :, width // 4 : width // 2 + 1] = 1
        else:
            mask = (rng.random((height, width)) < fill).astype(np.uint8)
        encoded = peer.encode(np.asfortranarray(mask))
        x, y, w, h = peer.toBbox(encoded)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.T.ravel(), [2]])))
        runs = np.diff(np.concatenate([[0], edges])).tolist()
        expected = (x, y, x + w, y + h) if mask.any() else None
        for counts in (runs, encoded["counts"].decode()):
            assert segmentation_box({"size": [height, width], "counts": counts}) == expected


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        [],
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5]],
        [[1, 2, 3, 4, 5, "six"]],
        [[1, 2, 3, 4, 5, float("nan")]],
        {},
        {"size": [3, 4], "counts": [4, 2]},
        {"size": [3, 4], "counts": [4, -2, 10]},
        {"size": [3], "counts": [3]},
        {"size": [3, 4], "counts": [12]},  # no pixel of an object
        {"size": [3, 4], "counts": "no runs"},
        {"size": [3, 4], "counts": "oooooooooooooooooooooooooo"},  # a number without end
        {"size": [3, 4], "counts": 5},
    ],
)
def test_what_is_no_segmentation(segmentation: Any) -> None:
    assert segmentation_box(segmentation) is None
