"""Detections as plain values: masks as COCO has them, keypoints by name."""

import json

import numpy as np
import pytest

from detkit.engine.prediction.records import picture_record
from tests.engine.prediction.drawn import find_all, picture


def test_masks_and_keypoints_are_in_the_record() -> None:
    mask = pytest.importorskip("pycocotools.mask")
    image = picture(40, 50, [(2, 3, 22, 33)], [1])
    record = picture_record((40, 50), find_all(image))
    assert json.loads(json.dumps(record)) == record
    (found,) = record["detections"]
    assert list(found) == ["class", "score", "box", "mask", "keypoints"]
    assert found["mask"]["size"] == [40, 50]
    assert np.array_equal(mask.decode(found["mask"]).astype(bool), image.any(axis=2))
    assert found["keypoints"] == [
        {"name": "left", "x": 2, "y": 18, "score": 1},
        {"name": "right", "x": 22, "y": 18, "score": 2},
        {"name": "top", "x": 12, "y": 3, "score": 3},
    ]


def test_no_detection_is_an_empty_list() -> None:
    assert picture_record((40, 50), find_all(picture(40, 50, [], []))) == {"width": 50, "height": 40, "detections": []}
